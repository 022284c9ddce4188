"""The shapes in which everybody gets invoices and credit notes."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field

from billing.tax import percent_text
from gateway.api.operator.shapes import Money
from models.invoice import AmendmentReason, Invoice, InvoiceKind, InvoiceState, Line, LineKind, Party, TaxTreatment
from models.money import price_text


def _month(value: Any) -> Any:
    # A number would be taken for seconds since 1970, and so for any day of a month.
    if not isinstance(value, str) or re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", value, re.ASCII) is None:
        raise ValueError("must be a month such as '2026-11'")
    return f"{value}-01"


Month = Annotated[date, BeforeValidator(_month), Field(json_schema_extra={"type": "string", "example": "2026-11"})]


class PartyAnswer(BaseModel):
    """Buyer or seller, as the document shows it."""

    legal_name: str
    country: str | None
    tax_id: str | None
    address: str | None
    email: str | None
    phone: str | None
    payment_details: str | None

    @classmethod
    def of(cls, party: Party) -> PartyAnswer:
        """The answer for a party."""
        return cls(**{name: getattr(party, name) for name in cls.model_fields})


class LineAnswer(BaseModel):
    """A line. `amount`s add up to the subtotal; `exact_amount`s to the charges. `unit_price` is per million units."""

    kind: LineKind
    description: str
    project_id: UUID | None
    project_name: str | None
    model: str | None
    meter: str | None
    price_version_id: UUID | None
    quantity: int
    unit_price: str | None
    amount: Money
    exact_amount: Money

    @classmethod
    def of(cls, line: Line, currency: str) -> LineAnswer:
        """The answer for a line."""
        plain = ("kind", "description", "project_id", "project_name", "model", "meter", "price_version_id", "quantity")
        return cls(
            **{name: getattr(line, name) for name in plain},
            unit_price=None if line.unit_price is None else price_text(line.unit_price, currency),
            amount=Money.of(line.rounded, currency),
            exact_amount=Money.of(line.amount, currency),
        )


class TaxAnswer(BaseModel):
    """How the document is taxed; `rate` is in percent, `included` where the prices contain the tax."""

    treatment: TaxTreatment
    name: str | None
    rate: str
    included: bool


class KoreaAnswer(BaseModel):
    """What a Korean tax invoice has besides; an amendment has a `reason`."""

    supply_value: Money
    tax: Money
    written_on: date
    seller_registration: str | None
    buyer_registration: str | None
    approval_number: str | None
    reason: AmendmentReason | None
    original_approval_number: str | None
    note: str | None


class InvoiceAnswer(BaseModel):
    """An invoice or a credit note, whose amounts are positive and which names the invoice that it `corrects`."""

    id: UUID
    object: Literal["invoice"] = "invoice"
    number: str | None
    kind: InvoiceKind
    status: InvoiceState
    organization_id: UUID
    corrects: UUID | None
    currency: str
    month: str | None
    period_start: datetime | None
    period_end: datetime | None
    timezone: str | None
    issued_on: date | None
    due_on: date | None
    subtotal: Money
    tax: Money
    total: Money
    amount_paid: Money
    amount_due: Money
    rounding: Money
    tax_detail: TaxAnswer
    buyer: PartyAnswer
    seller: PartyAnswer | None
    language: str
    purchase_order: str | None
    reason: str | None
    korea: KoreaAnswer | None
    lines: list[LineAnswer]
    created_at: datetime
    finalized_at: datetime | None
    closed_at: datetime | None

    @classmethod
    def of(cls, invoice: Invoice) -> InvoiceAnswer:
        """The answer for an invoice."""
        code, tax = invoice.currency, invoice.tax
        plain = (
            *("id", "kind", "organization_id", "corrects", "currency", "timezone", "issued_on", "due_on"),
            *("language", "purchase_order", "reason", "created_at", "finalized_at", "closed_at"),
        )
        amounts = {
            "subtotal": invoice.subtotal,
            "tax": tax.amount,
            "total": invoice.total,
            "amount_paid": invoice.settled,
            "amount_due": invoice.due,
            "rounding": invoice.rounding,
        }
        fields: dict[str, Any] = {name: getattr(invoice, name) for name in plain}
        fields |= {name: Money.of(units, code) for name, units in amounts.items()}
        return cls(
            **fields,
            number=invoice.number_text,
            status=invoice.state,
            month=None if invoice.month is None else f"{invoice.month:%Y-%m}",
            period_start=invoice.starts_at,
            period_end=invoice.ends_at,
            tax_detail=TaxAnswer(
                treatment=tax.treatment, name=tax.name, rate=percent_text(tax.rate_ppm), included=tax.is_inclusive
            ),
            buyer=PartyAnswer.of(invoice.buyer),
            seller=None if invoice.seller is None else PartyAnswer.of(invoice.seller),
            korea=_korea(invoice),
            lines=[LineAnswer.of(line, code) for line in invoice.lines],
        )


def _korea(invoice: Invoice) -> KoreaAnswer | None:
    korea = invoice.korea
    if korea is None:
        return None
    amounts = {name: Money.of(getattr(korea, name), invoice.currency) for name in ("supply_value", "tax")}
    plain: dict[str, Any] = {name: getattr(korea, name) for name in KoreaAnswer.model_fields}
    return KoreaAnswer(**(plain | amounts))
