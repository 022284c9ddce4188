"""Balances from Postgres: projected in any order, installed by a rebuild that no entry slips past."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from billing.hot.connection import Argument, HotConnection, Script
from billing.hot.store import INSTALL_CHUNK, START, HotBalance, HotStore, NewBalance
from models.call import Hold, HoldRefusal, InFlightLimit, RateBucket, RefusedHold
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard, placed

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def project(
    store: HotStore, tenant: Tenant, posted: int, booked_total: int, version: int, epoch: int = EPOCH
) -> bool:
    return await store.project(
        tenant.shard,
        tenant.organization_id,
        posted=posted,
        booked_total=booked_total,
        credit_limit=5,
        version=version,
        epoch=epoch,
    )


async def spend(store: HotStore, tenant: Tenant, amount: int) -> None:
    hold = await placed(store, tenant.request(amount))
    assert await store.settle(hold, charge(hold, amount))


async def test_a_new_organization_is_projected_into_an_open_shard(store: HotStore, tenant: Tenant) -> None:
    await store.install(tenant.shard, EPOCH, START, [])
    assert await store.balance(tenant.shard, tenant.organization_id) is None
    assert await project(store, tenant, posted=100, booked_total=0, version=0)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(100, 0, 5, 0, 0)


async def test_what_is_settled_and_not_booked_stays_off_the_balance(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant, posted=1_000)
    await spend(store, tenant, 100)
    await spend(store, tenant, 20)
    await placed(store, tenant.request(7))
    # Postgres has booked the first charge, and a grant of 50.
    assert await project(store, tenant, posted=1_000 - 100 + 50, booked_total=100, version=2)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(930, 7, 5, 120, 2)


@pytest.mark.parametrize("order", list(permutations([2, 3, 4])))
async def test_the_newest_projection_wins_in_any_order(store: HotStore, tenant: Tenant, order: tuple[int, ...]) -> None:
    await open_shard(store, tenant)
    newest = 1
    for version in order + order:
        assert await project(store, tenant, posted=version * 10, booked_total=0, version=version) is (version > newest)
        newest = max(newest, version)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(40, 0, 5, 0, 4)


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
async def test_a_projection_of_another_epoch_is_ignored(store: HotStore, tenant: Tenant, epoch: int) -> None:
    await open_shard(store, tenant)
    assert not await project(store, tenant, posted=1, booked_total=0, version=9, epoch=epoch)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(1_000, 0, 0, 0, 1)


async def test_a_late_charge_before_the_first_projection_counts(store: HotStore, tenant: Tenant) -> None:
    assert await store.install(tenant.shard, EPOCH, START, [])
    late = Hold(tenant.request())
    assert await store.settle(late, charge(late, 60))
    assert await project(store, tenant, posted=100, booked_total=0, version=1)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(40, 0, 5, 60, 1)


@pytest.mark.parametrize("lost", [1, 2**53], ids=["a unit", "beyond doubles"])
async def test_a_redis_that_lost_settlements_stops_serving(
    store: HotStore, raw: HotConnection, tenant: Tenant, lost: int
) -> None:
    await open_shard(store, tenant)
    await spend(store, tenant, 100)
    assert not await project(store, tenant, posted=900, booked_total=100 + lost, version=2)
    assert await store.epoch(tenant.shard) is None
    assert await store.hold(tenant.request(1), EPOCH) == RefusedHold(HoldRefusal.NO_EPOCH)


async def test_epoch(store: HotStore, tenant: Tenant) -> None:
    assert await store.epoch(tenant.shard) is None
    await open_shard(store, tenant)
    assert await store.epoch(tenant.shard) == EPOCH


async def test_an_install_replaces_everything_of_the_organizations(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    buckets, places = (RateBucket("a:tokens", 1_000, 500),), (InFlightLimit("a", 1),)
    await placed(store, tenant.request(buckets=buckets, in_flight=places))
    assert await store.install(tenant.shard, EPOCH + 1, START, [NewBalance(tenant.organization_id, 300, 9, 8)])
    assert await store.epoch(tenant.shard) == EPOCH + 1
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(300, 0, 9, 0, 8)
    assert await store.open_holds(tenant.shard, tenant.organization_id) == ()
    assert await raw.execute("EXISTS", tenant.rates_key, tenant.in_flight_key) == 0


async def test_an_install_stops_at_an_entry_that_is_not_booked(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    await spend(store, tenant, 100)
    (booked,) = await store.read(tenant.shard, START, 10)
    await spend(store, tenant, 20)
    new = [NewBalance(tenant.organization_id, 900, 0, 2)]
    for position in (START, booked.id):
        assert not await store.install(tenant.shard, EPOCH + 1, position, new)
        assert await store.epoch(tenant.shard) == EPOCH
        assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(880, 0, 0, 120, 1)
    (_, last) = await store.read(tenant.shard, START, 10)
    assert await store.install(tenant.shard, EPOCH + 1, last.id, new)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(900, 0, 0, 0, 2)


async def test_an_install_after_a_trim(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    await spend(store, tenant, 100)
    (booked,) = await store.read(tenant.shard, START, 10)
    await store.trim(tenant.shard, booked.id)
    assert await store.install(tenant.shard, EPOCH + 1, booked.id, [])
    assert await store.epoch(tenant.shard) == EPOCH + 1


async def test_a_settle_in_the_middle_of_a_rebuild_is_not_lost(
    store: HotStore, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request())
    new = [NewBalance(tenant.organization_id, 1_000, 0, 2)]
    new += [NewBalance(Tenant().organization_id, 1, 0, 1) for _ in range(INSTALL_CHUNK)]
    run = store._run

    async def run_and_settle(script: Script, key_count: int, *arguments: Argument) -> Any:
        answer = await run(script, key_count, *arguments)
        await store.settle(hold, charge(hold))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(store, "_run", run_and_settle)
        assert not await store.install(tenant.shard, EPOCH + 1, START, new)
    assert await store.hold(tenant.request(), EPOCH) == RefusedHold(HoldRefusal.NO_EPOCH)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(1_000, 0, 0, 0, 2)
    (entry,) = await store.read(tenant.shard, START, 10)
    assert entry.settled is None
    assert await store.install(tenant.shard, EPOCH + 1, entry.id, new)
    assert await store.epoch(tenant.shard) == EPOCH + 1


async def test_a_shard_of_many_organizations_is_installed_in_chunks(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    tenants = [Tenant() for _ in range(2 * INSTALL_CHUNK + 1)]
    balances = [NewBalance(each.organization_id, index, 0, 1) for index, each in enumerate(tenants)]
    assert await store.install(tenant.shard, EPOCH, START, balances)
    assert await store.epoch(tenant.shard) == EPOCH
    for index in (0, INSTALL_CHUNK, 2 * INSTALL_CHUNK):
        found = await store.balance(tenant.shard, tenants[index].organization_id)
        assert found == HotBalance(index, 0, 0, 0, 1)


async def test_after_a_rebuild_entries_are_numbered_above_the_position(store: HotStore, tenant: Tenant) -> None:
    """The clock of a new Redis may be behind that of the old one, whose numbers Postgres knows."""
    position = "4000000000000-5"
    assert await store.install(tenant.shard, EPOCH, position, [NewBalance(tenant.organization_id, 1_000, 0, 1)])
    assert await store.read(tenant.shard, START, 10) == []
    await spend(store, tenant, 100)
    (entry,) = await store.read(tenant.shard, position, 10)
    assert entry.settled == 100
