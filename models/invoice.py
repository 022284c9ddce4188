"""Invoices, credit notes and payments as they were issued: frozen, with the parties as they were on that day.

All amounts are ledger units. Those on a document are whole minor units of its currency; only a line's `amount` is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from models.money import MilliUnits, Units


class InvoiceKind(StrEnum):
    """What a document is: a claim, or what takes a part of one back. The amounts of both are positive."""

    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"


class InvoiceState(StrEnum):
    """draft -> open -> paid, void or uncollectible; an invoice that was paid is open again when money goes back."""

    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


class LineKind(StrEnum):
    """Why a line is there. `credit` (paid by grants) is negative; `adjustment` is what no quantity explains."""

    USAGE = "usage"
    CREDIT = "credit"
    REBATE = "rebate"
    ADJUSTMENT = "adjustment"
    ITEM = "item"


class TaxTreatment(StrEnum):
    """How a supply is taxed. `none`: no rule says anything, so there is no tax and nothing is said about one."""

    STANDARD = "standard"
    EXEMPT = "exempt"
    REVERSE_CHARGE = "reverse_charge"
    ZERO_RATED = "zero_rated"
    NONE = "none"


class AmendmentReason(StrEnum):
    """Why a Korean tax invoice is amended: the six of the enforcement decree of the VAT act, section 70."""

    MISTAKE = "mistake"  # 기재사항 착오정정
    VALUE_CHANGED = "value_changed"  # 공급가액 변동
    CONTRACT_ENDED = "contract_ended"  # 계약의 해제
    RETURNED = "returned"  # 환입
    LOCAL_LETTER_OF_CREDIT = "local_letter_of_credit"  # 내국신용장 사후개설
    ISSUED_TWICE = "issued_twice"  # 착오에 의한 이중발급


@dataclass(frozen=True, slots=True)
class Party:
    """Buyer or seller as a document shows it; `payment_details` are the seller's lines on where to pay."""

    legal_name: str
    country: str | None = None
    tax_id: str | None = None
    address: str | None = None
    email: str | None = None
    phone: str | None = None
    payment_details: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line. The `amount`s of an invoice add up to its charges that no grant paid, the `rounded` to its subtotal.

    `unit_price` is in milli-units per unit of the meter; None where no single price applies.
    """

    kind: LineKind
    description: str
    amount: Units
    rounded: Units = Units(0)
    project_id: UUID | None = None
    project_name: str | None = None
    model: str | None = None
    meter: str | None = None
    price_version_id: UUID | None = None
    quantity: int = 0
    unit_price: MilliUnits | None = None


@dataclass(frozen=True, slots=True)
class Tax:
    """The tax of a document: `amount` on `base`, at `rate_ppm` parts per million.

    `is_inclusive` where the prices contain it.
    """

    treatment: TaxTreatment
    base: Units
    amount: Units
    rate_ppm: int = 0
    name: str | None = None
    is_inclusive: bool = False


@dataclass(frozen=True, slots=True)
class Korea:
    """What a Korean tax invoice has besides (facts: billing, section 7).

    `supply_value` is 공급가액, `tax` 세액, `written_on` 작성일자, `approval_number` 승인번호, which the tax service
    gives after the issue. An amendment has a `reason` and names the original's number.
    """

    supply_value: Units
    tax: Units
    written_on: date
    seller_registration: str | None = None
    buyer_registration: str | None = None
    approval_number: str | None = None
    reason: AmendmentReason | None = None
    original_approval_number: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice, or a credit note for the one that `corrects` names.

    `month` is the first day of the month of an invoice for usage; `starts_at` and `ends_at` are its bounds in UTC.
    `rounding` is what the exact sum was rounded by; `settled` what payments and credit notes paid of `total`.
    """

    id: UUID
    organization_id: UUID
    kind: InvoiceKind
    state: InvoiceState
    series: str
    number: int | None
    currency: str
    subtotal: Units
    total: Units
    rounding: Units
    settled: Units
    tax: Tax
    buyer: Party
    seller: Party | None
    language: str
    created_at: datetime
    lines: tuple[Line, ...] = ()
    corrects: UUID | None = None
    month: date | None = None
    timezone: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    issued_on: date | None = None
    due_on: date | None = None
    purchase_order: str | None = None
    reason: str | None = None
    korea: Korea | None = None
    pdf_sha256: bytes | None = None
    posting_id: int | None = None
    finalized_at: datetime | None = None
    closed_at: datetime | None = None

    @property
    def number_text(self) -> str | None:
        """The number as people see it, such as `INV-000042`; None of a draft."""
        return None if self.number is None else f"{self.series}-{self.number:06d}"

    @property
    def due(self) -> Units:
        """What is still to be paid of it."""
        return Units(self.total - self.settled) if self.state is InvoiceState.OPEN else Units(0)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was set against an invoice, by a payment or a credit note; below zero where it was taken back."""

    invoice_id: UUID
    amount: Units
    created_at: datetime
    payment_id: UUID | None = None
    credit_note_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Payment:
    """Money that came in. What is not set against invoices is in the credit grant `grant_id`.

    `provider` and `reference` together name it once; `refunded` is how much of it went back.
    """

    id: UUID
    organization_id: UUID
    provider: str
    reference: str
    amount: Units
    currency: str
    received_at: datetime
    refunded: Units
    grant_id: UUID | None
    posting_id: int
    created_at: datetime
    allocations: tuple[Allocation, ...] = ()

    @property
    def allocated(self) -> Units:
        """How much of it is set against invoices now."""
        return Units(sum(each.amount for each in self.allocations))
