"""Alerts in Postgres, who receives them, and the outbox of those that are not delivered yet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, any_, cast, insert, literal, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.alert import Alert, AlertKind
from models.ids import uuid7
from models.money import Units
from models.tables import alert, alert_delivery, alert_endpoint, credit_grant, organization, organization_balance

_BATCH = 500
"""Rows of one kind that one look takes: the others are seen by the next."""


async def give_alert(connection: AsyncConnection, given: Alert, now: datetime) -> UUID | None:
    """Note an alert and put it into the outbox of everyone who receives it; None where it was given before."""
    statement = upsert(alert).values(
        id=uuid7(now),
        kind=given.kind.value,
        organization_id=given.organization_id,
        subject=given.subject,
        detail=given.detail,
        created_at=now,
    )
    row = await fetch_optional(connection, statement.on_conflict_do_nothing().returning(alert.c.id))
    if row is None:
        return None
    is_for: ColumnElement[bool] = alert_endpoint.c.organization_id.is_(None)
    if given.organization_id is not None:
        is_for = or_(is_for, alert_endpoint.c.organization_id == given.organization_id)
    receivers = select(literal(row.id), alert_endpoint.c.id, literal(now)).where(
        is_for, alert_endpoint.c.removed_at.is_(None), literal(given.kind.value) == any_(alert_endpoint.c.kinds)
    )
    await connection.execute(insert(alert_delivery).from_select(["alert_id", "endpoint_id", "next_at"], receivers))
    return UUID(str(row.id))


async def list_alerts(
    connection: AsyncConnection, page: Page, organization_id: UUID | None = None, kind: AlertKind | None = None
) -> tuple[list[AnyRow], bool]:
    """A page of alerts: of an organization, or of everybody and the operator's own."""
    statement = select(alert)
    if organization_id is not None:
        statement = statement.where(alert.c.organization_id == organization_id)
    if kind is not None:
        statement = statement.where(alert.c.kind == kind.value)
    return await fetch_page(connection, statement, alert.c.id, page)


async def deliveries_of(connection: AsyncConnection, alert_ids: Collection[UUID]) -> dict[UUID, list[AnyRow]]:
    """By alert: how it fared with each of its receivers."""
    found: dict[UUID, list[AnyRow]] = {}
    statement = select(alert_delivery).where(alert_delivery.c.alert_id.in_(alert_ids))
    for row in await connection.execute(statement.order_by(alert_delivery.c.endpoint_id)):
        found.setdefault(row.alert_id, []).append(row)
    return found


# Receivers -----------------------------------------------------------------------------------------------------------


