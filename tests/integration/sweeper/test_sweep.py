"""The sweep: who is dead, what becomes of the calls, and that nothing is charged twice whoever else ends them."""

from __future__ import annotations

import asyncio

import pytest

from billing.hot.connection import HotConnection
from billing.hot.entries import decode_charge
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import START, HotBalance, HotStore
from billing.sweeper import Swept, sweep_shard
from models.call import Charge, Hold, InFlightLimit
from models.errors import BrokenPromise
from models.usage import Ending, UsageSource
from tests.integration.hot.nouns import EPOCH, NOW, Tenant, charge, open_shard, placed
from tests.integration.sweeper.lives import point, silence, suspected_long_ago, sweep

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def charges(store: HotStore, tenant: Tenant) -> list[Charge]:
    """What is on the stream of the tenant's shard."""
    return [decode_charge(entry.charge) for entry in await store.read(tenant.shard, START, 1_000)]


async def money(store: HotStore, tenant: Tenant) -> HotBalance:
    """The tenant's money."""
    found = await store.balance(tenant.shard, tenant.organization_id)
    assert found is not None
    return found


async def test_the_living_are_left_alone(gateway: HotStore, worker: HotStore, tenant: Tenant) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    for _ in range(3):
        assert await sweep(worker, tenant.shard) == Swept(tenant.shard)
    assert await gateway.settle(hold, charge(hold))


