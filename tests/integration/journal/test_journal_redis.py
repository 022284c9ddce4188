"""Settling from the journal on a real Redis: once, however often it is replayed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from billing.hot.store import START, HotStore
from billing.journal.frames import Record
from billing.journal.settles import replay_into, settle_record
from models.call import Charge, Hold
from models.errors import Unavailable
from tests.integration.hot.nouns import Tenant, charge, open_shard, placed
from tests.integration.journal.conftest import Opening, record

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


def booking(*call_ids: UUID) -> Callable[[Collection[UUID]], Awaitable[frozenset[UUID]]]:
    """A Postgres that has booked these calls."""

    async def is_booked(asked: Collection[UUID]) -> frozenset[UUID]:
        return frozenset(call_ids) & frozenset(asked)

    return is_booked


async def journaled(opened: Opening, store: HotStore, tenant: Tenant, calls: int) -> list[tuple[Hold, Charge]]:
    """Calls that ended in a journal whose process is dead."""
    await open_shard(store, tenant)
    holds = [await placed(store, tenant.request(100)) for _ in range(calls)]
    journal = opened()
    for hold in holds:
        await journal.append(settle_record(hold, charge(hold)))
    await journal.close()
    return [(hold, charge(hold)) for hold in holds]


async def test_what_is_not_booked_is_settled_once(opened: Opening, store: HotStore, tenant: Tenant) -> None:
    calls = await journaled(opened, store, tenant, 3)
    booked, ended, open_call = calls
    await store.settle(*booked)
    await store.settle(*ended)
    journal = opened()
    replayed = await replay_into(store, journal.replay(), booking(booked[1].call_id))
    assert replayed.settled == (open_call[1].call_id,)
    assert replayed.superseded == (ended[1],)
    assert replayed.booked == {booked[1].call_id}
    assert replayed.unreadable == ()
    again = await replay_into(store, journal.replay(), booking(booked[1].call_id))
    assert again.settled == ()
    assert set(again.superseded) == {ended[1], open_call[1]}
    balance = await store.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    assert (balance.balance, balance.held, balance.settled) == (1_000 - 3 * 60, 0, 3 * 60)
    assert len(await store.read(tenant.shard, START, 10)) == 3
    assert journal.unconfirmed() == {one.call_id for _, one in calls}
    assert journal.forget([one.call_id for _, one in calls]) == 1


async def test_many_calls_and_the_same_record_twice(opened: Opening, store: HotStore, tenant: Tenant) -> None:
    [call] = await journaled(opened, store, tenant, 1)
    records = [settle_record(*call)] * 1_200
    replayed = await replay_into(store, records, booking())
    assert replayed.settled == (call[1].call_id,)
    assert replayed.superseded == ()


async def test_what_cannot_be_read_stops_nothing_and_is_loud(opened: Opening, store: HotStore, tenant: Tenant) -> None:
    calls = await journaled(opened, store, tenant, 2)
    strange = record()
    with capture_logs() as lines:
        replayed = await replay_into(store, [strange, *(settle_record(*call) for call in calls)], booking())
    assert replayed.unreadable == (strange.call_id,)
    assert len(replayed.settled) == 2
    assert [line["event"] for line in lines] == ["journal_record_unreadable"]


async def test_a_redis_that_is_away_is_told_and_the_records_stay(
    opened: Opening, store: HotStore, tenant: Tenant
) -> None:
    await journaled(opened, store, tenant, 2)
    await store.close()
    journal = opened()
    with pytest.raises(Unavailable):
        await replay_into(store, journal.replay(), booking())
    left: list[Record] = list(journal.replay())
    assert len(left) == 2
