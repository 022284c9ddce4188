"""Routes of payments that a person records: what they pay, and what of them goes back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing import payments
from billing.store import payments as stored
from billing.store.invoices import find_invoice
from gateway.api.operator.organizations import found_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, ListOf, Moment, Money, PaidMoney, Slug, Text, list_of
from models.errors import Conflict, NotFound
from models.invoice import Payment

router = APIRouter()


class InvoicePayment(Body):
    """Money that came in. A provider's `reference` is taken once, so that no payment is recorded twice."""

    amount: PaidMoney
    reference: Text
    provider: Slug = payments.MANUAL
    received_at: Moment | None = None


class NewPayment(InvoicePayment):
    """Money that came in: it pays the invoices that it names, else what is due first; the rest is credit."""

    organization_id: UUID
    invoice_ids: Annotated[list[UUID], Field(min_length=1, max_length=100)] | None = None


class NewAllocation(Body):
    """Which invoice the credit of a payment is set against; without an amount as much as can be."""

    invoice_id: UUID
    amount: PaidMoney | None = None


class NewRefund(Body):
    """What goes back. `reopens_invoices` where invoices that it paid shall be owed again for it."""

    amount: PaidMoney
    reopens_invoices: bool = False


class AllocationAnswer(BaseModel):
    """What was set against an invoice; below zero where it was taken back."""

    invoice_id: UUID
    amount: Money
    created_at: datetime


class PaymentAnswer(BaseModel):
    """A payment; what is not set against invoices is in the credit grant `credit_grant_id`."""

    id: UUID
    object: Literal["payment"] = "payment"
    organization_id: UUID
    provider: str
    reference: str
    amount: Money
    allocated: Money
    refunded: Money
    credit_grant_id: UUID | None
    allocations: list[AllocationAnswer]
    received_at: datetime
    created_at: datetime

    @classmethod
    def of(cls, paid: Payment) -> PaymentAnswer:
        """The answer for a payment."""
        plain = ("id", "organization_id", "provider", "reference", "received_at", "created_at")
        fields: dict[str, Any] = {name: getattr(paid, name) for name in plain}
        fields |= {name: Money.of(getattr(paid, name), paid.currency) for name in ("amount", "allocated", "refunded")}
        return cls(
            **fields,
            credit_grant_id=paid.grant_id,
            allocations=[
                AllocationAnswer(
                    invoice_id=each.invoice_id,
                    amount=Money.of(each.amount, paid.currency),
                    created_at=each.created_at,
                )
                for each in paid.allocations
            ],
        )


class AskedPayments(AskedById):
    """Which payments to list, newest first."""

    organization_id: UUID | None = None


@router.post("/payments", response_model=PaymentAnswer)
async def record_payment(body: NewPayment, request: Operator) -> Response:
    """Record a payment. It pays open invoices; what is left of it is the organization's credit."""

    async def effect(change: Change) -> PaymentAnswer:
        invoice_ids = None if body.invoice_ids is None else tuple(body.invoice_ids)
        return await _record(change, body.organization_id, body, invoice_ids)

    return await request.change(effect)


@router.post("/invoices/{invoice_id}/payments", response_model=PaymentAnswer)
async def pay_invoice(invoice_id: UUID, body: InvoicePayment, request: Operator) -> Response:
    """Record a payment of this invoice; what is above what is owed of it is the organization's credit."""

    async def effect(change: Change) -> PaymentAnswer:
        invoice = await find_invoice(change.connection, invoice_id)
        if invoice is None:
            raise NotFound("There is no such invoice.")
        return await _record(change, invoice.organization_id, body, (invoice_id,))

    return await request.change(effect)


@router.get("/payments")
async def list_payments(asked: Annotated[AskedPayments, Query()], request: Operator) -> ListOf[PaymentAnswer]:
    """Payments, newest first."""
    async with request.reading() as connection:
        page = asked.page(newest_first=True)
        found, more = await stored.list_payments(connection, asked.organization_id, page)
    return list_of([PaymentAnswer.of(each) for each in found], more)


@router.get("/payments/{payment_id}")
async def get_payment(payment_id: UUID, request: Operator) -> PaymentAnswer:
    """One payment."""
    async with request.reading() as connection:
        found = await stored.find_payment(connection, payment_id)
    if found is None:
        raise NotFound("There is no such payment.")
    return PaymentAnswer.of(found)


@router.post("/payments/{payment_id}/allocations", response_model=PaymentAnswer)
async def allocate_payment(payment_id: UUID, body: NewAllocation, request: Operator) -> Response:
    """Set what is still credit of a payment against an open invoice."""

    async def effect(change: Change) -> PaymentAnswer:
        currency = await _currency(change, payment_id)
        amount = None if body.amount is None else body.amount.units(currency, "amount")
        key = change.retry_key or str(uuid4())
        paid = await payments.allocate(change.connection, payment_id, body.invoice_id, amount, key, change.now)
        return await _done(change, "payment.allocated", paid, body)

    return await request.change(effect)


@router.post("/payments/{payment_id}/refunds", response_model=PaymentAnswer)
async def refund_payment(payment_id: UUID, body: NewRefund, request: Operator) -> Response:
    """Record that a part of a payment went back: out of what is still credit, or of what paid invoices."""

    async def effect(change: Change) -> PaymentAnswer:
        amount = body.amount.units(await _currency(change, payment_id), "amount")
        key = change.retry_key or str(uuid4())
        paid = await payments.refund(
            change.connection, payment_id, amount, key, change.now, reopens=body.reopens_invoices
        )
        return await _done(change, "payment.refunded", paid, body)

    return await request.change(effect)


async def _record(
    change: Change, organization_id: UUID, body: InvoicePayment, invoice_ids: tuple[UUID, ...] | None
) -> PaymentAnswer:
    organization = await found_organization(change.connection, organization_id)
    new = payments.NewPayment(
        provider=body.provider,
        reference=body.reference,
        amount=body.amount.units(organization.currency, "amount"),
        currency=organization.currency,
        received_at=body.received_at or change.now,
        invoice_ids=invoice_ids,
    )
    recorded = await payments.record_payment(change.connection, organization_id, new, change.now)
    if not recorded.is_new:
        raise Conflict(
            f"A payment with this reference was recorded before: {recorded.payment.id}. If this is another one, give it"
            " a reference of its own."
        )
    return await _done(change, "payment.recorded", recorded.payment, body)


async def _done(change: Change, action: str, paid: Payment, body: Body) -> PaymentAnswer:
    asked = body.model_dump(mode="json", exclude_unset=True, exclude={"organization_id"})
    await change.audit(action, f"payment:{paid.id}", paid.organization_id, **asked)
    change.project(paid.organization_id)
    return PaymentAnswer.of(paid)


async def _currency(change: Change, payment_id: UUID) -> str:
    found = await stored.find_payment(change.connection, payment_id)
    if found is None:
        raise NotFound("There is no such payment.")
    return found.currency
