"""What was charged for attempts whose answers were lost is given back: a customer pays for a line once.

See docs/decisions/0020-batches.md.
"""

from __future__ import annotations

from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.booking import correction_id
from billing.projection import project_balance
from billing.settlement import grant_credit
from billing.store.audit import write_audit
from billing.store.batches import LOOK_FOR, look_again, take_lost
from billing.store.charges import ChargeFilter, find_charge
from billing.store.pages import AnyRow
from gateway.parts import Parts
from gateway.telemetry import BATCHES
from models.errors import Conflict, InvalidRequest, NotFound, Unavailable
from models.ledger import GrantKind
from models.money import Units

_PRIORITY = 50
_SOONEST_SECONDS, _LATEST_SECONDS = 2, 3_600
_log = structlog.get_logger("tollgate.batches")


async def give_back(parts: Parts) -> bool:
    """Look at a lost attempt that is due; False where there is none."""
    async with parts.engine.begin() as connection:
        lost = await take_lost(connection)
        if lost is None:
            return False
        charged, currency = await _charged(connection, lost)
        returned = int(lost.returned)
        owed = Units(max(0, charged - returned))
        is_given = bool(owed) and await _grant(parts, connection, lost, owed, currency, charged)
        # Where nothing is booked yet it may be soon; a correction of what is may come much later.
        age = int(lost.age.total_seconds())
        wait = _LATEST_SECONDS if charged else min(_LATEST_SECONDS, max(_SOONEST_SECONDS, age // 4))
        is_over = lost.age > LOOK_FOR and (is_given or not owed)
        await look_again(connection, lost.call_id, None if is_over else wait, charged if is_given else returned)
    if is_given:
        BATCHES.returned(currency, owed)
        try:
            async with parts.engine.connect() as connection:
                await project_balance(connection, parts.hot, lost.organization_id)
        except Unavailable:
            # A worker projects it within seconds.
            _log.warning("projection_left_to_worker", call_id=lost.call_id)
    return True


async def _charged(connection: AsyncConnection, lost: AnyRow) -> tuple[int, str]:
    """What the book has of the attempt's charge and its correction, and the currency."""
    amount, currency = 0, ""
    for call_id in (lost.call_id, correction_id(lost.call_id)):
        booked = await find_charge(connection, call_id, ChargeFilter(organization_id=lost.organization_id))
        if booked is not None:
            amount, currency = amount + booked.charge.amount, booked.charge.currency
    return amount, currency


async def _grant(
    parts: Parts, connection: AsyncConnection, lost: AnyRow, owed: Units, currency: str, charged: int
) -> bool:
    now = parts.clock.now()
    give = partial(
        grant_credit,
        connection,
        organization_id=lost.organization_id,
        currency=currency,
        kind=GrantKind.PROMO,
        amount=owed,
        priority=_PRIORITY,
        effective_at=now,
        expires_at=None,
        scope=None,
        # What was given back in all makes it this gift and no other.
        idempotency_key=f"lost_attempt:{lost.call_id}:{charged}",
        now=now,
    )
    try:
        grant_id = await give()
    except (InvalidRequest, Conflict, NotFound) as error:
        # A balance at its largest, say: it is tried again later, and keeps no other from its own.
        _log.error("lost_attempt_not_returned", call_id=lost.call_id, amount=owed, reason=error.message)
        return False
    await write_audit(
        connection,
        now=now,
        actor="system:batches",
        action="batch.attempt_returned",
        object=f"call:{lost.call_id}",
        organization_id=lost.organization_id,
        detail={"batch": str(lost.batch_id), "line": lost.line, "credit_grant": str(grant_id)},
    )
    _log.warning(
        "lost_attempt_returned",
        call_id=lost.call_id,
        organization_id=lost.organization_id,
        amount=owed,
        currency=currency,
        grant_id=grant_id,
    )
    return True
