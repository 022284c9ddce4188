"""Looks over limits, balances and grants, and tells what should be told: each once, in the transaction that saw it."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.alerting import reached, suggested_top_up
from billing.months import bounds_of, month_of
from billing.store import alerts as stored
from billing.store.alerts import give_alert
from billing.store.spend_alerts import StoredAlert, alerts_of_shard, shards_with_alerts
from billing.store.spend_limits import StoredLimit, booked_in, limits_of_shard, shards_with_limits
from models.alert import Alert, AlertKind
from models.money import money
from models.payment import PaymentEvent

EXPIRES_SOON: Final = timedelta(days=7)

_LATE_BOOKING: Final = timedelta(hours=1)
"""For this long into a month the last one is looked at, too: its last calls are booked in it."""


async def notice(engine: AsyncEngine, now: datetime) -> int:
    """Look over everything once; how many alerts were given. Any number of workers may do so at a time."""
    given = await _notice_balances(engine, now) + await _notice_grants(engine, now)
    async with engine.connect() as connection:
        limited, alerted = await shards_with_limits(connection), await shards_with_alerts(connection)
    for shard in limited:
        given += await _notice_limits(engine, shard, now)
    for shard in alerted:
        given += await _notice_spend_alerts(engine, shard, now)
    return given


async def tell_of_payment(
    connection: AsyncConnection, event: PaymentEvent, row_id: UUID, reason: str, now: datetime
) -> None:
    """Tell the operator that a payment was not booked."""
    detail = {
        "webhook_event_id": str(row_id),
        "provider": event.provider,
        "reference": event.reference,
        "type": event.type,
        "reason": reason,
    }
    await give_alert(connection, Alert(AlertKind.PAYMENT_UNBOOKED, None, str(row_id), detail), now)


async def _notice_balances(engine: AsyncEngine, now: datetime) -> int:
    async with engine.begin() as connection:
        await stored.end_low_balances(connection, now)
        given = 0
        for low in await stored.low_balances(connection):
            detail = {
                "balance": money(low.balance, low.currency),
                "threshold": money(low.threshold, low.currency),
                "suggested_top_up": money(suggested_top_up(low.balance, low.threshold, low.currency), low.currency),
            }
            given += await _give(
                connection, AlertKind.BALANCE_LOW, low.organization_id, str(low.organization_id), detail, now
            )
        return given


async def _notice_grants(engine: AsyncEngine, now: datetime) -> int:
    given = 0
    async with engine.begin() as connection:
        for row in await stored.expiring_grants(connection, now, now + EXPIRES_SOON):
            detail = _grant(row) | {"expires_at": row.expires_at.isoformat()}
            given += await _give(connection, AlertKind.GRANT_EXPIRING, row.organization_id, str(row.id), detail, now)
        for row in await stored.take_emptied_grants(connection, now):
            # One that was voided or has expired was not used up: it was taken.
            if row.voided_at is None and (row.expires_at is None or row.expires_at > now):
                given += await _give(
                    connection, AlertKind.GRANT_USED_UP, row.organization_id, str(row.id), _grant(row), now
                )
    return given


async def _notice_limits(engine: AsyncEngine, shard: int, now: datetime) -> int:
    given = 0
    async with engine.begin() as connection:
        for limit in await limits_of_shard(connection, shard):
            for month in {month_of(moment, limit.timezone) for moment in (now, now - _LATE_BOOKING)}:
                # A limit is nobody's before it was set.
                if limit.alert_percents and limit.created_at < bounds_of(month, limit.timezone)[1]:
                    given += await _notice_limit(connection, limit, month, now)
    return given


async def _notice_spend_alerts(engine: AsyncEngine, shard: int, now: datetime) -> int:
    given = 0
    async with engine.begin() as connection:
        for alert in await alerts_of_shard(connection, shard):
            for month in {month_of(moment, alert.timezone) for moment in (now, now - _LATE_BOOKING)}:
                if alert.created_at < bounds_of(month, alert.timezone)[1]:
                    given += await _notice_spend_alert(connection, alert, month, now)
    return given


async def _notice_spend_alert(connection: AsyncConnection, alert: StoredAlert, month: date, now: datetime) -> int:
    # With the amount: one that was raised is told of again.
    subject = f"{alert.id}:{month:%Y-%m}:{alert.amount}"
    if await stored.told(connection, AlertKind.SPEND_ALERT_REACHED, [subject]):
        return 0
    spent = await booked_in(connection, alert, month)
    if not reached(alert.amount, spent, (100,)):
        return 0
    detail = {
        "spend_alert_id": str(alert.id),
        "project_id": None if alert.project_id is None else str(alert.project_id),
        "month": f"{month:%Y-%m}",
        "amount": money(alert.amount, alert.currency),
        "spent": money(spent, alert.currency),
        "recipients": list(alert.recipients),
        "subject_prefix": alert.subject_prefix,
    }
    return await _give(connection, AlertKind.SPEND_ALERT_REACHED, alert.organization_id, subject, detail, now)


async def _notice_limit(connection: AsyncConnection, limit: StoredLimit, month: date, now: datetime) -> int:
    subjects = {percent: f"{limit.id}:{month:%Y-%m}:{percent}" for percent in limit.alert_percents}
    told = await stored.told(connection, AlertKind.SPEND_LIMIT_REACHED, subjects.values())
    waiting = [percent for percent, subject in subjects.items() if subject not in told]
    if not waiting:
        return 0
    spent = await booked_in(connection, limit, month)
    given = 0
    for percent in reached(limit.amount, spent, waiting):
        detail = {
            "spend_limit_id": str(limit.id),
            "project_id": None if limit.project_id is None else str(limit.project_id),
            "api_key_id": None if limit.api_key_id is None else str(limit.api_key_id),
            "month": f"{month:%Y-%m}",
            "percent": percent,
            "amount": money(limit.amount, limit.currency),
            "spent": money(spent, limit.currency),
            "is_hard": limit.is_hard,
        }
        given += await _give(
            connection, AlertKind.SPEND_LIMIT_REACHED, limit.organization_id, subjects[percent], detail, now
        )
    return given


async def _give(
    connection: AsyncConnection,
    kind: AlertKind,
    organization_id: UUID,
    subject: str,
    detail: dict[str, Any],
    now: datetime,
) -> int:
    return (await give_alert(connection, Alert(kind, organization_id, subject, detail), now)) is not None


def _grant(row: Any) -> dict[str, Any]:
    return {
        "credit_grant_id": str(row.id),
        "kind": row.kind,
        "amount": money(int(row.amount), row.currency),
        "remaining": money(int(row.remaining), row.currency),
    }
