"""Holds, settles, voids and projections in any order, repeated and overtaken, against a model of the money."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from billing.hot.entries import decode_charge
from billing.hot.store import START, HotStore, make_hot_store
from gateway.embedded.redis import Redis
from models.call import Hold, HoldRefusal, HoldRequest, InFlightLimit, RefusedHold
from tests.integration.hot.nouns import EPOCH, Tenant, charge, open_shard

pytestmark = pytest.mark.servers

AMOUNTS = st.one_of(st.integers(0, 200), st.integers(0, 4 * 10**15))
MOST_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class Projection:
    """What Postgres knew of the organization at one version."""

    version: int
    posted: int
    booked_total: int


class Calls(RuleBasedStateMachine):
    """One organization. `open` and `ended` are the model of its calls, the stream is read back and booked in order."""

    url = ""
    holds = Bundle("holds")
    projections = Bundle("projections")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.tenant = Tenant()
        self.store: HotStore = self.loop.run(make_hot_store(self.url))
        self.open: dict[HoldRequest, int] = {}
        self.charged = 0
        self.credits = self.credit_limit = 500
        self.newest = self.applied = Projection(1, self.credits, 0)
        self.booked = 0
        self.position = START
        self.loop.run(open_shard(self.store, self.tenant, self.credits, self.credit_limit))

    def teardown(self) -> None:
        self.loop.run(self.store._execute("FLUSHALL"))
        self.loop.run(self.store.close())
        self.loop.close()

    @rule(target=holds, amount=AMOUNTS)
    def place(self, amount: int) -> object:
        request = self.tenant.request(amount, in_flight=(InFlightLimit("organization", MOST_IN_FLIGHT),))
        answer = self.loop.run(self.store.hold(request, EPOCH))
        free = self.balance - sum(self.open.values()) + self.credit_limit
        if isinstance(answer, Hold):
            assert amount <= free
            assert len(self.open) < MOST_IN_FLIGHT
            self.open[request] = amount
            return answer
        if answer.reason is HoldRefusal.BALANCE:
            assert amount > free == answer.available
        else:
            assert answer == RefusedHold(HoldRefusal.IN_FLIGHT, scope="organization", available=answer.available)
            assert len(self.open) == MOST_IN_FLIGHT
        return multiple()

    @rule(hold=holds)
    def place_again(self, hold: Hold) -> None:
        if hold.request in self.open:
            assert self.loop.run(self.store.hold(hold.request, EPOCH)) == hold

    @rule(hold=holds, part=st.integers(0, 10))
    def settle(self, hold: Hold, part: int) -> None:
        amount = hold.request.amount * part // 10
        settled = self.loop.run(self.store.settle(hold, charge(hold, amount)))
        assert settled is (hold.request in self.open)
        if settled:
            del self.open[hold.request]
            self.charged += amount

    @rule(hold=holds)
    def void(self, hold: Hold) -> None:
        assert self.loop.run(self.store.void(hold)) is (self.open.pop(hold.request, None) is not None)

    @rule(target=projections, count=st.integers(0, 3), trimmed=st.booleans())
    def book(self, count: int, trimmed: bool) -> Projection:
        for entry in self.loop.run(self.store.read(self.tenant.shard, self.position, count or 1))[:count]:
            self.booked += decode_charge(entry.charge).amount
            assert entry.settled == self.booked
            self.position = entry.id
        if trimmed:
            self.loop.run(self.store.trim(self.tenant.shard, self.position))
        return self.next_projection()

    @rule(target=projections, amount=AMOUNTS)
    def grant(self, amount: int) -> Projection:
        if self.credits + amount < 9 * 10**15:
            self.credits += amount
        return self.next_projection()

    @rule(projection=projections)
    def project(self, projection: Projection) -> None:
        self.send(projection)

    @rule(projection=consumes(projections))
    def project_once(self, projection: Projection) -> None:
        self.send(projection)

    @invariant()
    def money_is_conserved(self) -> None:
        found = self.loop.run(self.store.balance(self.tenant.shard, self.tenant.organization_id))
        assert found is not None
        kept = self.loop.run(self.store.open_holds(self.tenant.shard, self.tenant.organization_id))
        assert {each.hold.request: each.hold.request.amount for each in kept} == self.open
        assert found.held == sum(self.open.values())
        assert found.settled == self.charged
        assert found.balance == self.balance
        assert found.available >= 0

    @property
    def balance(self) -> int:
        return self.applied.posted - (self.charged - self.applied.booked_total)

    def next_projection(self) -> Projection:
        posted = self.credits - self.booked
        self.newest = Projection(self.newest.version + 1, posted, self.booked)
        return self.newest

    def send(self, projection: Projection) -> None:
        applied = self.loop.run(
            self.store.project(
                self.tenant.shard,
                self.tenant.organization_id,
                posted=projection.posted,
                booked_total=projection.booked_total,
                credit_limit=self.credit_limit,
                version=projection.version,
                epoch=EPOCH,
            )
        )
        assert applied is (projection.version > self.applied.version)
        if applied:
            self.applied = projection


def test_money_is_conserved_in_any_order_of_events(redis: Redis) -> None:
    machine = type("CallsOnThisRedis", (Calls,), {"url": redis.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