async def test_a_long_call_of_a_living_gateway_goes_on(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await silence(raw, worker, tenant.shard, "one")
    await gateway.checkpoint([point(hold)])
    assert await sweep(worker, tenant.shard) == Swept(tenant.shard)


async def test_calls_of_the_dead_are_charged_their_checkpoints(
    gateway: HotStore, other: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    place = (InFlightLimit("a", 10),)
    holds = [await placed(gateway, tenant.request(in_flight=place)) for _ in range(3)]
    alive = await placed(other, tenant.request(in_flight=place))
    accepted, waiting, fresh = holds
    await gateway.checkpoint([point(accepted, 10), point(waiting, 10, accepted=False)])
    await gateway.checkpoint([point(accepted, 30), point(waiting, 10, accepted=False)])
    await silence(raw, worker, tenant.shard, "one")

    swept = await sweep(worker, tenant.shard)
    assert [one.call_id for one in swept.recovered] == [accepted.request.origin.call_id]
    assert {void.hold.request.origin.call_id for void in swept.voided} == {
        hold.request.origin.call_id for hold in (waiting, fresh)
    }
    [recovered] = await charges(worker, tenant)
    assert recovered == swept.recovered[0]
    assert (recovered.amount, recovered.input_tokens) == (30, 30)
    assert (recovered.ending, recovered.usage_source) == (Ending.RECOVERED, UsageSource.CHECKPOINT)
    assert await money(worker, tenant) == HotBalance(970, 100, 0, 30, 1)
    assert [hold.hold.request for hold in await worker.open_holds(tenant.shard, tenant.organization_id)] == [
        alive.request
    ]
    assert await raw.execute("HGETALL", tenant.in_flight_key) == [b"a", b"1"]
    assert (await worker.signs_of_life(tenant.shard)).keys() == {"two"}
    assert await raw.execute("EXISTS", SHARD_KEYS[tenant.shard].suspects) == 0
    # And again: nothing is left to do, and nothing changes.
    assert await sweep(worker, tenant.shard) == Swept(tenant.shard)
    assert await money(worker, tenant) == HotBalance(970, 100, 0, 30, 1)


async def test_one_who_died_before_the_first_sign_is_found(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    await placed(gateway, tenant.request())
    await silence(raw, worker, tenant.shard, "one")
    swept = await sweep(worker, tenant.shard)
    assert (len(swept.recovered), len(swept.voided)) == (0, 1)
    assert await money(worker, tenant) == HotBalance(1_000, 0, 0, 0, 1)


async def test_silence_has_to_last_after_it_was_noticed(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    """Or a Redis that hung for a minute, and answers a worker first, would end the calls of all gateways."""
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await gateway.checkpoint([point(hold)])
    await silence(raw, worker, tenant.shard, "one")
    for _ in range(3):
        assert await sweep_shard(worker, tenant.shard, NOW) == Swept(tenant.shard)
    # The suspicion grows old, but there was a sign meanwhile: the next silence is another one.
    await suspected_long_ago(raw, worker, tenant.shard, "one")
    await gateway.checkpoint([point(hold)])
    assert await sweep_shard(worker, tenant.shard, NOW) == Swept(tenant.shard)
    await silence(raw, worker, tenant.shard, "one", 40_000)
    assert await sweep_shard(worker, tenant.shard, NOW) == Swept(tenant.shard)
    # This one lasts.
    await suspected_long_ago(raw, worker, tenant.shard, "one")
    swept = await sweep_shard(worker, tenant.shard, NOW)
    assert [one.call_id for one in swept.recovered] == [hold.request.origin.call_id]


async def test_holds_without_an_instance_are_nobodys(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    nameless = await placed(worker, tenant.request())
    await placed(gateway, tenant.request())
    await silence(raw, worker, tenant.shard, "one")
    assert len((await sweep(worker, tenant.shard)).voided) == 1
    [left] = await worker.open_holds(tenant.shard, tenant.organization_id)
    assert left.hold.request == nameless.request


async def test_a_late_settle_of_a_recovered_call_changes_nothing(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await gateway.checkpoint([point(hold, 30)])
    await silence(raw, worker, tenant.shard, "one")
    assert len((await sweep(worker, tenant.shard)).recovered) == 1
    assert not await gateway.settle(hold, charge(hold, 60))
    await gateway.checkpoint([point(hold, 40)])
    assert [one.amount for one in await charges(worker, tenant)] == [30]
    assert await money(worker, tenant) == HotBalance(970, 0, 0, 30, 1)


async def test_a_late_settle_of_a_voided_call_counts(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    """Its gateway was only slow: nothing has been charged for what it delivered."""
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await silence(raw, worker, tenant.shard, "one")
    assert len((await sweep(worker, tenant.shard)).voided) == 1
    with pytest.raises(BrokenPromise, match="ended"):
        await gateway.hold(hold.request, EPOCH)
    assert await gateway.settle(hold, charge(hold, 60))
    assert not await gateway.settle(hold, charge(hold, 60))
    assert not await gateway.void(hold)
    [entry] = await worker.read(tenant.shard, START, 10)
    assert (decode_charge(entry.charge).amount, entry.late) == (60, True)
    assert await money(worker, tenant) == HotBalance(940, 0, 0, 60, 1)


async def test_a_gateway_that_settles_first_is_right(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await gateway.checkpoint([point(hold, 30)])
    await silence(raw, worker, tenant.shard, "one")
    [seen], _ = await worker.abandoned(tenant.shard, tenant.organization_id, {"one"})
    assert await gateway.settle(hold, charge(hold, 60))
    # What a sweeper does that has read the hold before it was settled:
    assert not await worker.void(seen.hold, abandoned=True)
    assert await sweep(worker, tenant.shard) == Swept(tenant.shard)
    assert [one.amount for one in await charges(worker, tenant)] == [60]
    assert await money(worker, tenant) == HotBalance(940, 0, 0, 60, 1)


async def test_an_instance_that_lives_after_all_is_not_forgotten(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    await gateway.beat()
    await silence(raw, worker, tenant.shard, "one")
    found = await worker.silence(tenant.shard, suspect_ms=30_000, dead_ms=0)
    assert found is not None
    await placed(gateway, tenant.request())
    [(name, sign)] = found.instances.items()
    assert not await worker.forget(tenant.shard, name, sign)
    assert (await worker.signs_of_life(tenant.shard)).keys() == {"one"}


@pytest.mark.parametrize("is_accepted", [True, False], ids=["recovered", "voided"])
async def test_a_sweep_that_arrives_late_spares_a_gateway_that_is_back(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant, is_accepted: bool
) -> None:
    """A sweeper's command may wait in a Redis that hangs, behind it the gateway's next sign of life, or before it."""
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await gateway.checkpoint([point(hold, 30, accepted=is_accepted)])
    await silence(raw, worker, tenant.shard, "one")
    found = await worker.silence(tenant.shard, suspect_ms=30_000, dead_ms=0)
    assert found is not None
    sign = found.instances["one"]
    await gateway.checkpoint([point(hold, 30, accepted=is_accepted)])
    assert not await worker.recover(hold, charge(hold, 30), "one", sign)
    assert not await worker.abandon(hold, "one", sign)
    assert await money(worker, tenant) == HotBalance(1_000, 100, 0, 0, 1)
    # Silent again, and this is what was read.
    await silence(raw, worker, tenant.shard, "one")
    sign = str((await worker.signs_of_life(tenant.shard))["one"])
    if is_accepted:
        assert await worker.recover(hold, charge(hold, 30), "one", sign)
        assert not await worker.recover(hold, charge(hold, 30), "one", sign)
        assert await money(worker, tenant) == HotBalance(970, 0, 0, 30, 1)
    else:
        assert await worker.abandon(hold, "one", sign)
        assert not await worker.abandon(hold, "one", sign)
        assert await money(worker, tenant) == HotBalance(1_000, 0, 0, 0, 1)


async def test_who_is_watched_no_longer_is_not_alive(gateway: HotStore, worker: HotStore, tenant: Tenant) -> None:
    """Redis may have become blank since the hold was read; the checkpoint in a sweeper's hands is all there is."""
    await open_shard(gateway, tenant)
    hold = Hold(tenant.request())
    assert await worker.recover(hold, charge(hold, 30), "one", "1")
    assert [one.amount for one in await charges(worker, tenant)] == [30]


async def test_many_sweepers_and_late_gateways_at_once(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant, posted=100_000)
    holds = [await placed(gateway, tenant.request()) for _ in range(60)]
    await gateway.checkpoint([point(hold, 30) for hold in holds[:40]])
    await silence(raw, worker, tenant.shard, "one")

    async def late(hold: Hold) -> int:
        return 60 if await gateway.settle(hold, charge(hold, 60)) else 0

    sweeps = [sweep(worker, tenant.shard) for _ in range(8)]
    settles = [late(hold) for hold in holds[::3]]
    results = await asyncio.gather(*sweeps, *settles)
    swept = [one for one in results if isinstance(one, Swept)]
    settled = sum(one for one in results if isinstance(one, int))
    recovered = [one.call_id for look in swept for one in look.recovered]
    assert len(recovered) == len(set(recovered))
    on_stream = await charges(worker, tenant)
    assert len({one.call_id for one in on_stream}) == len(on_stream)
    assert sum(one.amount for one in on_stream) == settled + 30 * len(recovered)
    charged_or_void = {one.call_id for one in on_stream} | {
        void.hold.request.origin.call_id for look in swept for void in look.voided
    }
    assert charged_or_void == {hold.request.origin.call_id for hold in holds}
    spent = settled + 30 * len(recovered)
    assert await money(worker, tenant) == HotBalance(100_000 - spent, 0, 0, spent, 1)


async def test_what_cannot_be_read_stays_and_is_told(
    gateway: HotStore, worker: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(gateway, tenant)
    hold = await placed(gateway, tenant.request())
    await gateway.checkpoint([point(hold)])
    keys = SHARD_KEYS[tenant.shard]
    call = str(hold.request.origin.call_id)
    await raw.execute("HSET", f"{keys.holds}{tenant.organization_id}", "odd", "{}")
    await raw.execute("HSET", f"{keys.checkpoints}{tenant.organization_id}", call, "[]")
    await silence(raw, worker, tenant.shard, "one")
    for _ in range(2):
        swept = await sweep(worker, tenant.shard)
        assert (swept.recovered, swept.voided) == ((), ())
        assert sorted(reason.split(":")[0] for reason in swept.unreadable) == [
            "not a checkpoint of call " + call,
            "not a hold",
        ]
