"""Events of payment providers in Postgres: each is taken once, and what could not be booked waits for a person."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.payment import PaymentEvent, PaymentEventState, PaymentKind
from models.tables import organization, webhook_event


async def lock_payment(connection: AsyncConnection, event: PaymentEvent) -> None:
    """Take one event of a payment at a time, whichever it is: each sees what the one before has done."""
    name = hashlib.sha256(f"payment\0{event.provider}\0{event.reference}".encode()).digest()
    await connection.execute(select(func.pg_advisory_xact_lock(int.from_bytes(name[:8], signed=True))))


async def add_event(connection: AsyncConnection, event: PaymentEvent, now: datetime) -> UUID | None:
    """Take an event, not booked yet; None where it was taken before.

    Of two transactions with one event the second waits for the first, so that it is booked in one of them.
    """
    payload: dict[str, Any] = {
        "type": event.type,
        "at": event.at.isoformat(),
        "organization_id": None if event.organization_id is None else str(event.organization_id),
        "invoice_id": None if event.invoice_id is None else str(event.invoice_id),
    }
    statement = upsert(webhook_event).values(
        id=uuid7(now),
        provider=event.provider,
        event_id=event.event_id,
        received_at=now,
        kind=event.kind.value,
        digest=event.digest,
        state=PaymentEventState.UNBOOKED.value,
        reference=event.reference,
        amount_minor=event.amount_minor,
        currency=event.currency,
        payload=payload,
    )
    row = await fetch_optional(connection, statement.on_conflict_do_nothing().returning(webhook_event.c.id))
    return None if row is None else UUID(str(row.id))


async def find_event(connection: AsyncConnection, provider: str, event_id: str) -> AnyRow:
    """An event that was taken."""
    is_it = (webhook_event.c.provider == provider, webhook_event.c.event_id == event_id)
    return await fetch_one(connection, select(webhook_event).where(*is_it))


async def mark_event(
    connection: AsyncConnection,
    event_id: UUID,
    state: PaymentEventState,
    reason: str | None,
    organization_id: UUID | None,
) -> None:
    """Note what became of an event. An organization that does not exist is left out."""
    known = select(organization.c.id).where(organization.c.id == organization_id).scalar_subquery()
    await connection.execute(
        update(webhook_event)
        .where(webhook_event.c.id == event_id)
        .values(state=state.value, reason=reason, organization_id=known)
    )


async def mark_told(connection: AsyncConnection, event: PaymentEvent) -> None:
    """Earlier events that could not be booked told of the same payment: nobody need look at them any more."""
    is_told = [
        webhook_event.c.provider == event.provider,
        webhook_event.c.reference == event.reference,
        webhook_event.c.kind == event.kind.value,
        webhook_event.c.state == PaymentEventState.UNBOOKED.value,
        webhook_event.c.event_id != event.event_id,
    ]
    if event.kind is PaymentKind.REFUNDED:
        # Refunds tell sums: one that came late and is smaller has not told of the rest.
        is_told += [webhook_event.c.amount_minor <= event.amount_minor, webhook_event.c.currency == event.currency]
    await connection.execute(
        update(webhook_event)
        .where(*is_told)
        .values(state=PaymentEventState.REPEATED.value, reason=f"Booked with the event {event.event_id}.")
    )


async def booked_payment(connection: AsyncConnection, provider: str, reference: str) -> AnyRow | None:
    """The event with which a payment was booked."""
    return await fetch_optional(
        connection,
        select(webhook_event)
        .where(
            webhook_event.c.provider == provider,
            webhook_event.c.reference == reference,
            webhook_event.c.kind == PaymentKind.SUCCEEDED.value,
            webhook_event.c.state == PaymentEventState.BOOKED.value,
        )
        .order_by(webhook_event.c.id)
        .limit(1),
    )


async def list_events(
    connection: AsyncConnection, page: Page, state: PaymentEventState | None = None, organization_id: UUID | None = None
) -> tuple[list[AnyRow], bool]:
    """A page of events, with or without those that were booked."""
    statement = select(webhook_event)
    if state is not None:
        statement = statement.where(webhook_event.c.state == state.value)
    if organization_id is not None:
        statement = statement.where(webhook_event.c.organization_id == organization_id)
    return await fetch_page(connection, statement, webhook_event.c.id, page)
