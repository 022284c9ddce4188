"""Payments that a provider tells of: each event is taken once, in the transaction that books what it tells.

What cannot be booked is kept with its reason, for a person; telling it again could not help.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.notices import tell_of_payment
from billing.payments import NewPayment, lock, record_payment, refund
from billing.store import webhook_events as stored
from billing.store.audit import write_audit
from billing.store.organizations import find_organization
from billing.store.pages import AnyRow
from billing.store.payments import find_reference
from models.errors import Conflict, InvalidRequest, NotFound
from models.money import CURRENCIES, Units, units_of_minor
from models.payment import PaymentEvent, PaymentEventState, PaymentKind


class Unbookable(Exception):
    """The event cannot be booked, however often it is told; the message says why, and what a person can do."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an event; `changed` is the organization whose balance it moved."""

    id: UUID
    state: PaymentEventState
    changed: UUID | None = None


async def take_event(engine: AsyncEngine, event: PaymentEvent, now: datetime) -> Taken:
    """Take an event of a provider and book what it tells, in one transaction.

    An event that was taken before changes nothing. Raises `Conflict` for another event under the id of one that was
    taken, and SQLAlchemy's errors where Postgres cannot answer; then nothing was changed.
    """
    async with engine.begin() as connection:
        await stored.lock_payment(connection, event)
        row_id = await stored.add_event(connection, event, now)
        if row_id is None:
            return _taken_before(await stored.find_event(connection, event.provider, event.event_id), event)
        organization_id, reason = event.organization_id, None
        try:
            # What was written for a booking that turns out to be impossible is undone; that the event came is kept.
            async with connection.begin_nested():
                state, organization_id, reason = await _book(connection, event, now)
        except (Unbookable, InvalidRequest, NotFound, Conflict) as error:
            state, reason = PaymentEventState.UNBOOKED, str(error)
            await tell_of_payment(connection, event, row_id, reason, now)
        await stored.mark_event(connection, row_id, state, reason, organization_id)
        if state is not PaymentEventState.BOOKED:
            return Taken(row_id, state)
        await stored.mark_told(connection, event)
        await write_audit(
            connection,
            now=now,
            actor=f"webhook:{event.provider}",
            action=f"payment.{event.kind}",
            object=f"payment:{event.provider}:{event.reference}",
            organization_id=organization_id,
            detail={"event_id": event.event_id, "amount_minor": event.amount_minor, "currency": event.currency},
        )
        return Taken(row_id, state, organization_id)


def _taken_before(row: AnyRow, event: PaymentEvent) -> Taken:
    if not hmac.compare_digest(row.digest, event.digest):
        raise Conflict("An event of this id was taken before, and was another one. Nothing was changed.")
    return Taken(row.id, PaymentEventState(row.state))


async def _book(
    connection: AsyncConnection, event: PaymentEvent, now: datetime
) -> tuple[PaymentEventState, UUID | None, str | None]:
    """Book an event: its state, its organization, and why it changed nothing where it did not."""
    earlier = await stored.booked_payment(connection, event.provider, event.reference)
    match event.kind:
        case PaymentKind.SUCCEEDED:
            if earlier is not None:
                # The provider tells of one payment by more than one event.
                return PaymentEventState.REPEATED, earlier.organization_id, f"Booked with the event {earlier.event_id}."
            organization_id, units = await _paid(connection, event)
            await book_payment(connection, event, organization_id, units, now)
            return PaymentEventState.BOOKED, organization_id, None
        case PaymentKind.REFUNDED:
            if earlier is None:
                raise Unbookable("The payment that is refunded was never booked. Book both by hand, or neither.")
            found = await _refunded(connection, event, earlier)
            if found is None:
                return PaymentEventState.REPEATED, earlier.organization_id, "All of it is booked already."
            await refund(connection, *found, event.event_id, now)
            return PaymentEventState.BOOKED, earlier.organization_id, None
        case PaymentKind.DISPUTED:
            raise Unbookable("A payment is disputed. Answer the provider; if the money is lost, refund it by hand.")
        case _:
            assert_never(event.kind)


async def _paid(connection: AsyncConnection, event: PaymentEvent) -> tuple[UUID, Units]:
    """Who paid how much, or `Unbookable`."""
    if event.organization_id is None:
        raise Unbookable("The payment names no organization. Put its id into metadata.organization_id.")
    row = await find_organization(connection, event.organization_id)
    if row is None:
        raise Unbookable("The payment names an organization that does not exist. Refund it, or book it by hand.")
    if row.closed_at is not None:
        raise Unbookable("The organization is closed. Refund the payment at the provider.")
    return row.id, _units(event, row.currency)


async def _refunded(connection: AsyncConnection, event: PaymentEvent, booked: AnyRow) -> tuple[UUID, Units] | None:
    """The payment of a refund, and how much more is refunded than was booked; None for nothing; or `Unbookable`."""
    units = _units(event, booked.currency)
    assert event.amount_minor is not None, "it was counted in units"
    if event.amount_minor > booked.amount_minor:
        raise Unbookable("More is refunded than was paid. Look at the payment at the provider.")
    # A person may book the same refund by hand, before or after it is told: what is booked is read under the lock.
    await lock(connection, booked.organization_id)
    payment = await find_reference(connection, event.provider, event.reference)
    if payment is None:
        raise Unbookable("The payment that is refunded was never recorded. Book both by hand, or neither.")
    return (payment.id, Units(units - payment.refunded)) if units > payment.refunded else None


def _units(event: PaymentEvent, currency: str) -> Units:
    if event.currency is None or event.amount_minor is None:
        raise Unbookable("The event names no amount, or no currency. Look at the payment at the provider.")
    if event.currency not in CURRENCIES or event.currency != currency:
        raise Unbookable(
            f"The payment is in {event.currency}, the organization's currency is {currency}. Refund it at the provider."
        )
    if event.amount_minor == 0:
        raise Unbookable("The amount is zero: there is nothing to book.")
    return units_of_minor(event.amount_minor, event.currency)


# The ledger's side: swapped when payments are set against invoices first ----------------------------------------------


async def book_payment(
    connection: AsyncConnection, event: PaymentEvent, organization_id: UUID, units: Units, now: datetime
) -> None:
    """Book a payment: set against the invoice it names, else against what is due first; the rest becomes credit."""
    named = None if event.invoice_id is None else (event.invoice_id,)
    new = NewPayment(event.provider, event.reference, units, str(event.currency), min(event.at, now), named)
    try:
        async with connection.begin_nested():
            await record_payment(connection, organization_id, new, now)
    except InvalidRequest as error:
        if error.param != "invoice_ids":
            raise
        # The invoice is not open, or another's: the money has come in all the same.
        await record_payment(connection, organization_id, replace(new, invoice_ids=None), now)
