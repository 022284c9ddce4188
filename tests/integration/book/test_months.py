"""In which month a call is billed and posted, whatever comes late, and the sums that are kept of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError

from billing.months import bounds_of, month_of
from billing.settlement import book_shard, grant_credit
from billing.store.spend_limits import StoredLimit, booked_in
from billing.verify import verify
from models.call import Charge
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import Units
from models.tables import book, organization, organization_balance, posting, usage_day, usage_hour
from tests.integration.book.shop import Shop, Tenant, now

pytestmark = pytest.mark.anyio

_SECOND = timedelta(seconds=1)


async def call_at(shop: Shop, tenant: Tenant, began: datetime, ended: datetime) -> Charge:
    """A call of another time than now, settled."""
    hold = await shop.hold(tenant)
    origin = replace(hold.request.origin, call_id=uuid7(began), created_at=began)
    assert await shop.hot.void(hold)
    hold = replace(hold, request=replace(hold.request, origin=origin), encoded=b"")
    charge = replace(shop.charge(hold), ended_at=ended)
    assert await shop.hot.settle(hold, charge)
    return charge


async def months_posted(shop: Shop) -> list[tuple[date, datetime, int]]:
    """Of the postings of charges: the month that they are billed in, their date, and how many calls."""
    async with shop.engine.connect() as connection:
        rows = await connection.execute(
            select(posting).where(posting.c.kind == "charge_batch").order_by(posting.c.effective_at)
        )
        return [(row.billing_month, row.effective_at, row.source["calls"]) for row in rows]


async def clean(shop: Shop) -> None:
    """Verify finds nothing."""
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]


async def test_a_batch_over_the_end_of_a_month_has_two_postings(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    this = month_of(now(), "UTC")
    turn = bounds_of(this, "UTC")[0]
    last = month_of(turn - _SECOND, "UTC")
    before = [await call_at(shop, tenant, turn - 5 * _SECOND, turn - _SECOND) for _ in range(2)]
    after = [await call_at(shop, tenant, turn - _SECOND, turn + _SECOND) for _ in range(3)]

    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).charges == 5

    assert await months_posted(shop) == [(last, turn - _SECOND, 2), (this, turn + _SECOND, 3)]
    async with shop.engine.connect() as connection:
        days = (await connection.execute(select(usage_day).order_by(usage_day.c.day))).all()
        hours = (await connection.execute(select(usage_hour).order_by(usage_hour.c.hour))).all()
    assert [(row.billing_month, row.calls, int(row.amount)) for row in days] == [
        (last, 2, sum(charge.amount for charge in before)),
        (this, 3, sum(charge.amount for charge in after)),
    ]
    assert [(row.hour, row.calls, row.input_tokens, row.cached_tokens) for row in hours] == [
        (turn - timedelta(hours=1), 2, 200, 100),
        (turn, 3, 300, 150),
    ]
    assert all(row.price_version_ids == list(shop.rates.version_ids) and row.unbilled == 0 for row in days)
    await clean(shop)


async def test_sums_grow_with_later_batches_and_tell_what_is_owed(shop: Shop) -> None:
    one = await shop.call(tenant := await shop.tenant(paid=100_000, mode="hybrid", credit_limit=5_000_000_000))
    await book_shard(shop.engine, shop.hot, tenant.shard)
    two = await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    owed = one.amount + two.amount - 100_000
    assert 0 < owed < two.amount, "the second call crosses from credit to what is owed"
    async with shop.engine.connect() as connection:
        [row] = await connection.execute(select(usage_day))
    assert (row.calls, int(row.amount), int(row.unbilled)) == (2, one.amount + two.amount, owed)
    await clean(shop)


async def test_the_month_is_the_one_of_the_organizations_clocks(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    async with shop.engine.begin() as connection:
        await connection.execute(update(organization).values(timezone="Asia/Seoul"))
    turn = bounds_of(month_of(now(), "Asia/Seoul"), "Asia/Seoul")[0]
    await call_at(shop, tenant, turn - _SECOND, turn)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    [(month, effective_at, _)] = await months_posted(shop)
    assert month == month_of(now(), "Asia/Seoul")
    assert effective_at == turn
    async with shop.engine.connect() as connection:
        [row] = await connection.execute(select(usage_day))
    assert row.day == month
    await clean(shop)


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kolkata", "Asia/Kathmandu"])
async def test_what_counts_against_a_limit_is_a_month_of_the_organizations_clocks(shop: Shop, timezone: str) -> None:
    """Also where its midnight is within an hour of UTC."""
    tenant = await shop.tenant(paid=10_000_000_000)
    async with shop.engine.begin() as connection:
        await connection.execute(update(organization).values(timezone=timezone))
    this = month_of(now(), timezone)
    turn = bounds_of(this, timezone)[0]
    before = [await call_at(shop, tenant, turn - 2 * _SECOND, turn - _SECOND) for _ in range(2)]
    after = await call_at(shop, tenant, turn - 2 * _SECOND, turn)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    for project_id in (None, tenant.project_id):
        owner = (uuid7(now()), tenant.organization_id, project_id, None)
        limit = StoredLimit(*owner, Units(1), True, (), now(), timezone, tenant.shard, "USD")
        async with shop.engine.connect() as connection:
            last = await booked_in(connection, limit, month_of(turn - _SECOND, timezone))
            spent = await booked_in(connection, limit, this)
        assert (last, spent) == (sum(charge.amount for charge in before), after.amount)


async def test_what_comes_after_the_cut_off_is_billed_in_the_open_month(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    this = month_of(now(), "UTC")
    turn = bounds_of(this, "UTC")[0]
    async with shop.engine.begin() as connection:
        await connection.execute(update(organization_balance).values(open_month=this))
    await call_at(shop, tenant, turn - 3 * _SECOND, turn - _SECOND)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    assert await months_posted(shop) == [(this, turn - _SECOND, 1)]
    async with shop.engine.connect() as connection:
        [row] = await connection.execute(select(usage_day))
    assert (row.billing_month, row.day) == (this, (turn - _SECOND).date()), "with its own day"
    await clean(shop)


async def test_nothing_enters_a_closed_period(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    turn = bounds_of(month_of(now(), "UTC"), "UTC")[0]
    async with shop.engine.begin() as connection:
        await connection.execute(update(book).values(closed_until=turn))
    await call_at(shop, tenant, turn - 3 * _SECOND, turn - _SECOND)
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).dead == 0
    [(month, effective_at, _)] = await months_posted(shop)
    assert (month, effective_at) == (month_of(turn - _SECOND, "UTC"), turn), (
        "posted in the open period, billed in its own"
    )
    with pytest.raises(DBAPIError, match="the period is closed"):
        async with shop.engine.begin() as connection:
            await grant_credit(
                connection,
                organization_id=tenant.organization_id,
                currency="USD",
                kind=GrantKind.PAID,
                amount=Units(1),
                priority=50,
                effective_at=turn - _SECOND,
                expires_at=None,
                scope=None,
                idempotency_key="late",
                now=turn - _SECOND,
            )
    with pytest.raises(DBAPIError, match="never opened again"):
        async with shop.engine.begin() as connection:
            await connection.execute(update(book).values(closed_until=turn - _SECOND))
    await clean(shop)


async def test_a_period_closes_after_the_postings_that_are_under_way(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    async with shop.engine.connect() as closer, shop.engine.begin() as booker:
        early = datetime(2026, 1, 2, tzinfo=UTC)
        values = {"organization_id": tenant.organization_id, "idempotency_key": "x", "kind": "cost"}
        await booker.execute(insert(posting).values(**values, effective_at=early))
        await closer.execute(text("set lock_timeout = '200ms'"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await closer.execute(update(book).values(closed_until=datetime(2026, 2, 1, tzinfo=UTC)))
        await closer.rollback()
