"""`verify` finds whoever changes the past, and says where."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.settlement import book_shard
from billing.verify import verify
from gateway.embedded.redis import Redis
from models.call import Charge
from tests.integration.book.shop import Shop, Tenant

pytestmark = pytest.mark.anyio

_UNGUARDED = "alter table {table} disable trigger user"


async def _booked(shop: Shop) -> tuple[Tenant, list[Charge]]:
    tenant = await shop.tenant(paid=10_000_000_000)
    charges = [await shop.call(tenant) for _ in range(5)]
    await book_shard(shop.engine, shop.hot, tenant.shard)
    return tenant, charges


async def _failed(shop: Shop) -> dict[str, str]:
    report = await verify(shop.engine, shop.hot)
    assert report.ok == all(check.ok for check in report.checks)
    return {check.name: " ".join(check.findings) for check in report.checks if not check.ok}


async def test_an_untouched_book_is_clean(shop: Shop) -> None:
    await _booked(shop)
    report = await verify(shop.engine, shop.hot)
    assert report.ok, report
    assert report.charges == 5
    assert {check.name for check in report.checks} >= {"account_balances", "charges_posted", "prices", "hot_store"}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param("amount = amount - 1", {"charges_posted", "funding", "prices"}, id="an amount"),
        pytest.param("input_tokens = input_tokens + 100", {"prices"}, id="tokens"),
        pytest.param("price_version_ids = '{}'", {"prices"}, id="the price"),
        pytest.param("model = 'dear'", {"prices"}, id="the model"),
        pytest.param("funding = '[]'", {"funding", "draws"}, id="who paid"),
        pytest.param("posting_id = posting_id + 1", {"charges_posted", "draws"}, id="the posting"),
    ],
)
async def test_a_changed_charge_is_found(shop: Shop, owner: AsyncEngine, change: str, names: set[str]) -> None:
    _, charges = await _booked(shop)
    victim = charges[2].call_id
    async with owner.begin() as connection:
        await connection.execute(text(_UNGUARDED.format(table="charge")))
        changed = await connection.execute(text(f"update charge set {change} where call_id = :call"), {"call": victim})
        assert changed.rowcount == 1
    failed = await _failed(shop)
    assert failed.keys() == names
    if "prices" in names or "funding" in names:
        assert any(str(victim) in findings for findings in failed.values())


@pytest.mark.parametrize(
    ("table", "change", "names"),
    [
        pytest.param("charge", "delete from charge where call_id = :call", {"charges_posted", "draws"}, id="a charge"),
        pytest.param("transfer", "update transfer set amount = amount + 1", {"account_balances"}, id="a transfer"),
        pytest.param(
            "account_balance", "update account_balance set credits = credits + 1", {"account_balances"}, id="an account"
        ),
        pytest.param("credit_grant", "update credit_grant set remaining = remaining - 1", {"grants"}, id="a grant"),
        pytest.param("organization_balance", "update organization_balance set posted = posted + 1", set(), id="money"),
        pytest.param("price_version", "update price_version set price = price + 1000", {"prices"}, id="a price"),
    ],
)
async def test_any_other_tampering_is_found(
    shop: Shop, owner: AsyncEngine, table: str, change: str, names: set[str]
) -> None:
    _, charges = await _booked(shop)
    async with owner.begin() as connection:
        await connection.execute(text(_UNGUARDED.format(table=table)))
        await connection.execute(text(change), {"call": charges[0].call_id} if ":call" in change else {})
    failed = await _failed(shop)
    assert names <= failed.keys()
    assert failed


@pytest.mark.parametrize("field", ["balance", "held", "settled", "credit_limit"])
async def test_a_changed_redis_is_found(shop: Shop, redis: Redis, field: str) -> None:
    tenant, _ = await _booked(shop)
    await shop.hold(tenant)
    assert await _failed(shop) == {}
    raw = await HotConnection.connect(redis.url)
    key = f"{SHARD_KEYS[tenant.shard].organization}{tenant.organization_id}"
    await raw.execute("HINCRBY", key, field, 5)
    failed = await _failed(shop)
    assert failed.keys() == {"hot_store"}
    assert str(tenant.organization_id) in failed["hot_store"]
    await raw.execute("FLUSHALL")
    await raw.close()
    assert "epoch None" in (await _failed(shop))["hot_store"]


async def test_charges_on_their_way_are_no_difference(shop: Shop) -> None:
    tenant, _ = await _booked(shop)
    await shop.call(tenant)
    assert await _failed(shop) == {}
