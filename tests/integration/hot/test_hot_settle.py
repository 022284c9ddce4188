"""The two ends of a call: settle and void, once whatever happens, on time, late, and on a blank Redis."""

from __future__ import annotations

import asyncio

import pytest

from billing.hot.connection import HotConnection
from billing.hot.entries import decode_charge
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import START, HotBalance, HotStore
from models.call import Hold, InFlightLimit, RateBucket
from models.errors import BrokenPromise, Unavailable
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard, placed

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

FAR_MS = 4_000_000_000_000


async def test_a_settle_releases_debits_and_appends(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    first, second = await placed(store, tenant.request(100)), await placed(store, tenant.request(100))
    assert await store.settle(first, charge(first, 60))
    assert await store.settle(second, charge(second, 100))
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(840, 0, 0, 160, 1)
    assert await store.open_holds(tenant.shard, tenant.organization_id) == ()
    entries = await store.read(tenant.shard, START, 10)
    assert [decode_charge(entry.charge) for entry in entries] == [charge(first, 60), charge(second, 100)]
    assert [(entry.settled, entry.late) for entry in entries] == [(60, False), (160, False)]


async def test_a_free_call_is_settled_too(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant, posted=0)
    hold = await placed(store, tenant.request(0))
    assert await store.settle(hold, charge(hold, 0))
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(0, 0, 0, 0, 1)
    assert len(await store.read(tenant.shard, START, 10)) == 1


async def test_of_many_settles_of_one_call_one_counts(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request())
    answers = await asyncio.gather(*(store.settle(hold, charge(hold)) for _ in range(20)))
    assert sorted(answers) == [False] * 19 + [True]
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(940, 0, 0, 60, 1)
    assert len(await store.read(tenant.shard, START, 100)) == 1


async def test_the_end_of_a_call_is_remembered_for_an_hour(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    settled, voided = await placed(store, tenant.request()), await placed(store, tenant.request())
    await store.settle(settled, charge(settled))
    await store.void(voided)
    for hold in (settled, voided):
        marker = f"{SHARD_KEYS[tenant.shard].done}{hold.request.origin.call_id}"
        assert 3_590 < await raw.execute("TTL", marker) <= 3_600


async def test_running_totals_beyond_2_to_the_53_are_exact(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    key = f"{SHARD_KEYS[tenant.shard].organization}{tenant.organization_id}"
    await raw.execute("HSET", key, "settled", 2**53)
    hold = await placed(store, tenant.request())
    assert await store.settle(hold, charge(hold, 1))
    (entry,) = await store.read(tenant.shard, START, 10)
    assert entry.settled == 2**53 + 1
    assert await store.project(
        tenant.shard,
        tenant.organization_id,
        posted=500,
        booked_total=2**53 - 6,
        credit_limit=0,
        version=2,
        epoch=EPOCH,
    )
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(493, 0, 0, 2**53 + 1, 2)


async def test_large_amounts_are_exact_to_the_unit(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant, posted=9 * 10**15)
    hold = await placed(store, tenant.request(8_999_999_999_999_999))
    assert await store.settle(hold, charge(hold, 8_999_999_999_999_997))
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(3, 0, 0, 8_999_999_999_999_997, 1)


async def test_a_blank_redis_keeps_the_charge_and_touches_no_balance(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request())
    await raw.execute("FLUSHALL")
    assert await store.settle(hold, charge(hold))
    assert not await store.settle(hold, charge(hold))
    (entry,) = await store.read(tenant.shard, START, 10)
    assert decode_charge(entry.charge) == charge(hold)
    assert (entry.settled, entry.late) == (None, False)
    assert await store.balance(tenant.shard, tenant.organization_id) is None


async def test_a_late_settle_is_debited_and_marked(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request())
    await raw.execute("FLUSHALL")
    await open_shard(store, tenant, posted=10)
    assert await store.settle(hold, charge(hold))
    # Below zero: the tokens were delivered, and what was held for them went with the old Redis.
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(-50, 0, 0, 60, 1)
    (entry,) = await store.read(tenant.shard, START, 10)
    assert (entry.settled, entry.late) == (60, True)


@pytest.mark.parametrize(
    ("used", "left"),
    [
        pytest.param(60, 60, id="what was not used comes back"),
        pytest.param(0, 0, id="nothing was used"),
        pytest.param(500, 500, id="all was used"),
        pytest.param(700, 500, id="more than was reserved: the level stays"),
    ],
)
async def test_unused_tokens_come_back(
    store: HotStore, raw: HotConnection, tenant: Tenant, used: int, left: int
) -> None:
    await open_shard(store, tenant)
    for scope in ("a:tokens", "a:requests"):
        await raw.execute("HSET", tenant.rates_key, scope, f"0 {FAR_MS}")
    buckets = (RateBucket("a:tokens", 1_000, 500), RateBucket("a:requests", 10, 1))
    hold = await placed(store, tenant.request(buckets=buckets))
    for scope, level in (("a:tokens", 500), ("a:requests", 1)):
        await raw.execute("HSET", tenant.rates_key, scope, f"{level * 60_000} {FAR_MS}")
    assert await store.settle(hold, charge(hold, tokens=used))
    levels = await raw.execute("HMGET", tenant.rates_key, "a:tokens", "a:requests")
    assert [int(level.split()[0]) // 60_000 for level in levels] == [left, 1]


async def test_tokens_come_back_to_a_bucket_that_was_forgotten(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request(buckets=(RateBucket("a:tokens", 1_000, 500),)))
    await raw.execute("DEL", tenant.rates_key)
    assert await store.settle(hold, charge(hold))
    level = await raw.execute("HGET", tenant.rates_key, "a:tokens")
    assert level.startswith(b"0 ")


async def test_a_void_gives_back_everything_but_the_request(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    for scope in ("a:tokens", "a:requests"):
        await raw.execute("HSET", tenant.rates_key, scope, f"0 {FAR_MS}")
    buckets = (RateBucket("a:tokens", 1_000, 500), RateBucket("a:requests", 10, 1))
    hold = await placed(store, tenant.request(buckets=buckets, in_flight=(InFlightLimit("a", 1),)))
    assert await store.void(hold)
    assert not await store.void(hold)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(1_000, 0, 0, 0, 1)
    assert await raw.execute("EXISTS", tenant.in_flight_key) == 0
    assert (await raw.execute("HGET", tenant.rates_key, "a:tokens")).startswith(b"0 ")
    assert not (await raw.execute("HGET", tenant.rates_key, "a:requests")).startswith(b"0 ")
    assert await store.read(tenant.shard, START, 10) == []


async def test_the_first_end_of_a_call_stays(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    voided, settled = await placed(store, tenant.request()), await placed(store, tenant.request())
    assert await store.void(voided)
    assert not await store.settle(voided, charge(voided))
    assert await store.settle(settled, charge(settled))
    assert not await store.void(settled)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(940, 0, 0, 60, 1)


async def test_a_void_overtakes_a_hold_that_is_still_on_its_way(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    hold = Hold(tenant.request())
    assert not await store.void(hold)
    with pytest.raises(BrokenPromise, match="ended"):
        await store.hold(hold.request, EPOCH)


async def test_a_void_on_a_blank_redis_changes_nothing(store: HotStore, tenant: Tenant) -> None:
    assert not await store.void(Hold(tenant.request()))
    assert await store.balance(tenant.shard, tenant.organization_id) is None


async def test_when_memory_is_full_calls_end_but_none_begins(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    settled, voided = await placed(store, tenant.request()), await placed(store, tenant.request())
    await raw.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match=r"Redis: OOM command not allowed"):
            await store.hold(tenant.request(), EPOCH)
        assert await store.settle(settled, charge(settled))
        assert await store.void(voided)
    finally:
        await raw.execute("CONFIG", "SET", "maxmemory", 0)
    assert await store.balance(tenant.shard, tenant.organization_id) == HotBalance(940, 0, 0, 60, 1)
    assert await store.open_holds(tenant.shard, tenant.organization_id) == ()
