"""Free allowances: granted once a month, in the organization's own month, and gone with it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.allowances import grant_allowances
from billing.months import bounds_of, month_of
from billing.settlement import expire_grants
from billing.store.allowances import create_allowance, end_allowance
from billing.verify import verify
from models.money import Units
from models.tables import credit_grant, organization
from tests.integration.book.shop import Shop, Tenant, now

pytestmark = pytest.mark.anyio

AMOUNT = Units(5_000_000_000)


async def allow(shop: Shop, *, models: tuple[str, ...] | None = None, currency: str = "USD") -> UUID:
    async with shop.engine.begin() as connection:
        row = await create_allowance(
            connection,
            book="default",
            currency=currency,
            amount=AMOUNT,
            models=models,
            created_by="test",
            now=now(),
        )
    return UUID(str(row.id))


async def change(shop: Shop, tenant: Tenant, **values: object) -> None:
    async with shop.engine.begin() as connection:
        await connection.execute(
            update(organization).where(organization.c.id == tenant.organization_id).values(**values)
        )


async def grants(engine: AsyncEngine) -> list[tuple[UUID, str, int, datetime, object]]:
    columns = credit_grant.c
    wanted = (columns.organization_id, columns.kind, columns.remaining, columns.expires_at, columns.scope)
    async with engine.connect() as connection:
        rows = await connection.execute(select(*wanted).order_by(columns.id))
        return [(row[0], row[1], int(row[2]), row[3], row[4]) for row in rows]


async def test_a_month_is_granted_once_however_many_workers_do_it(shop: Shop) -> None:
    tenant = await shop.tenant()
    await allow(shop, models=("tiny",))
    moment = now()
    rounds = await asyncio.gather(*(grant_allowances(shop.engine, shop.hot, moment) for _ in range(3)))
    assert any(rounds)
    assert await grant_allowances(shop.engine, shop.hot, moment) == []
    ends_at = bounds_of(month_of(moment, "UTC"), "UTC")[1]
    expected = (tenant.organization_id, "promo", AMOUNT, ends_at, {"models": ["tiny"]})
    assert await grants(shop.engine) == [expected]
    balance = await shop.hot.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    assert balance.balance == AMOUNT, "it can be spent at once"
    assert (await verify(shop.engine, shop.hot)).ok


async def test_the_next_month_brings_the_next_and_takes_what_is_left(shop: Shop) -> None:
    tenant = await shop.tenant()
    await allow(shop)
    moment = now()
    await grant_allowances(shop.engine, shop.hot, moment)
    later = bounds_of(month_of(moment, "UTC"), "UTC")[1] + timedelta(minutes=5)
    assert await expire_grants(shop.engine, later) == {tenant.organization_id}
    [due] = await grant_allowances(shop.engine, shop.hot, later)
    assert due.month == f"{later:%Y-%m}"
    assert [remaining for _, _, remaining, _, _ in await grants(shop.engine)] == [0, AMOUNT]


async def test_a_month_is_the_organizations_own(shop: Shop) -> None:
    seoul, pacific = await shop.tenant(), await shop.tenant()
    await change(shop, seoul, timezone="Asia/Seoul")
    await change(shop, pacific, timezone="America/Los_Angeles")
    await allow(shop)
    new_year = datetime(2032, 1, 1, 4, tzinfo=UTC)
    granted = {one.organization_id: one.month for one in await grant_allowances(shop.engine, shop.hot, new_year)}
    assert granted == {seoul.organization_id: "2032-01", pacific.organization_id: "2031-12"}
    ends = {owner: expires for owner, _, _, expires, _ in await grants(shop.engine)}
    assert ends[seoul.organization_id] == datetime(2032, 1, 31, 15, tzinfo=UTC)
    assert ends[pacific.organization_id] == datetime(2032, 1, 1, 8, tzinfo=UTC)


async def test_others_get_none(shop: Shop) -> None:
    closed, elsewhere = await shop.tenant(), await shop.tenant()
    await change(shop, closed, closed_at=now())
    await change(shop, elsewhere, price_book="partners")
    await allow(shop)
    await allow(shop, currency="EUR")
    assert await grant_allowances(shop.engine, shop.hot, now()) == []
    assert await grants(shop.engine) == []


async def test_an_ended_allowance_is_granted_no_more(shop: Shop) -> None:
    await shop.tenant()
    allowance_id = await allow(shop)
    async with shop.engine.begin() as connection:
        row = await end_allowance(connection, allowance_id, now())
        assert row is not None
        again = await end_allowance(connection, allowance_id, now() + timedelta(days=1))
    assert again == row, "what has ended stays as it is"
    assert await grant_allowances(shop.engine, shop.hot, now()) == []


async def test_one_that_cannot_be_given_does_not_keep_the_others_from_theirs(shop: Shop) -> None:
    full, other = await shop.tenant(paid=8_999_999_999_999_999), await shop.tenant()
    await allow(shop)
    granted = await grant_allowances(shop.engine, shop.hot, now())
    assert {one.organization_id for one in granted} == {other.organization_id} != {full.organization_id}
