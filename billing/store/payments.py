"""Payments in Postgres, what of them is set against which invoice, and what is owed of all invoices on a day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.receivables import Entry, EntryKind, OpenItem
from billing.store.pages import AnyRow, Page, fetch_optional, fetch_page
from models.invoice import Allocation, InvoiceKind, InvoiceState, Payment
from models.money import Units
from models.tables import allocation, invoice, payment, posting


async def find_payment(
    connection: AsyncConnection, payment_id: UUID, organization_id: UUID | None = None
) -> Payment | None:
    """A payment with what it paid; with `organization_id` only one of that organization."""
    statement = select(payment).where(payment.c.id == payment_id)
    if organization_id is not None:
        statement = statement.where(payment.c.organization_id == organization_id)
    return await _one(connection, statement)


async def find_reference(connection: AsyncConnection, provider: str, reference: str) -> Payment | None:
    """The payment that a provider knows by this reference."""
    return await _one(
        connection, select(payment).where(payment.c.provider == provider, payment.c.reference == reference)
    )


async def list_payments(
    connection: AsyncConnection, organization_id: UUID | None, page: Page
) -> tuple[list[Payment], bool]:
    """A page of payments with what they paid, in the order of their recording; and whether more follow."""
    statement = select(payment)
    if organization_id is not None:
        statement = statement.where(payment.c.organization_id == organization_id)
    rows, more = await fetch_page(connection, statement, payment.c.id, page)
    return await _with_allocations(connection, rows), more


async def allocations_of(connection: AsyncConnection, invoice_id: UUID) -> list[Allocation]:
    """What was set against an invoice, in the order in which it was."""
    rows = await connection.execute(
        select(allocation).where(allocation.c.invoice_id == invoice_id).order_by(allocation.c.id)
    )
    return [_allocation(row) for row in rows]


async def add_payment(connection: AsyncConnection, paid: Payment) -> None:
    """Store a payment; its allocations are added apart."""
    await connection.execute(
        insert(payment).values(
            id=paid.id,
            organization_id=paid.organization_id,
            provider=paid.provider,
            reference=paid.reference,
            amount=paid.amount,
            currency=paid.currency,
            received_at=paid.received_at,
            refunded=paid.refunded,
            grant_id=paid.grant_id,
            posting_id=paid.posting_id,
            created_at=paid.created_at,
        )
    )


async def add_allocations(connection: AsyncConnection, allocated: Sequence[Allocation], posting_id: int) -> None:
    """Note what was set against invoices by a posting, or taken back from them."""
    if allocated:
        await connection.execute(
            insert(allocation),
            [
                {
                    "invoice_id": each.invoice_id,
                    "payment_id": each.payment_id,
                    "credit_note_id": each.credit_note_id,
                    "amount": each.amount,
                    "posting_id": posting_id,
                    "created_at": each.created_at,
                }
                for each in allocated
            ],
        )


async def note_refund(connection: AsyncConnection, payment_id: UUID, amount: Units) -> None:
    """Note that an amount went back to who paid."""
    await connection.execute(
        update(payment).where(payment.c.id == payment_id).values(refunded=payment.c.refunded + amount)
    )


async def refund_grants(connection: AsyncConnection, invoice_ids: Sequence[UUID]) -> list[UUID]:
    """The grants that credit notes of these invoices gave, because the invoices had been paid; the latest first."""
    rows = await connection.execute(
        select(posting.c.source["grant_id"].astext)
        .join(invoice, invoice.c.posting_id == posting.c.id)
        .where(
            invoice.c.kind == InvoiceKind.CREDIT_NOTE,
            invoice.c.corrects.in_(invoice_ids),
            posting.c.source["grant_id"].astext.is_not(None),
        )
        .order_by(posting.c.id.desc())
    )
    return [UUID(grant_id) for grant_id in rows.scalars()]


# What is owed --------------------------------------------------------------------------------------------------------


async def open_items(connection: AsyncConnection, today: date, organization_id: UUID | None = None) -> list[OpenItem]:
    """The invoices of which something was owed at the end of a day (UTC), the earliest due first."""
    until = datetime.combine(today + timedelta(days=1), time(), UTC)
    settled = (
        select(func.coalesce(func.sum(allocation.c.amount), 0))
        .where(allocation.c.invoice_id == invoice.c.id, allocation.c.created_at < until)
        .scalar_subquery()
    )
    over = invoice.c.state.in_((InvoiceState.VOID, InvoiceState.UNCOLLECTIBLE)) & (invoice.c.closed_at < until)
    owed = (invoice.c.total - settled).label("owed")
    statement = select(invoice, owed).where(
        invoice.c.kind == InvoiceKind.INVOICE,
        invoice.c.state != InvoiceState.DRAFT,
        invoice.c.finalized_at < until,
        ~over,
        owed > 0,
    )
    if organization_id is not None:
        statement = statement.where(invoice.c.organization_id == organization_id)
    rows = await connection.execute(statement.order_by(invoice.c.due_on, invoice.c.id))
    return [
        OpenItem(
            row.organization_id,
            row.currency,
            row.id,
            f"{row.series}-{row.number:06d}",
            row.issued_on,
            row.due_on,
            Units(int(row.owed)),
        )
        for row in rows
    ]


async def account_entries(connection: AsyncConnection, organization_id: UUID) -> list[Entry]:
    """Everything that ever changed what an organization owes of its invoices, in the order in which it did."""
    issued = await connection.execute(
        select(invoice).where(
            invoice.c.organization_id == organization_id,
            invoice.c.kind == InvoiceKind.INVOICE,
            invoice.c.state != InvoiceState.DRAFT,
        )
    )
    entries: list[tuple[datetime, Entry]] = []
    for row in issued:
        number, total = f"{row.series}-{row.number:06d}", Units(int(row.total))
        entries.append((row.finalized_at, _entry(row.finalized_at, EntryKind.INVOICE, number, total)))
        if row.state in (InvoiceState.VOID, InvoiceState.UNCOLLECTIBLE):
            kind = EntryKind.VOID if row.state == InvoiceState.VOID else EntryKind.WRITE_OFF
            left = Units(int(row.settled) - total)
            entries.append((row.closed_at, _entry(row.closed_at, kind, number, left)))
    note = invoice.alias("note")
    moved = await connection.execute(
        select(allocation, payment.c.reference, note.c.series, note.c.number)
        .join(invoice, invoice.c.id == allocation.c.invoice_id)
        .outerjoin(payment, payment.c.id == allocation.c.payment_id)
        .outerjoin(note, note.c.id == allocation.c.credit_note_id)
        .where(invoice.c.organization_id == organization_id)
    )
    for row in moved:
        kind = EntryKind.PAYMENT if row.amount > 0 else EntryKind.REFUND
        if row.credit_note_id is not None:
            kind = EntryKind.CREDIT_NOTE
        reference = row.reference or f"{row.series}-{row.number:06d}"
        entries.append((row.created_at, _entry(row.created_at, kind, reference, Units(-int(row.amount)))))
    return [entry for _, entry in sorted(entries, key=lambda each: each[0])]


def _entry(moment: datetime, kind: EntryKind, reference: str, amount: Units) -> Entry:
    return Entry(moment.astimezone(UTC).date(), kind, reference, amount)


async def _one(connection: AsyncConnection, statement: Select[Any]) -> Payment | None:
    row = await fetch_optional(connection, statement)
    return None if row is None else (await _with_allocations(connection, [row]))[0]


async def _with_allocations(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[Payment]:
    allocated: dict[UUID, list[Allocation]] = {row.id: [] for row in rows}
    if allocated:
        found = await connection.execute(
            select(allocation).where(allocation.c.payment_id.in_(allocated)).order_by(allocation.c.id)
        )
        for row in found:
            allocated[row.payment_id].append(_allocation(row))
    return [
        Payment(
            id=row.id,
            organization_id=row.organization_id,
            provider=row.provider,
            reference=row.reference,
            amount=Units(int(row.amount)),
            currency=row.currency,
            received_at=row.received_at,
            refunded=Units(int(row.refunded)),
            grant_id=row.grant_id,
            posting_id=row.posting_id,
            created_at=row.created_at,
            allocations=tuple(allocated[row.id]),
        )
        for row in rows
    ]


def _allocation(row: Any) -> Allocation:
    return Allocation(row.invoice_id, Units(int(row.amount)), row.created_at, row.payment_id, row.credit_note_id)
