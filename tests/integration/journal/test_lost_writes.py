"""Redis loses what it had acknowledged while a gateway lives: the charges in its journals are settled again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from billing.hot.store import START, HotStore, make_hot_store
from billing.journal.settles import settle_record
from billing.rebuild import ensure_epoch
from billing.settlement import book_shard
from gateway.catalog import CatalogCache
from gateway.embedded import redis as embedded_redis
from gateway.embedded.redis import Redis
from gateway.recovery import Recovery
from models.call import Charge
from models.errors import Unavailable
from tests.integration.book.conftest import engine, hot, shop
from tests.integration.book.shop import Shop, Tenant, now, until
from tests.integration.journal.conftest import Opening

__all__ = ["engine", "hot", "shop"]

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PAID = 10_000_000_000


@pytest.fixture
async def gateway(redis: Redis) -> AsyncIterator[HotStore]:
    """The store of a gateway that has a name."""
    store = await make_hot_store(redis.url, instance="one")
    yield store
    await store.close()


@asynccontextmanager
async def recovering(recovery: Recovery) -> AsyncIterator[None]:
    """A gateway whose recovery runs, and which has looked at the catalog."""
    await recovery.catalog.refresh(force=True)
    stop = asyncio.Event()
    running = asyncio.create_task(recovery.run(stop))
    yield
    stop.set()
    await running


async def book(shop: Shop, tenant: Tenant, charge: Charge) -> None:
    """What a worker does; the charge is in the book then, once."""
    await book_shard(shop.engine, shop.hot, tenant.shard)
    assert await shop.charged() == {charge.call_id: charge.amount}


async def test_a_call_whose_settle_a_restarted_redis_has_lost(opened: Opening, shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=PAID)
    journal = opened()
    hold = await shop.hold(tenant)
    charge = shop.charge(hold)
    before = {key: await shop.hot._execute("DUMP", key) for key in await shop.hot._execute("KEYS", "*")}
    await journal.append(settle_record(hold, charge))
    assert await shop.hot.settle(hold, charge)

    async with recovering(Recovery(journal, shop.hot, shop.engine, CatalogCache(shop.engine, 60), now, tuple)):
        # The server comes back with what it had on disk a second ago; its epoch is still the right one.
        embedded_redis.command(redis, "FLUSHALL")
        for key, value in before.items():
            await shop.hot._execute("RESTORE", key, 0, value)
        shop.hot._connection.drop("the server was restarted")
        await until(lambda: _waits(shop.hot, tenant))
        await book(shop, tenant, charge)


async def test_a_settle_that_was_lost_while_the_disk_of_the_journal_hangs(
    opened: Opening, shop: Shop, redis: Redis
) -> None:
    tenant = await shop.tenant(paid=PAID)
    journal = opened()
    hold = await shop.hold(tenant)
    charge = shop.charge(hold)
    journal._batches._write = lambda records: None
    journal.start(settle_record(hold, charge), lambda error: None)
    assert await shop.hot.settle(hold, charge)

    async with recovering(Recovery(journal, shop.hot, shop.engine, CatalogCache(shop.engine, 60), now, tuple)):
        embedded_redis.command(redis, "FLUSHALL")
        assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
        shop.hot._connection.drop("the server was restarted")
        await until(lambda: _waits(shop.hot, tenant))
        await book(shop, tenant, charge)


async def test_a_hold_whose_void_a_restarted_redis_has_lost(
    opened: Opening, shop: Shop, gateway: HotStore, redis: Redis
) -> None:
    tenant = await shop.tenant(paid=PAID)
    calls = Shop(shop.engine, gateway)
    calls.rates = shop.rates
    ended, running = await calls.hold(tenant), await calls.hold(tenant)
    recovery = Recovery(opened(), gateway, shop.engine, CatalogCache(shop.engine, 60), now, tuple)
    recovery.running = lambda: [running.request.origin.call_id]

    async def left() -> bool:
        with suppress(Unavailable):
            holds = await gateway.open_holds(tenant.shard, tenant.organization_id)
            return [hold.hold for hold in holds] == [running]
        return False

    async with recovering(recovery):
        # The call has ended: its void was acknowledged, and is gone.
        gateway._connection.drop("the server was restarted")
        await until(left)
    # Were its settle still on its way, it would count.
    assert await gateway.settle(ended, shop.charge(ended))


async def test_an_inherited_call_that_a_blank_redis_has_lost(opened: Opening, shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=PAID)
    hold = await shop.hold(tenant)
    charge = shop.charge(hold)
    dead = opened()
    await dead.append(settle_record(hold, charge))
    assert await shop.hot.settle(hold, charge)
    await dead.close()

    journal = opened()
    recovery = Recovery(journal, shop.hot, shop.engine, CatalogCache(shop.engine, 60), now, tuple)

    async def inherited() -> bool:
        return charge.call_id in journal.unconfirmed()

    async with recovering(recovery):
        await until(inherited)
        # It had ended in Redis, so there was nothing to do; before it is booked, Redis forgets it.
        embedded_redis.command(redis, "FLUSHALL")
        assert await ensure_epoch(shop.engine, shop.hot, tenant.shard)
        await recovery.catalog.refresh(force=True)
        await until(lambda: _waits(shop.hot, tenant))
        await book(shop, tenant, charge)


async def _waits(hot: HotStore, tenant: Tenant) -> bool:
    with suppress(Unavailable):
        return bool(await hot.read(tenant.shard, START, 1))
    return False
