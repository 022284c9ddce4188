"""A document as values: who to whom, the lines, the totals; money is text already, made by `models.money`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import Literal, TypeAlias

Language: TypeAlias = Literal["en", "ko"]


class Kind(StrEnum):
    """What the document is."""

    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"
    STATEMENT = "statement"


class Mark(StrEnum):
    """What is said across a document that nobody should pay."""

    DRAFT = "draft"
    VOID = "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Seller or buyer, as the document names them for ever; `address` may have several lines."""

    name: str
    tax_id: str | None = None
    address: str | None = None
    email: str | None = None
    phone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What was sold: `quantity` and `unit_price` are empty where there are none; `unit` says what the price is per."""

    description: str
    detail: str = ""
    quantity: str = ""
    unit_price: str = ""
    unit: str = ""
    amount: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tax:
    """One rate of tax, with the amount it was taken of; `rate` is such as `10 %`, or empty where the name has it."""

    name: str
    rate: str
    base: str
    amount: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums below the lines; None is a sum that this document does not have."""

    subtotal: str
    taxes: tuple[Tax, ...] = ()
    # Already in the subtotal; told because the lines of the calls have more digits.
    rounding: str | None = None
    total: str
    # These change after the issue.
    paid: str | None = None
    open: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Korea:
    """What a Korean document has besides: 공급가액, 세액, 작성일자, and of a correction its reason and the 승인번호."""

    supply_value: str
    tax: str
    written_on: date
    amendment_reason: str | None = None
    original_approval_number: str | None = None
    # The tax service gives it after the issue, so it is not on what was issued.
    approval_number: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """A line of a statement of account: `charged` and `paid` are empty where nothing was, `balance` is after it."""

    on: date
    reference: str
    description: str
    charged: str = ""
    paid: str = ""
    balance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ageing:
    """What is open by the days that it is overdue; `name` is such as `1–30`, or empty for what is not yet due."""

    name: str
    amount: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A statement of account: what was open before, each movement, what is open now."""

    opening: str
    movements: tuple[Movement, ...]
    closing: str
    ageing: tuple[Ageing, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Everything that is on the paper, and nothing else: the same document is the same bytes.

    An invoice or credit note has `lines` and `totals`; a statement has an `account`. Both ends of `period` are in it.
    `terms` are lines below the totals such as where to pay, `notes` are sentences such as that of a reverse charge.
    """

    kind: Kind
    language: Language
    number: str
    currency: str
    issued_on: date
    seller: Party
    buyer: Party
    due_on: date | None = None
    period: tuple[date, date] | None = None
    purchase_order: str | None = None
    corrects: str | None = None
    reason: str | None = None
    lines: tuple[Line, ...] = ()
    totals: Totals | None = None
    account: Account | None = None
    korea: Korea | None = None
    mark: Mark | None = None
    terms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_issued(self) -> Document:
        """The document as it was on the day of its issue, without what happened to it since."""
        korea = replace(self.korea, approval_number=None) if self.korea else None
        totals = replace(self.totals, paid=None, open=None) if self.totals else None
        # Of an invoice it is why it was voided; of a credit note, why it was issued.
        reason = self.reason if self.kind is Kind.CREDIT_NOTE else None
        return replace(self, mark=None, reason=reason, korea=korea, totals=totals)

    def __post_init__(self) -> None:
        is_statement = self.kind is Kind.STATEMENT
        if (self.account is not None) != is_statement or (self.totals is None) != is_statement:
            raise ValueError("a statement has an account, any other document has totals")
