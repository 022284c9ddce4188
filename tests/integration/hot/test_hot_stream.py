"""The stream as the worker uses it: read, wait, trim."""

from __future__ import annotations

import asyncio

import pytest

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import START, HotStore, StreamEntry
from tests.integration.hot.nouns import Tenant, charge, open_shard, placed

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def settle_some(store: HotStore, tenant: Tenant, count: int) -> list[StreamEntry]:
    await open_shard(store, tenant)
    for _ in range(count):
        hold = await placed(store, tenant.request(10))
        assert await store.settle(hold, charge(hold, 1))
    return await store.read(tenant.shard, START, count)


async def test_reading_goes_on_after_a_position(store: HotStore, tenant: Tenant) -> None:
    entries = await settle_some(store, tenant, 5)
    assert [entry.settled for entry in entries] == [1, 2, 3, 4, 5]
    assert await store.read(tenant.shard, START, 2) == entries[:2]
    assert await store.read(tenant.shard, entries[1].id, 2) == entries[2:4]
    assert await store.read(tenant.shard, entries[4].id, 2) == []


async def test_a_trim_removes_what_is_booked(store: HotStore, tenant: Tenant) -> None:
    entries = await settle_some(store, tenant, 5)
    await store.trim(tenant.shard, START)
    assert await store.read(tenant.shard, START, 10) == entries
    await store.trim(tenant.shard, entries[2].id)
    await store.trim(tenant.shard, entries[1].id)
    assert await store.read(tenant.shard, START, 10) == entries[3:]
    await store.trim(tenant.shard, entries[4].id)
    assert await store.read(tenant.shard, START, 10) == []


async def test_an_entry_without_a_charge_does_not_stop_the_reader(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    name = await raw.execute("XADD", SHARD_KEYS[tenant.shard].stream, "*", "strange", "field")
    assert await store.read(tenant.shard, START, 10) == [StreamEntry(name.decode(), b"", None, False)]


async def test_a_wait_ends_without_an_entry(store: HotStore, tenant: Tenant) -> None:
    (last,) = await settle_some(store, tenant, 1)
    assert not await store.wait({tenant.shard: last.id, (tenant.shard + 1) % 16: START}, timeout_ms=10)


async def test_a_wait_sees_what_is_there_already(store: HotStore, tenant: Tenant) -> None:
    await settle_some(store, tenant, 1)
    assert await store.wait({tenant.shard: START}, timeout_ms=10_000)


async def test_a_wait_ends_with_a_settle_and_holds_up_no_call(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request())
    waiting = asyncio.create_task(store.wait({shard: START for shard in range(16)}, timeout_ms=10_000))
    async with asyncio.timeout(5):
        while store._waiting is None or not store._waiting.connected:
            await store.ping()
        assert not waiting.done()
        assert await store.settle(hold, charge(hold))
        assert await waiting


async def test_a_cancelled_wait_does_not_hold_up_the_next(store: HotStore, tenant: Tenant) -> None:
    await settle_some(store, tenant, 1)
    waiting = asyncio.create_task(store.wait({(tenant.shard + 1) % 16: START}, timeout_ms=60_000))
    async with asyncio.timeout(5):
        while store._waiting is None or not store._waiting.connected:
            await store.ping()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5):
        while not store._waiting.connected:
            await store.ping()
        assert await store.wait({tenant.shard: START}, timeout_ms=10_000)
