"""Checkpoints: one write for all open calls, gone with their calls, and a sign of life in every shard."""

from __future__ import annotations

import asyncio

import pytest

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS, SHARDS
from billing.hot.store import CHECKPOINT_CHUNK, START, HotStore, NewBalance
from models.errors import Unavailable
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard, placed
from tests.integration.sweeper.lives import point

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def kept(raw: HotConnection, tenant: Tenant) -> int:
    """How many checkpoints of the tenant's calls there are."""
    return int(await raw.execute("HLEN", f"{SHARD_KEYS[tenant.shard].checkpoints}{tenant.organization_id}"))


async def test_calls_of_many_organizations_are_kept(gateway: HotStore, raw: HotConnection) -> None:
    tenants = [Tenant() for _ in range(40)]
    holds = []
    for tenant in tenants:
        await open_shard(gateway, tenant)
        holds += [await placed(gateway, tenant.request()) for _ in range(3)]
    await gateway.checkpoint([point(hold, 7) for hold in holds])
    await gateway.checkpoint([point(hold, 8) for hold in holds])
    for tenant in tenants:
        found, unreadable = await gateway.abandoned(tenant.shard, tenant.organization_id, {"one"})
        assert unreadable == []
        mine = [hold for hold in holds if hold.request.origin.organization_id == tenant.organization_id]
        assert {one.hold.request.origin.call_id: one.checkpoint for one in found} == {
            hold.request.origin.call_id: point(hold, 8) for hold in mine
        }


async def test_more_calls_than_one_script_writes(gateway: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    count = CHECKPOINT_CHUNK + 1
    holds = await asyncio.gather(*(placed(gateway, tenant.request(1)) for _ in range(count)))
    await gateway.checkpoint([point(hold) for hold in holds])
    assert await kept(raw, tenant) == count


async def test_a_checkpoint_goes_with_its_call(gateway: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    settled, voided, running = [await placed(gateway, tenant.request()) for _ in range(3)]
    points = [point(hold) for hold in (settled, voided, running)]
    await gateway.checkpoint(points)
    assert await gateway.settle(settled, charge(settled))
    assert await gateway.void(voided)
    assert await kept(raw, tenant) == 1
    # A checkpoint that was on its way when its call ended is dropped.
    await gateway.checkpoint(points)
    assert await kept(raw, tenant) == 1


async def test_organizations_with_open_calls_are_known(gateway: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    key, name = SHARD_KEYS[tenant.shard].open, str(tenant.organization_id).encode()
    first, second = await placed(gateway, tenant.request()), await placed(gateway, tenant.request())
    assert await raw.execute("SMEMBERS", key) == [name]
    assert await gateway.settle(first, charge(first))
    assert await raw.execute("SMEMBERS", key) == [name]
    assert await gateway.void(second)
    assert await raw.execute("SMEMBERS", key) == []


async def test_a_rebuild_leaves_nothing_behind(gateway: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    await gateway.checkpoint([point(await placed(gateway, tenant.request()))])
    assert await gateway.install(tenant.shard, EPOCH + 1, START, [NewBalance(tenant.organization_id, 300, 0, 8)])
    assert await raw.execute("EXISTS", SHARD_KEYS[tenant.shard].open) == 0
    assert await kept(raw, tenant) == 0


async def test_an_instance_is_seen_in_every_shard(gateway: HotStore) -> None:
    await gateway.beat()
    now_ms = await gateway.clock_ms()
    for shard in range(SHARDS):
        signs = await gateway.signs_of_life(shard)
        assert signs.keys() == {"one"}
        assert 0 <= now_ms - signs["one"] < 5_000


async def test_a_quiet_shard_is_not_written_every_second(gateway: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await gateway.beat()
    for shard in range(SHARDS):
        await raw.execute("DEL", SHARD_KEYS[shard].instances)
    await gateway.checkpoint([point(hold)])
    seen = [shard for shard in range(SHARDS) if await gateway.signs_of_life(shard)]
    assert seen == [tenant.shard]


async def test_whoever_takes_a_hold_is_alive(gateway: HotStore, worker: HotStore, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    await placed(worker, tenant.request())
    assert await gateway.signs_of_life(tenant.shard) == {}
    await placed(gateway, tenant.request())
    assert (await gateway.signs_of_life(tenant.shard)).keys() == {"one"}
    holds = await gateway.open_holds(tenant.shard, tenant.organization_id)
    assert {hold.instance for hold in holds} == {"", "one"}


async def test_when_memory_is_full_gateways_still_show_that_they_live(
    gateway: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await raw.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="OOM"):
            await gateway.hold(tenant.request(), EPOCH)
        await gateway.checkpoint([point(hold)])
    finally:
        await raw.execute("CONFIG", "SET", "maxmemory", 0)
    assert await kept(raw, tenant) == 1
    assert (await gateway.signs_of_life((tenant.shard + 1) % SHARDS)).keys() == {"one"}
