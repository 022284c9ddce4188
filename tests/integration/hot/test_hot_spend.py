"""Monthly limits in the hold: what is spent and held counts, nothing passes them, and nothing is counted twice."""

from __future__ import annotations

import asyncio

import pytest

from billing.hot.store import HotStore, NewBalance
from models.call import Hold, HoldRefusal, MonthlyLimit, RefusedHold
from models.money import Units
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard, placed

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

KEY = "key:a:2026-03"
LIMITS = (MonthlyLimit(KEY, Units(250)), MonthlyLimit("organization:2026-03", Units(10_000)))


async def begin(store: HotStore, tenant: Tenant, **booked: int) -> None:
    """Open the shard and begin the counts at what is booked."""
    await open_shard(store, tenant, 100_000)
    await store.count_spent(
        tenant.shard, tenant.organization_id, {limit.scope: 0 for limit in LIMITS} | booked, "2026-03"
    )


async def counted(store: HotStore, tenant: Tenant) -> dict[str, int]:
    """What is counted now."""
    return await store.spent(tenant.shard, tenant.organization_id)


async def test_a_limit_that_is_not_counted_yet_refuses(store: HotStore, tenant: Tenant) -> None:
    await open_shard(store, tenant)
    refused = await store.hold(tenant.request(1, spend=LIMITS), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert (refused.reason, refused.scope) == (HoldRefusal.LIMIT_UNKNOWN, KEY)
    assert await counted(store, tenant) == {}


async def test_holds_count_until_they_end_and_charges_stay(store: HotStore, tenant: Tenant) -> None:
    await begin(store, tenant)
    one = await placed(store, tenant.request(100, spend=LIMITS))
    two = await placed(store, tenant.request(100, spend=LIMITS))
    refused = await store.hold(tenant.request(51, spend=LIMITS), EPOCH)
    assert isinstance(refused, RefusedHold)
    assert (refused.reason, refused.scope, refused.available) == (HoldRefusal.SPEND, KEY, 50)
    assert await counted(store, tenant) == {KEY: 200, "organization:2026-03": 200}
    assert await store.settle(one, charge(one, 30))
    assert not await store.settle(one, charge(one, 30)), "once"
    assert await store.void(two)
    assert await counted(store, tenant) == {KEY: 30, "organization:2026-03": 30}
    assert isinstance(await store.hold(tenant.request(220, spend=LIMITS), EPOCH), Hold)


async def test_the_same_hold_again_counts_once(store: HotStore, tenant: Tenant) -> None:
    await begin(store, tenant)
    request = tenant.request(100, spend=LIMITS)
    await placed(store, request)
    await placed(store, request)
    assert (await counted(store, tenant))[KEY] == 100


async def test_what_is_settled_without_its_hold_counts_as_well(store: HotStore, tenant: Tenant) -> None:
    await begin(store, tenant)
    late = Hold(tenant.request(100, spend=LIMITS))
    assert await store.settle(late, charge(late, 40))
    assert (await counted(store, tenant))[KEY] == 40


async def test_many_at_once_never_pass_a_limit(store: HotStore, tenant: Tenant) -> None:
    await begin(store, tenant)
    answers = await asyncio.gather(*(store.hold(tenant.request(60, spend=LIMITS), EPOCH) for _ in range(50)))
    assert sum(isinstance(answer, Hold) for answer in answers) == 4
    assert (await counted(store, tenant))[KEY] == 240


async def test_a_count_begins_once_at_what_is_booked_and_past_months_go(store: HotStore, tenant: Tenant) -> None:
    await begin(store, tenant)
    await placed(store, tenant.request(100, spend=LIMITS))
    begun = {KEY: 7, "key:a:2026-04": 7}
    assert await store.count_spent(tenant.shard, tenant.organization_id, begun, "2026-03") == 1
    assert (await counted(store, tenant))[KEY] == 100, "not begun again"
    assert await store.count_spent(tenant.shard, tenant.organization_id, {}, "2026-04") == 0
    assert await counted(store, tenant) == {"key:a:2026-04": 7}


async def test_a_rebuilt_shard_counts_anew(store: HotStore, tenant: Tenant) -> None:
    await begin(store, tenant)
    hold = await placed(store, tenant.request(100, spend=LIMITS))
    assert await store.install(
        tenant.shard, EPOCH + 1, "0-0", [NewBalance(tenant.organization_id, 1_000, 0, version=2)]
    )
    assert await counted(store, tenant) == {}
    await store.count_spent(tenant.shard, tenant.organization_id, {KEY: 5}, "2026-03")
    assert await store.settle(hold, charge(hold, 40))
    assert await counted(store, tenant) == {KEY: 45}, "the hold was gone, the charge counts"
