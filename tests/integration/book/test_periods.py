"""Periods that close: in order, with all their charges, kept to the last unit, and never opened again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.months import bounds_of, month_of
from billing.periods import close_period, list_periods, period_id
from billing.settlement import book_shard
from billing.store.trial_balance import Line, digest_of, trial_balance
from billing.verify import verify
from gateway.embedded.redis import Redis
from models.errors import Conflict, InvalidRequest, Unavailable
from models.tables import accounting_period, posting
from tests.integration.book.shop import Shop, Tenant, now
from tests.integration.book.test_months import call_at

pytestmark = pytest.mark.anyio

_SECOND = timedelta(seconds=1)
THIS = month_of(now(), "UTC")
TURN = bounds_of(THIS, "UTC")[0]
LAST = month_of(TURN - _SECOND, "UTC")
BEFORE_LAST = month_of(datetime.combine(LAST, datetime.min.time(), UTC) - _SECOND, "UTC")


async def close(shop: Shop, period: str, moment: datetime | None = None) -> Any:
    """Close a period, looking at the streams."""
    async with shop.engine.begin() as connection:
        return await close_period(connection, shop.hot, period, "somebody", moment or now())


async def opened(shop: Shop) -> Tenant:
    """A tenant with a call in the month before the present one."""
    tenant = await shop.tenant(paid=10_000_000_000)
    await call_at(shop, tenant, TURN - 5 * _SECOND, TURN - 4 * _SECOND)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    return tenant


async def wrong(shop: Shop) -> dict[str, str]:
    """What verify finds, by check."""
    report = await verify(shop.engine, shop.hot)
    return {check.name: " ".join(map(str, check.findings)) for check in report.checks if not check.ok}


async def test_a_period_keeps_its_trial_balance(shop: Shop) -> None:
    await opened(shop)
    row = await close(shop, period_id(LAST))
    assert (row.id, row.starts_at, row.ends_at, row.closed_by) == (
        period_id(LAST),
        bounds_of(LAST, "UTC")[0],
        TURN,
        "somebody",
    )
    # The top-up is of the present month: the call was paid before it was bought.
    assert row.trial_balance == [
        {"currency": "USD", "account": "customer_prepaid", "debits": "71250", "credits": "0"},
        {"currency": "USD", "account": "revenue", "debits": "0", "credits": "71250"},
    ]
    lines = [Line("USD", "revenue", 0, 71_250), Line("USD", "customer_prepaid", 71_250, 0)]
    assert row.digest == digest_of(lines)
    async with shop.engine.connect() as connection:
        assert await trial_balance(connection, TURN) == lines[::-1]
        assert {line.account for line in await trial_balance(connection, now())} == {
            "cash_clearing",
            "customer_prepaid",
            "revenue",
        }
        last = (await connection.execute(select(posting.c.id).order_by(posting.c.id.desc()).limit(1))).scalar_one()
    assert row.last_posting == last
    assert await wrong(shop) == {}


async def test_closing_again_changes_nothing(shop: Shop) -> None:
    await opened(shop)
    first = await close(shop, period_id(LAST))
    assert await close(shop, period_id(LAST), now() + timedelta(days=1)) == first
    both = await asyncio.gather(close(shop, period_id(LAST)), close(shop, period_id(LAST)))
    assert list(both) == [first, first]


async def test_two_who_close_at_once_close_once(shop: Shop) -> None:
    await opened(shop)
    one, two = await asyncio.gather(close(shop, period_id(LAST)), close(shop, period_id(LAST)))
    assert one == two
    async with shop.engine.connect() as connection:
        assert len((await connection.execute(select(accounting_period))).all()) == 1


async def test_periods_close_in_order_from_the_first_posting_on(shop: Shop) -> None:
    with pytest.raises(Conflict, match="Nothing was ever posted"):
        await close(shop, period_id(LAST))
    tenant = await shop.tenant(paid=10_000_000_000)
    end = bounds_of(BEFORE_LAST, "UTC")[1]
    await call_at(shop, tenant, end - 2 * _SECOND, end - _SECOND)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    with pytest.raises(Conflict, match=f"Close {period_id(BEFORE_LAST)} first"):
        await close(shop, period_id(LAST))
    with pytest.raises(InvalidRequest, match=f"begin with {period_id(BEFORE_LAST)}"):
        await close(shop, "2020-01")
    with pytest.raises(Conflict, match="has not ended"):
        await close(shop, period_id(THIS))
    for name in ("2026-13", "2026-1", "26-11", "2026-11-01", ""):
        with pytest.raises(InvalidRequest, match="such as 2026-11"):
            await close(shop, name)
    async with shop.engine.connect() as connection:
        assert [(each.id, each.closed) for each in await list_periods(connection, now())] == [
            (period_id(month), None) for month in (BEFORE_LAST, LAST, THIS)
        ]
    for month in (BEFORE_LAST, LAST):
        await close(shop, period_id(month))
    async with shop.engine.connect() as connection:
        assert [each.closed is not None for each in await list_periods(connection, now())] == [True, True, False]
    assert await wrong(shop) == {}


async def test_a_period_waits_for_its_charges(shop: Shop, redis: Redis) -> None:
    tenant = await opened(shop)
    await call_at(shop, tenant, TURN - 3 * _SECOND, TURN - _SECOND)
    await call_at(shop, tenant, TURN - 3 * _SECOND, TURN + _SECOND)
    with pytest.raises(Conflict, match=r"1 charges that may be of .* worker runs"):
        await close(shop, period_id(LAST))
    raw = await HotConnection.connect(redis.url)
    await raw.execute("DEL", SHARD_KEYS[tenant.shard].epoch)
    with pytest.raises(Unavailable, match="being rebuilt"):
        await close(shop, period_id(LAST))
    await raw.execute("SET", SHARD_KEYS[tenant.shard].epoch, 1)
    await raw.close()
    await book_shard(shop.engine, shop.hot, tenant.shard)
    await close(shop, period_id(LAST))
    assert await wrong(shop) == {}


async def test_a_late_charge_is_posted_in_the_open_period(shop: Shop) -> None:
    tenant = await opened(shop)
    closed = await close(shop, period_id(LAST))
    await call_at(shop, tenant, TURN - 3 * _SECOND, TURN - _SECOND)
    booked = await book_shard(shop.engine, shop.hot, tenant.shard)
    assert (booked.charges, booked.dead) == (1, 0)
    async with shop.engine.connect() as connection:
        rows = await connection.execute(select(posting).where(posting.c.kind == "charge_batch").order_by(posting.c.id))
        assert [(row.effective_at, row.billing_month) for row in rows] == [
            (TURN - 4 * _SECOND, LAST),
            (TURN, LAST),
        ]
        assert [line.as_json() for line in await trial_balance(connection, TURN)] == closed.trial_balance
    assert await wrong(shop) == {}


async def test_a_closed_period_is_never_changed(shop: Shop, owner: AsyncEngine) -> None:
    await opened(shop)
    await close(shop, period_id(LAST))
    for change in ("update accounting_period set closed_by = 'me'", "delete from accounting_period"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with owner.begin() as connection:
                await connection.execute(text(change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(
            "update posting set effective_at = effective_at + interval '40 days' where kind = 'charge_batch'",
            "expected 71250 debits and 0 credits, as when it was closed",
            id="a posting moved out of it",
        ),
        pytest.param(
            "update posting set effective_at = effective_at - interval '40 days' where kind = 'topup'",
            "cash_clearing: expected  debits",
            id="a posting moved into it",
        ),
        pytest.param(
            "update transfer set amount = amount + 1 where amount = 71250", "found 71251 debits", id="an amount"
        ),
        pytest.param(
            "update accounting_period set trial_balance = jsonb_set(trial_balance, '{0,debits}', '\"71251\"')",
            "expected 71251 debits",
            id="a kept line",
        ),
        pytest.param("update accounting_period set digest = sha256('')", "expected e3b0c4", id="the digest"),
        pytest.param("update book set closed_until = '2000-01-01'", "the book is open from 2000", id="opened again"),
    ],
)
async def test_tampering_with_a_closed_period_is_found(shop: Shop, owner: AsyncEngine, change: str, told: str) -> None:
    await opened(shop)
    await close(shop, period_id(LAST))
    async with owner.begin() as connection:
        for table in ("posting", "transfer", "accounting_period", "book"):
            await connection.execute(text(f"alter table {table} disable trigger user"))
        assert (await connection.execute(text(change))).rowcount == 1
    assert told in (await wrong(shop))["periods"]
