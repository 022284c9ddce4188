"""Free allowances: what a price book gives its organizations each month, granted as credit that ends with it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.store import HotStore
from billing.months import bounds_of, month_of
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
    months = {name: f"{month_of(now, name):%Y-%m}" for name in names}
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
                expires_at=bounds_of(month_of(now, due.timezone), due.timezone)[1],
                scope=None if due.models is None else {"models": list(due.models)},
                idempotency_key=due.key,
                now=now,
            )
    except (InvalidRequest, NotFound) as error:
        # A balance that cannot grow, or an organization without accounts: it must not keep the others from theirs.
        _log.warning("allowance_not_granted", organization_id=due.organization_id, reason=error.message)
        return False
    return True