async def create_endpoint(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> AnyRow:
    """Store a receiver; `values` are columns."""
    statement = insert(alert_endpoint).values(id=uuid7(now), created_at=now, **values)
    return await fetch_one(connection, statement.returning(alert_endpoint))


async def find_endpoint(connection: AsyncConnection, endpoint_id: UUID) -> AnyRow | None:
    """A receiver, removed or not."""
    return await fetch_optional(connection, select(alert_endpoint).where(alert_endpoint.c.id == endpoint_id))


async def list_endpoints(
    connection: AsyncConnection, page: Page, organization_id: UUID | None = None
) -> tuple[list[AnyRow], bool]:
    """A page of receivers, oldest first, with those that were removed."""
    statement = select(alert_endpoint)
    if organization_id is not None:
        statement = statement.where(alert_endpoint.c.organization_id == organization_id)
    return await fetch_page(connection, statement, alert_endpoint.c.id, page)


async def remove_endpoint(connection: AsyncConnection, endpoint_id: UUID, now: datetime) -> AnyRow:
    """End a receiver: it gets nothing any more, also not what waits for it."""
    await connection.execute(
        update(alert_delivery)
        .where(alert_delivery.c.endpoint_id == endpoint_id, alert_delivery.c.next_at.is_not(None))
        .values(next_at=None, last_error="The endpoint was removed.")
    )
    statement = update(alert_endpoint).where(alert_endpoint.c.id == endpoint_id).values(removed_at=now)
    return await fetch_one(connection, statement.returning(alert_endpoint))


# The outbox ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivery:
    """An alert on its way to one receiver; `attempts` counts the one that is being made."""

    alert_id: UUID
    endpoint_id: UUID
    url: str
    sealed_secret: str
    attempts: int
    created_at: datetime
    kind: str
    organization_id: UUID | None
    detail: dict[str, Any]


async def lease_deliveries(
    connection: AsyncConnection, now: datetime, leased_until: datetime, limit: int
) -> list[Delivery]:
    """Take deliveries that are due, the longest due first. One whose worker dies is due again when its lease ends."""
    due = (
        select(alert_delivery.c.alert_id, alert_delivery.c.endpoint_id)
        .where(alert_delivery.c.next_at <= now)
        .order_by(alert_delivery.c.next_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    rows = await connection.execute(
        update(alert_delivery)
        .where(
            alert_delivery.c.alert_id == due.c.alert_id,
            alert_delivery.c.endpoint_id == due.c.endpoint_id,
            alert.c.id == alert_delivery.c.alert_id,
            alert_endpoint.c.id == alert_delivery.c.endpoint_id,
        )
        .values(attempts=alert_delivery.c.attempts + 1, next_at=leased_until)
        .returning(
            alert_delivery.c.alert_id,
            alert_delivery.c.endpoint_id,
            alert_delivery.c.attempts,
            alert_endpoint.c.url,
            alert_endpoint.c.sealed_secret,
            alert.c.created_at,
            alert.c.kind,
            alert.c.organization_id,
            alert.c.detail,
        )
    )
    return [Delivery(**row._mapping) for row in rows]


async def mark_delivery(
    connection: AsyncConnection,
    delivery: Delivery,
    *,
    delivered_at: datetime | None,
    next_at: datetime | None,
    status: int | None,
    error: str | None,
) -> None:
    """Note how an attempt went; without `delivered_at` and `next_at` it was the last one."""
    await connection.execute(
        update(alert_delivery)
        .where(
            alert_delivery.c.alert_id == delivery.alert_id,
            alert_delivery.c.endpoint_id == delivery.endpoint_id,
            # Not what happened meanwhile: another worker had it after the lease, or the endpoint was removed.
            alert_delivery.c.attempts == delivery.attempts,
            alert_delivery.c.next_at.is_not(None),
        )
        .values(delivered_at=delivered_at, next_at=next_at, last_status=status, last_error=error)
    )


# What there may be to tell -------------------------------------------------------------------------------------------


async def told(connection: AsyncConnection, kind: AlertKind, subjects: Collection[str]) -> set[str]:
    """Those of these subjects of which an alert is in force."""
    statement = select(alert.c.subject).where(
        alert.c.kind == kind.value, alert.c.subject.in_(subjects), alert.c.ended_at.is_(None)
    )
    return set((await connection.execute(statement)).scalars())


@dataclass(frozen=True, slots=True)
class LowBalance:
    """An organization whose booked balance is below what it wants to be told of."""

    organization_id: UUID
    currency: str
    balance: Units
    threshold: Units


async def low_balances(connection: AsyncConnection) -> list[LowBalance]:
    """Balances that are below their threshold, and of which nobody was told since they were above it."""
    rows = await connection.execute(
        select(
            organization.c.id,
            organization.c.currency,
            organization_balance.c.posted,
            organization.c.low_balance,
        )
        .join(organization_balance, organization_balance.c.organization_id == organization.c.id)
        .where(
            organization.c.low_balance.is_not(None),
            organization_balance.c.posted < organization.c.low_balance,
            organization.c.closed_at.is_(None),
            ~_open_low_balance(),
        )
        .limit(_BATCH)
    )
    return [LowBalance(row.id, row.currency, Units(int(row.posted)), Units(int(row.low_balance))) for row in rows]


async def end_low_balances(connection: AsyncConnection, now: datetime) -> None:
    """End the alerts of balances that are no longer low, so that the next fall is told of again."""
    is_low = (
        select(organization.c.id)
        .join(organization_balance, organization_balance.c.organization_id == organization.c.id)
        .where(organization.c.id == alert.c.organization_id, organization_balance.c.posted < organization.c.low_balance)
        .exists()
    )
    await connection.execute(
        update(alert)
        .where(alert.c.kind == AlertKind.BALANCE_LOW.value, alert.c.ended_at.is_(None), ~is_low)
        .values(ended_at=now)
    )


async def expiring_grants(connection: AsyncConnection, now: datetime, until: datetime) -> list[Row[Any]]:
    """Grants with money left that expire soon, and of which nobody was told."""
    is_told = (
        select(null())
        .where(
            alert.c.kind == AlertKind.GRANT_EXPIRING.value,
            alert.c.subject == cast(credit_grant.c.id, alert.c.subject.type),
            alert.c.ended_at.is_(None),
        )
        .exists()
    )
    rows = await connection.execute(
        select(credit_grant)
        .where(
            credit_grant.c.remaining > 0,
            credit_grant.c.voided_at.is_(None),
            credit_grant.c.expires_at > now,
            credit_grant.c.expires_at <= until,
            ~is_told,
        )
        .limit(_BATCH)
    )
    return list(rows)


async def take_emptied_grants(connection: AsyncConnection, now: datetime) -> list[Row[Any]]:
    """Note which grants have nothing left that had something at the last look; each is in one answer only."""
    emptied = (
        select(credit_grant.c.id)
        .where(credit_grant.c.remaining == 0, credit_grant.c.emptied_at.is_(None))
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
        .cte("emptied")
    )
    statement = update(credit_grant).where(credit_grant.c.id == emptied.c.id).values(emptied_at=now)
    return list(await connection.execute(statement.returning(credit_grant)))


def _open_low_balance() -> ColumnElement[bool]:
    return (
        select(null())
        .where(
            alert.c.kind == AlertKind.BALANCE_LOW.value,
            alert.c.organization_id == organization.c.id,
            alert.c.ended_at.is_(None),
        )
        .exists()
    )
