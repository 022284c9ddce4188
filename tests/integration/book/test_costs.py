"""Own costs: posted by month until nothing is left to post, and the margin that revenue, shares and costs leave."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.costing import Machines
from billing.costs import PostedCost, post_costs
from billing.months import bounds_of, month_of, next_month
from billing.periods import close_period, period_id
from billing.settlement import book_shard
from billing.store.costs import NewCost, declare_machines, margin_of, publish_cost
from billing.verify import verify
from models.catalog import CostKind
from models.errors import InvalidRequest
from models.ledger import ShareRole
from models.money import MilliUnits
from models.tables import posting
from tests.integration.book.shop import MODEL, Shop, now
from tests.integration.book.test_months import call_at
from tests.integration.book.test_shares import balances, publish

pytestmark = pytest.mark.anyio

_SECOND = timedelta(seconds=1)
THIS = month_of(now(), "UTC")
TURN = bounds_of(THIS, "UTC")[0]
LAST = month_of(TURN - _SECOND, "UTC")
YEARS_AGO = THIS.replace(year=THIS.year - 2)


async def cost(shop: Shop, kind: CostKind, milli: int, currency: str = "USD") -> None:
    """Say what a unit costs, since long ago."""
    async with shop.engine.begin() as connection:
        new = NewCost(MODEL, kind, currency, MilliUnits(milli), YEARS_AGO)
        await publish_cost(connection, new, "somebody", now())


async def post(shop: Shop, month: date = THIS) -> list[PostedCost]:
    """Post what a month costs."""
    async with shop.engine.begin() as connection:
        return await post_costs(connection, month, now())


async def clean(shop: Shop) -> None:
    """Verify finds nothing."""
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]


async def test_costs_are_posted_once_and_then_what_came_later(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    await cost(shop, CostKind.INPUT_TOKEN, 100_000)
    await cost(shop, CostKind.OUTPUT_TOKEN, 300_000)
    await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    [first] = await post(shop)
    assert (first.currency, first.amount) == ("USD", 100 * 100 + 100 * 300)
    assert await post(shop) == []
    await shop.call(tenant, tokens=50)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    [second] = await post(shop)
    assert second.amount == 20_000
    sums = await balances(shop)
    assert (sums["provider_cost"], sums["provider_payable"]) == (-60_000, 60_000)
    async with shop.engine.connect() as connection:
        rows = (await connection.execute(select(posting).where(posting.c.kind == "cost").order_by(posting.c.id))).all()
    assert [row.idempotency_key for row in rows] == [f"cost:{THIS:%Y-%m}:USD:{number}" for number in (1, 2)]
    assert all(row.organization_id is None and month_of(row.effective_at, "UTC") == THIS for row in rows)
    await clean(shop)


async def test_declared_machines_are_corrected_by_a_new_posting(shop: Shop) -> None:
    tenant, other = await shop.tenant(paid=10_000_000_000), await shop.tenant(paid=10_000_000_000)
    await cost(shop, CostKind.GPU_HOUR, 3_600 * 1_000_000)
    await cost(shop, CostKind.KWH, 1_000_000, "KRW")
    for each, tokens in ((tenant, 300), (other, 100)):
        await shop.call(each, tokens=tokens)
        await book_shard(shop.engine, shop.hot, each.shard)
    for seconds, posted in ((100, [("KRW", 2_000), ("USD", 100_000)]), (80, [("USD", -20_000)]), (80, [])):
        async with shop.engine.begin() as connection:
            await declare_machines(connection, Machines(MODEL, THIS, seconds, 2_000), "gpu-1")
        assert [(each.currency, each.amount) for each in await post(shop)] == posted
    async with shop.engine.connect() as connection:
        lines = {(row.organization_id, row.currency): row for row in await margin_of(connection, THIS)}
        mine = await margin_of(connection, THIS, tenant.organization_id, MODEL)
    assert {key: int(row.costs) for key, row in lines.items()} == {
        (tenant.organization_id, "USD"): 60_000,
        (other.organization_id, "USD"): 20_000,
        (tenant.organization_id, "KRW"): 1_500,
        (other.organization_id, "KRW"): 500,
    }
    assert [(row.currency, int(row.costs)) for row in mine] == [("KRW", 1_500), ("USD", 60_000)]
    await clean(shop)


async def test_the_margin_is_what_is_left_of_revenue(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    await publish(shop, ShareRole.RESELLER, "Friend", 200_000, tenant=tenant)
    await cost(shop, CostKind.REQUEST, 5_000_000)
    charge = await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    async with shop.engine.begin() as connection:
        # Of a model that nobody called.
        await connection.execute(text("insert into model (id, context_length) values ('idle', 1)"))
        new = NewCost("idle", CostKind.GPU_HOUR, "USD", MilliUnits(3_600_000), YEARS_AGO)
        await publish_cost(connection, new, "somebody", now())
        await declare_machines(connection, Machines("idle", THIS, 7, 0), "gpu-1")
    await post(shop)
    async with shop.engine.connect() as connection:
        rows = await margin_of(connection, THIS)
        assert await margin_of(connection, next_month(THIS)) == []
        assert await margin_of(connection, THIS, model="other") == []
    assert [
        (row.organization_id, row.model, row.calls, *map(int, (row.revenue, row.shares, row.costs, row.margin)))
        for row in rows
    ] == [
        (tenant.organization_id, MODEL, 1, charge.amount, 14_250, 5_000, charge.amount - 14_250 - 5_000),
        (None, "idle", 0, 0, 0, 7, -7),
    ]
    await clean(shop)


async def test_costs_of_a_closed_period_are_posted_in_the_open_one(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    await cost(shop, CostKind.REQUEST, 5_000_000)
    await call_at(shop, tenant, TURN - 5 * _SECOND, TURN - 4 * _SECOND)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    async with shop.engine.begin() as connection:
        await close_period(connection, shop.hot, period_id(LAST), "somebody", now())
    [posted] = await post(shop, LAST)
    assert posted.amount == 5_000
    async with shop.engine.connect() as connection:
        [row] = await connection.execute(select(posting).where(posting.c.kind == "cost"))
        [line] = await margin_of(connection, LAST)
    assert row.effective_at == TURN
    assert row.source == {"month": f"{LAST:%Y-%m}", "number": 1}
    assert line.costs == 5_000, "it stays a cost of its month"
    await clean(shop)


async def test_a_month_that_has_not_begun_costs_nothing(shop: Shop) -> None:
    with pytest.raises(InvalidRequest, match="has not begun"):
        await post(shop, next_month(THIS))
    assert await post(shop) == []


async def test_a_price_of_usage_ends_where_the_next_begins(shop: Shop) -> None:
    await cost(shop, CostKind.REQUEST, 1)
    async with shop.engine.begin() as connection:
        row = await publish_cost(
            connection, NewCost(MODEL, CostKind.REQUEST, "USD", MilliUnits(2), THIS), "somebody", now()
        )
        found = await connection.execute(text("select upper(effective) from model_cost where price = 1"))
        assert (row.effective.lower, found.scalar_one()) == (THIS, THIS)
    with pytest.raises(DBAPIError, match="model_cost_no_overlap"):
        await cost(shop, CostKind.REQUEST, 3, "KRW")


async def test_a_changed_cost_is_found(shop: Shop, owner: AsyncEngine) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    await cost(shop, CostKind.REQUEST, 5_000_000)
    await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    await post(shop)
    async with owner.begin() as connection:
        await connection.execute(text("alter table cost disable trigger user"))
        await connection.execute(text("update cost set amount = amount - 1"))
    report = await verify(shop.engine, shop.hot)
    assert [(check.name, check.findings[0].expected) for check in report.checks if not check.ok] == [
        ("costs_posted", "4999")
    ]
