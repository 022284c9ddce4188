"""Free allowances: what a price book gives its organizations each month, granted as credit that ends with it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.store import HotStore
from billing.projection import project_balance
from billing.settlement import grant_credit
from billing.store.allowances import Due, due_allowances, timezones_with_allowances
from models.errors import InvalidRequest, NotFound, Unavailable
from models.ledger import GrantKind

_log = structlog.get_logger("tollgate.allowances")

_PAGE: Final = 100
_MOST_AT_ONCE: Final = 500
PRIORITY: Final = 50
"""That of any grant: what expires first is spent first, so an allowance goes before money that keeps."""


async def grant_allowances(engine: AsyncEngine, hot: HotStore, now: datetime) -> list[Due]:
    """Grant what is due in the present month of each organization's time zone; what was granted, some hundred at most.

    Each is a promo grant that begins now and expires at the end of the month. However often and by however many
    workers it is run, a month is granted once: the grant's key names organization, allowance and month.
    """
    async with engine.connect() as connection:
        names = await timezones_with_allowances(connection)
    months = {name: f"{now.astimezone(zone):%Y-%m}" for name in names if (zone := _zone(name)) is not None}
    granted: list[Due] = []
    last: Due | None = None
    while months and len(granted) < _MOST_AT_ONCE:
        async with engine.connect() as connection:
            due = await due_allowances(connection, months, _PAGE, last)
        if not due:
            break
        granted += [one for one in due if await _grant(engine, one, now)]
        last = due[-1]
    for organization_id in sorted({one.organization_id for one in granted}):
        try:
            async with engine.connect() as connection:
                await project_balance(connection, hot, organization_id)
        except Unavailable:
            # The worker projects what is behind when Redis answers again.
            break
    return granted


async def _grant(engine: AsyncEngine, due: Due, now: datetime) -> bool:
    try:
        # A transaction each: holding one customer's money while waiting for another's would deadlock with a grant.
        async with engine.begin() as connection:
            await grant_credit(
                connection,
                organization_id=due.organization_id,
                currency=due.currency,
                kind=GrantKind.PROMO,
                amount=due.amount,
                priority=PRIORITY,
                effective_at=now,
                expires_at=month_end(due.timezone, now),
                scope=None if due.models is None else {"models": list(due.models)},
                idempotency_key=due.key,
                now=now,
            )
    except (InvalidRequest, NotFound) as error:
        # A balance that cannot grow, or an organization without accounts: it must not keep the others from theirs.
        _log.warning("allowance_not_granted", organization_id=due.organization_id, reason=error.message)
        return False
    return True


def month_end(timezone: str, now: datetime) -> datetime:
    """The first moment of the next calendar month in a time zone."""
    local = now.astimezone(ZoneInfo(timezone))
    year, month = (local.year + 1, 1) if local.month == 12 else (local.year, local.month + 1)
    return datetime(year, month, 1, tzinfo=ZoneInfo(timezone)).astimezone(UTC)


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        # It was known where the organization was made. Its allowance waits for a machine that knows it too.
        return None
