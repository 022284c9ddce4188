"""A Redis that is new, blank, old or mistaken, and balances made anew from the book."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import HotStore
from billing.projection import project_all, project_balance
from billing.rebuild import ensure_epoch
from billing.settlement import book_shard
from billing.store.shards import epochs, lease
from billing.verify import verify
from gateway.embedded.redis import Redis
from models.call import Hold, HoldRefusal, RefusedHold
from models.tables import organization_balance, shard
from tests.integration.book.shop import Shop, Tenant

pytestmark = pytest.mark.anyio


async def _clean(shop: Shop) -> None:
    for number in range(16):
        await ensure_epoch(shop.engine, shop.hot, number)
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]


async def _flush(redis: Redis) -> None:
    raw = await HotConnection.connect(redis.url)
    await raw.execute("FLUSHALL")
    await raw.close()


async def _balance(shop: Shop, tenant: Tenant) -> int:
    there = await shop.hot.balance(tenant.shard, tenant.organization_id)
    assert there is not None
    return there.balance


async def test_a_blank_redis_is_rebuilt_and_what_was_settled_meanwhile_is_kept(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    before = await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    running = await shop.hold(tenant)
    await _flush(redis)

    blind = shop.charge(running)
    assert await shop.hot.settle(running, blind)
    refused = await shop.hot.hold(shop.request(tenant), epoch=1)
    assert isinstance(refused, RefusedHold)
    assert refused.reason is HoldRefusal.NO_EPOCH
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).stale

    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)

    assert await shop.charged() == {before.call_id: before.amount, blind.call_id: blind.amount}
    assert await _balance(shop, tenant) == 10_000_000_000 - before.amount - blind.amount
    async with shop.engine.connect() as connection:
        assert (await epochs(connection))[tenant.shard] == 2
    after = await shop.call(tenant)
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).charges == 1
    assert await _balance(shop, tenant) == 10_000_000_000 - before.amount - blind.amount - after.amount
    await _clean(shop)


async def test_a_clock_that_went_back_hides_no_entry(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    far = "99999999999999-7"
    async with shop.engine.begin() as connection:
        await connection.execute(update(shard).where(shard.c.id == tenant.shard).values(position=far))
    await _flush(redis)
    blind = Hold(shop.request(tenant))
    assert await shop.hot.settle(blind, shop.charge(blind))
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    assert len(await shop.charged()) == 1
    await shop.call(tenant)
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).charges == 1
    await _clean(shop)


async def test_an_empty_stream_keeps_a_position_of_the_future(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    async with shop.engine.begin() as connection:
        await connection.execute(update(shard).where(shard.c.id == tenant.shard).values(position="99999999999999-7"))
    await _flush(redis)
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    await shop.call(tenant)
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).charges == 1
    await _clean(shop)


async def test_a_redis_that_outlived_the_book_gets_an_epoch_above_both(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    raw = await HotConnection.connect(redis.url)
    await raw.execute("SET", SHARD_KEYS[tenant.shard].epoch, "41")
    await raw.close()
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    assert await shop.hot.epoch(tenant.shard) == 42
    await _clean(shop)


async def test_a_redis_that_lost_writes_is_found_and_rebuilt(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    key = f"{SHARD_KEYS[tenant.shard].organization}{tenant.organization_id}"
    raw = await HotConnection.connect(redis.url)
    old = await raw.execute("DUMP", key)
    sent = await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    # As after a power cut: the last second of Redis is gone, and the book has it.
    await raw.execute("RESTORE", key, 0, old, "REPLACE")
    await raw.close()

    await project_all(shop.engine, shop.hot, tenant.shard)
    assert await shop.hot.epoch(tenant.shard) is None
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    assert await _balance(shop, tenant) == 10_000_000_000 - sent.amount
    await _clean(shop)


async def test_dying_before_the_commit_leaves_the_shard_refusing(
    shop: Shop, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    blind = Hold(shop.request(tenant))
    await _flush(redis)
    assert await shop.hot.settle(blind, shop.charge(blind))

    def die(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr("billing.rebuild.failpoint", die)
    with pytest.raises(ConnectionError):
        await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    async with shop.engine.connect() as connection:
        epoch = (await epochs(connection))[tenant.shard]
    assert isinstance(await shop.hot.hold(shop.request(tenant), epoch), RefusedHold)
    assert await shop.charged() == {}

    monkeypatch.undo()
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    assert len(await shop.charged()) == 1
    await _clean(shop)


async def test_charges_that_come_during_the_rebuild_are_waited_for(
    shop: Shop, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    await _flush(redis)
    install, looks = HotStore.install, 0

    async def install_late(self: HotStore, *args: object) -> bool:
        nonlocal looks
        looks += 1
        if looks < 4:
            blind = Hold(shop.request(tenant))
            assert await self.settle(blind, shop.charge(blind))
        return await install(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HotStore, "install", install_late)
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    assert looks == 4
    assert len(await shop.charged()) == 3
    await _clean(shop)


async def test_a_shard_in_other_hands_is_not_rebuilt(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant()
    await _flush(redis)
    async with shop.engine.begin() as connection:
        assert await lease(connection, tenant.shard) is not None
        assert not await ensure_epoch(shop.engine, shop.hot, tenant.shard)
    assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)


async def test_a_lost_projection_is_made_up_for(shop: Shop) -> None:
    tenant = await shop.tenant(paid=1_000)
    await shop.grant(tenant, 500)
    assert await _balance(shop, tenant) == 1_000
    assert await project_all(shop.engine, shop.hot, tenant.shard) == 1
    assert await _balance(shop, tenant) == 1_500
    assert await project_all(shop.engine, shop.hot, tenant.shard) == 0
    async with shop.engine.connect() as connection:
        await project_balance(connection, shop.hot, tenant.organization_id)
        await project_balance(connection, shop.hot, tenant.project_id)
        row = (await connection.execute(select(organization_balance))).one()
    assert row.version == 2
