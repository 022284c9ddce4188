"""Every answer of the hold: placed, refused for each reason, repeated, and many at once."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import HotBalance, HotStore, NewBalance
from models.call import BucketState, Hold, HoldRefusal, InFlightLimit, RateBucket, RefusedHold
from models.errors import BrokenPromise
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard, placed, with_amount

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

FAR_MS = 4_000_000_000_000
"""A moment that has not come: a bucket written then has not begun to drain, so levels are exact."""


async def fill(raw: HotConnection, tenant: Tenant, scope: str, level: int, at_ms: int = FAR_MS) -> None:
    """Set the level of a rate bucket, in calls or tokens."""
    await raw.execute("HSET", tenant.rates_key, scope, f"{level * 60_000} {at_ms}")


async def redis_now_ms(raw: HotConnection) -> int:
    seconds, microseconds = await raw.execute("TIME")
    return int(seconds) * 1_000 + int(microseconds) // 1_000


async def balance_of(store: HotStore, tenant: Tenant) -> HotBalance:
    balance = await store.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    return balance


async def test_a_hold_is_kept_with_all_that_is_needed_to_end_it(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    request = tenant.request(
        300,
        buckets=(RateBucket("key:a:tokens", 1_000, 20),),
        in_flight=(InFlightLimit("key:a", 2),),
        end_user='quote " backslash \\ snowman ☃ "amount":"999"',
    )
    before_ms = await store.clock_ms()
    hold = await placed(store, request)
    (kept,) = await store.open_holds(tenant.shard, tenant.organization_id)
    assert kept.hold.request == request == hold.request
    assert before_ms <= kept.placed_at_ms <= await store.clock_ms()
    assert await balance_of(store, tenant) == HotBalance(1_000, 300, 0, 0, 1)


async def test_without_an_epoch_nothing_is_served(store: HotStore, tenant: Tenant) -> None:
    assert await store.hold(tenant.request(), EPOCH) == RefusedHold(HoldRefusal.NO_EPOCH)


@pytest.mark.parametrize("asked", [EPOCH - 1, EPOCH + 1])
async def test_another_epoch_is_refused(store: HotStore, tenant: Tenant, asked: int) -> None:
    await open_shard(store, tenant)
    assert await store.hold(tenant.request(), asked) == RefusedHold(HoldRefusal.NO_EPOCH)


async def test_an_organization_that_was_never_projected_is_unknown(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    stranger = Tenant(organization_id=UUID(int=tenant.organization_id.int ^ 1 << 40))
    assert stranger.shard == tenant.shard
    assert await store.hold(stranger.request(), EPOCH) == RefusedHold(HoldRefusal.UNKNOWN_ORGANIZATION)


async def test_an_organization_of_which_only_a_late_charge_is_known_is_unknown(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, Tenant(organization_id=UUID(int=tenant.shard)))
    late = Hold(tenant.request())
    assert await store.settle(late, charge(late))
    refused = await store.hold(tenant.request(), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert refused.reason is HoldRefusal.UNKNOWN_ORGANIZATION


@pytest.mark.parametrize(
    ("posted", "credit_limit", "amount", "fits"),
    [
        pytest.param(100, 0, 100, True, id="the last unit can be held"),
        pytest.param(100, 0, 101, False, id="one unit more cannot"),
        pytest.param(0, 50, 50, True, id="a credit limit is money"),
        pytest.param(-20, 50, 30, True, id="what is left of a credit limit"),
        pytest.param(-20, 50, 31, False, id="no more than is left of it"),
        pytest.param(0, 0, 0, True, id="a free call needs no money"),
        pytest.param(-1, 0, 0, False, id="a free call of an overdrawn organization"),
        pytest.param(9 * 10**15, 9 * 10**15, 9 * 10**15, True, id="the largest amounts"),
        pytest.param(1, 9 * 10**15 - 1, 9 * 10**15, True, id="the last unit near 2^53"),
        pytest.param(0, 9 * 10**15 - 1, 9 * 10**15, False, id="one unit short near 2^53"),
    ],
)
async def test_money(store: HotStore, tenant: Tenant, posted: int, credit_limit: int, amount: int, fits: bool) -> None:
    await open_shard(store, tenant, posted, credit_limit)
    answer = await store.hold(tenant.request(amount), EPOCH)
    if fits:
        assert isinstance(answer, Hold)
        assert (await balance_of(store, tenant)).held == amount
    else:
        assert answer == RefusedHold(HoldRefusal.BALANCE, available=posted + credit_limit)  # type: ignore[arg-type]
        assert (await balance_of(store, tenant)).held == 0


async def test_a_balance_beyond_what_lua_compares_exactly_is_refused(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    key = f"{SHARD_KEYS[tenant.shard].organization}{tenant.organization_id}"
    await raw.execute("HSET", key, "balance", 9 * 10**15 + 1)
    refused = await store.hold(tenant.request(), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert refused.reason is HoldRefusal.BALANCE


async def test_the_same_hold_again_is_the_same_answer(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    request = tenant.request(buckets=(RateBucket("key:a:requests", 10, 1),), in_flight=(InFlightLimit("key:a", 1),))
    first = await placed(store, request)
    again = await placed(store, request)
    assert first.request == again.request
    assert [state.remaining for state in again.buckets] == [9]
    assert (await balance_of(store, tenant)).held == 100
    assert len(await store.open_holds(tenant.shard, tenant.organization_id)) == 1


async def test_one_call_id_cannot_hold_two_things(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request(100))
    with pytest.raises(BrokenPromise, match="used twice"):
        await store.hold(with_amount(hold.request, 101), EPOCH)


async def test_a_call_that_ended_cannot_be_held_again(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    hold = await placed(store, tenant.request())
    assert await store.settle(hold, charge(hold))
    with pytest.raises(BrokenPromise, match="ended"):
        await store.hold(hold.request, EPOCH)


async def test_of_300_holds_at_once_as_many_are_placed_as_there_is_money(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant, posted=1_099)
    answers = await asyncio.gather(*(store.hold(tenant.request(100), EPOCH) for _ in range(300)))
    assert sum(isinstance(answer, Hold) for answer in answers) == 10
    assert {answer.reason for answer in answers if isinstance(answer, RefusedHold)} == {HoldRefusal.BALANCE}
    assert await balance_of(store, tenant) == HotBalance(1_099, 1_000, 0, 0, 1)


async def test_calls_in_flight(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    limits = (InFlightLimit("project:p", 3), InFlightLimit("key:a", 2))
    first = await placed(store, tenant.request(in_flight=limits))
    second = await placed(store, tenant.request(in_flight=limits))
    refused = await store.hold(tenant.request(in_flight=limits), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert (refused.reason, refused.scope) == (HoldRefusal.IN_FLIGHT, "key:a")
    assert await raw.execute("HGETALL", tenant.in_flight_key) == [b"project:p", b"2", b"key:a", b"2"]
    assert await store.void(first)
    assert isinstance(await store.hold(tenant.request(in_flight=limits[:1]), EPOCH), Hold)
    assert await store.settle(second, charge(second))
    assert await raw.execute("HGETALL", tenant.in_flight_key) == [b"project:p", b"1"]


async def test_no_call_passes_a_limit_of_no_calls(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    refused = await store.hold(tenant.request(in_flight=(InFlightLimit("key:a", 0),)), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert refused.reason is HoldRefusal.IN_FLIGHT


@pytest.mark.parametrize(
    ("level", "per_minute", "cost", "retry_after_ms", "state"),
    [
        pytest.param(0, 60, 1, None, (59, 1_000), id="an empty bucket takes one of sixty"),
        pytest.param(59, 60, 1, None, (0, 60_000), id="the last one of a minute"),
        pytest.param(60, 60, 1, 1_000, (0, 60_000), id="full: one place is free in a second"),
        pytest.param(60, 60, 30, 30_000, (0, 60_000), id="full: thirty places in half a minute"),
        pytest.param(50, 60, 15, 5_000, (10, 50_000), id="five too many: five seconds"),
        pytest.param(0, 7, 7, None, (0, 60_000), id="a whole minute at once"),
        pytest.param(7, 7, 1, 8_572, (0, 60_000), id="60,000 / 7 is rounded up: earlier would be refused"),
        pytest.param(0, 60, 61, 0, (60, 0), id="more than a minute's worth never passes"),
        pytest.param(0, 0, 1, 0, (0, 0), id="a limit of nothing"),
        pytest.param(80, 60, 0, 20_000, (0, 80_000), id="above a limit that was lowered"),
        pytest.param(0, 10**9, 10**8, None, (9 * 10**8, 6_000), id="a billion tokens a minute"),
    ],
)
async def test_rate(
    store: HotStore,
    raw: HotConnection,
    tenant: Tenant,
    level: int,
    per_minute: int,
    cost: int,
    retry_after_ms: int | None,
    state: tuple[int, int],
) -> None:
    await open_shard(store, tenant)
    scope = "key:a:tokens"
    await fill(raw, tenant, scope, level)
    # A second, empty bucket shows that all are reported and that a refusal by one leaves the others alone.
    buckets = (RateBucket(scope, per_minute, cost), RateBucket("key:a:requests", 10, 0))
    answer = await store.hold(tenant.request(buckets=buckets), EPOCH)
    assert answer.buckets[0] == BucketState(scope, per_minute, *state)
    assert answer.buckets[1] == BucketState("key:a:requests", 10, 10, 0)
    if retry_after_ms is None:
        assert isinstance(answer, Hold)
    else:
        assert isinstance(answer, RefusedHold)
        assert (answer.reason, answer.scope) == (HoldRefusal.RATE, scope)
        assert answer.retry_after_ms == retry_after_ms
        assert await raw.execute("HGET", tenant.rates_key, scope) == f"{level * 60_000} {FAR_MS}".encode()


async def test_a_bucket_drains_evenly(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    written_ms = await redis_now_ms(raw) - 30_000
    await fill(raw, tenant, "key:a:tokens", 60_000, written_ms)
    hold = await placed(store, tenant.request(buckets=(RateBucket("key:a:tokens", 60_000, 0),)))
    elapsed_ms = await redis_now_ms(raw) - written_ms
    assert 30_000 <= hold.buckets[0].remaining <= elapsed_ms


async def test_the_longest_wait_is_the_one_that_is_told(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    await fill(raw, tenant, "key:a:requests", 60)
    await fill(raw, tenant, "key:a:tokens", 60)
    buckets = (RateBucket("key:a:requests", 60, 1), RateBucket("key:a:tokens", 60, 20))
    refused = await store.hold(tenant.request(buckets=buckets), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert (refused.scope, refused.retry_after_ms) == ("key:a:tokens", 20_000)


async def test_a_refusal_for_money_takes_no_rate_and_shows_it(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant, posted=10)
    request = tenant.request(11, buckets=(RateBucket("a:requests", 5, 1),), in_flight=(InFlightLimit("a", 1),))
    refused = await store.hold(request, EPOCH)
    assert isinstance(refused, RefusedHold)
    assert refused.reason is HoldRefusal.BALANCE
    assert refused.buckets == (BucketState("a:requests", 5, 5, 0),)
    assert await raw.execute("EXISTS", tenant.rates_key, tenant.in_flight_key) == 0


async def test_a_bucket_of_a_day_refills_in_a_day(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    of_day, of_minute = RateBucket("a:requests_a_day", 2, 1, 1_440), RateBucket("a:requests", 100, 1)
    for left in (1, 0):
        hold = await placed(store, tenant.request(buckets=(of_day, of_minute)))
        assert [state.remaining for state in hold.buckets] == [left, 98 + left]
    refused = await store.hold(tenant.request(buckets=(of_day, of_minute)), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert refused.scope == "a:requests_a_day"
    half_a_day = 43_200_000
    assert half_a_day - 10_000 < refused.retry_after_ms <= half_a_day
    # Half a day later there is room for one.
    [level] = await raw.execute("HMGET", tenant.rates_key, "a:requests_a_day")
    full, written_at = level.split()
    await raw.execute("HSET", tenant.rates_key, "a:requests_a_day", b"%b %d" % (full, int(written_at) - half_a_day))
    await placed(store, tenant.request(buckets=(of_day,)))
    assert isinstance(await store.hold(tenant.request(buckets=(of_day,)), EPOCH), RefusedHold)


async def test_the_largest_bucket_of_a_day_is_counted_exactly(
    store: HotStore, raw: HotConnection, tenant: Tenant
) -> None:
    await open_shard(store, tenant)
    most = 100_000_000
    for left in (1, 0):
        # Written in the future, so that nothing drains meanwhile: more than one would in a millisecond.
        level = f"{(most - 1 - left) * 86_400_000} {2**43}"
        await raw.execute("HSET", tenant.rates_key, "a:requests_a_day", level)
        hold = await placed(store, tenant.request(buckets=(RateBucket("a:requests_a_day", most, 1, 1_440),)))
        assert hold.buckets[0].remaining == left


async def test_idle_buckets_are_forgotten(store: HotStore, raw: HotConnection, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    await placed(store, tenant.request(buckets=(RateBucket("a:requests", 5, 1),)))
    assert 86_400 < await raw.execute("TTL", tenant.rates_key) <= 90_000


async def test_organizations_of_a_shard_do_not_share_money(store: HotStore, tenant: Tenant) -> None:
    other = Tenant(organization_id=UUID(int=tenant.organization_id.int ^ 1 << 40))
    balances = [NewBalance(each.organization_id, 100, 0, 1) for each in (tenant, other)]
    assert await store.install(tenant.shard, EPOCH, "0-0", balances)
    await placed(store, tenant.request(100))
    await placed(store, other.request(100))
    assert isinstance(await store.hold(other.request(1), EPOCH), RefusedHold)
