"""The money of one organization in every order of events that hypothesis can think of, on real servers.

The simulation draws whole lives of calls from a seed; here single steps are put in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar, cast
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import insert, text

from billing import charges
from billing.charges import Measured
from billing.hot.store import HotStore
from billing.journal.frames import Record
from billing.journal.settles import replay_into, settle_record
from billing.pricing import ceiling
from billing.projection import project
from billing.rebuild import ensure_epoch
from billing.settlement import book_shard, correct, grant_credit, open_accounts, recovered_calls
from billing.store.balances import Balance, balance_of
from billing.store.ledger import booked_calls
from billing.store.prices import NewPrice, publish
from billing.store.shards import epochs
from billing.sweeper import sweep_shard
from billing.verify import verify
from models.call import CallOrigin, Charge, Checkpoint, Endpoint, Hold, HoldRefusal, HoldRequest, RefusedHold
from models.catalog import Meter, Rates
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import MilliUnits, Units
from models.tables import organization
from models.tables import project as project_table
from models.usage import Ending, TokenUsage, UsageSource
from tests.simulation.book import Book
from tests.simulation.clock import SimulatedClock, SimulatedLoop
from tests.simulation.faults import CALM, Faults
from tests.simulation.redis import Line, Redis
from tests.simulation.run import Servers

pytestmark = pytest.mark.servers

SHARD = 5
MODEL = "m"
TOKENS = st.integers(0, 50)
BOUND = 50
T = TypeVar("T")


class Awake:
    """A program that always runs."""

    async def go_on(self) -> None:
        """At once."""


@dataclass(eq=False, slots=True)
class Life:
    """A call as the model knows it; `owed` are the amounts that it may have in the book in the end, None for no row."""

    hold: Hold
    instance: int
    price: int
    is_open: bool = True
    kept: int | None = None
    charge: Charge | None = None
    is_settled: bool = False
    """Redis has its end, and remembers it."""
    owed: set[int | None] = field(default_factory=lambda: {None})

    def cost(self, tokens: int) -> int:
        """What so many tokens in and as many out cost, worked out here: half-even."""
        thousandths = 2 * tokens * self.price
        whole, rest = divmod(thousandths, 1_000)
        return whole + (rest > 500 or (rest == 500 and whole % 2 == 1))


class Money(RuleBasedStateMachine):
    """One organization, a gateway that crashes, its journal, a sweeper, a worker and an operator."""

    servers: Servers
    url = ""
    lives = Bundle("lives")
    balances = Bundle("balances")

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimulatedClock()
        self.loop = asyncio.Runner(loop_factory=lambda: SimulatedLoop(self.clock))
        self.book = self.do(self._open())
        self.redis = Redis(
            self.servers.redis_socket, self.servers.redis_password, self.clock, lambda verb, keys, values: None
        )
        self.redis.ask("FLUSHALL")
        self.instance = 0
        self.hot = self.store()
        self.worker = self.store(is_worker=True)
        self.journal: list[Record] = []
        self.calls: list[Life] = []
        self.is_blank = True
        self.credits = self.slack = 0
        self.price = 2_000

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    async def _open(self) -> Book:
        return Book(self.url, self.clock)

    def store(self, *, is_worker: bool = False) -> HotStore:
        line = Line(self.redis, Awake(), Random(0), lambda: CALM, Faults())
        return HotStore("", cast("Any", line), instance="" if is_worker else f"gateway-{self.instance}")

    @property
    def engine(self) -> Any:
        return self.book

    @initialize()
    def found(self) -> None:
        self.do(self._found())

    async def _found(self) -> None:
        now = self.clock.now()
        self.owner = UUID(int=uuid7(now).int >> 4 << 4 | SHARD)
        self.project_id = uuid7(now)
        async with self.engine.begin() as connection:
            await connection.execute(
                text("insert into model (id, context_length) values ('m', 4096) on conflict do nothing")
            )
            await connection.execute(
                insert(organization).values(
                    id=self.owner, name="Test", currency="USD", billing_mode="prepaid", shard=SHARD
                )
            )
            await connection.execute(
                insert(project_table).values(id=self.project_id, organization_id=self.owner, name="Test")
            )
            await open_accounts(connection, self.owner, "USD")
        await self._sell()
        await self._grant(600)
        await self._rebuild()

    # The operator ----------------------------------------------------------------------------------------------------

    @rule(price=st.integers(0, 3_000))
    def change_price(self, price: int) -> None:
        self.price = price
        self.do(self._sell())

    async def _sell(self) -> None:
        # A book of prices of this example's own, since a database has many.
        now = self.clock.now()
        async with self.engine.begin() as connection:
            versions = [
                await publish(
                    connection, NewPrice(str(self.owner), MODEL, meter, "USD", MilliUnits(self.price), now), "test", now
                )
                for meter in (Meter.INPUT, Meter.OUTPUT)
            ]
        milli = MilliUnits(self.price)
        self.rates = Rates(milli, milli, milli, milli, milli, version_ids=tuple(sorted(one.id for one in versions)))
        await asyncio.sleep(1)

    @rule(amount=st.integers(1, 500))
    def grant(self, amount: int) -> None:
        self.do(self._grant(amount))

    async def _grant(self, amount: int) -> None:
        now = self.clock.now()
        async with self.engine.begin() as connection:
            await grant_credit(
                connection, organization_id=self.owner, currency="USD", kind=GrantKind.PAID, amount=Units(amount),
                priority=1, effective_at=now, expires_at=None, scope=None, idempotency_key=str(uuid7(now)), now=now,
            )  # fmt: skip
        self.credits += amount

    @rule(target=balances)
    def look(self) -> Balance:
        return self.do(self._balance())

    async def _balance(self) -> Balance:
        async with self.engine.connect() as connection:
            balance = await balance_of(connection, self.owner)
        assert balance is not None
        return balance

    @rule(balance=balances)
    def project(self, balance: Balance) -> None:
        """Also one that others have overtaken."""
        self.do(project(self.worker, balance))

    # Calls -----------------------------------------------------------------------------------------------------------

    @rule(target=lives)
    def hold(self) -> Any:
        answer = self.do(self._hold())
        if isinstance(answer, RefusedHold):
            expected = HoldRefusal.NO_EPOCH if self.is_blank else HoldRefusal.BALANCE
            assert answer.reason is expected or (answer.reason is HoldRefusal.NO_EPOCH)
            return multiple()
        life = Life(answer, self.instance, self.price)
        self.calls.append(life)
        return life

    async def _hold(self) -> Hold | RefusedHold:
        now = self.clock.now()
        origin = CallOrigin(
            uuid7(now),
            self.owner,
            self.project_id,
            uuid7(now),
            SHARD,
            "USD",
            Endpoint.CHAT_COMPLETIONS,
            MODEL,
            True,
            now,
        )
        request = HoldRequest(origin, ceiling(BOUND, BOUND, self.rates), self.rates, BOUND, BOUND)
        async with self.engine.connect() as connection:
            epoch = (await epochs(connection))[SHARD]
        return await self.hot.hold(request, epoch)

    @rule(life=lives)
    def hold_again(self, life: Life) -> None:
        """A repeated command changes nothing; invariants see if it did."""
        if life.is_open and self.is_running(life):
            self.redis.catch_up()
            self.do(self._same_hold(life))

    async def _same_hold(self, life: Life) -> None:
        async with self.engine.connect() as connection:
            epoch = (await epochs(connection))[SHARD]
        if await self.worker.epoch(SHARD) == epoch:
            await self.hot.hold(life.hold.request, epoch)

    @rule(life=lives, tokens=TOKENS)
    def checkpoint(self, life: Life, tokens: int) -> None:
        if self.is_running(life) and life.charge is None:
            usage = TokenUsage(tokens, tokens)
            point = Checkpoint(life.hold.request.origin, usage, UsageSource.BACKEND_PARTIAL, "b", accepted=True)
            self.do(self.hot.checkpoint([point]))
            if life.is_open:
                life.kept = life.cost(tokens)

    @rule(life=lives, tokens=TOKENS, arrives=st.booleans())
    def settle(self, life: Life, tokens: int, arrives: bool) -> None:
        """Journaled first. Where it does not arrive, a replay or a repeated command brings it, in whatever order."""
        if not self.is_running(life) or life.charge is not None:
            return
        measured = Measured(TokenUsage(tokens, tokens), UsageSource.BACKEND)
        life.charge = charges.charge(
            life.hold, measured, ending=Ending.FINISHED, deployment="b", ended_at=self.clock.now()
        )
        assert life.charge.amount == life.cost(tokens)
        assert life.charge.amount <= life.hold.request.amount
        self.journal.append(settle_record(life.hold, life.charge))
        life.owed = {life.charge.amount}
        if arrives:
            self.settle_again(life)

    @rule(life=lives)
    def settle_again(self, life: Life) -> None:
        if life.charge is not None:
            is_first = self.do(self.hot.settle(life.hold, life.charge))
            assert is_first is not life.is_settled, "settled twice, or not at all"
            life.is_settled = True
            self.ended(life)

    @rule(life=lives)
    def void(self, life: Life) -> None:
        if self.is_running(life) and life.charge is None:
            self.do(self.hot.void(life.hold))
            self.ended(life)
            # Its gateway has done with it.
            life.instance = -1

    def is_running(self, life: Life) -> bool:
        return life.instance == self.instance

    def ended(self, life: Life) -> None:
        if not life.is_open:
            # It had no hold any more: nothing had foreseen it.
            self.slack += life.hold.request.amount
        life.is_open = False

    # What befalls ----------------------------------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        """The gateway is killed; the next one has another name and finds the journal."""
        self.instance += 1
        self.hot = self.store()

    @rule()
    def sweep(self) -> None:
        self.do(self._sweep())

    async def _sweep(self) -> None:
        for _ in range(3):
            await asyncio.sleep(20)
            await self.hot.checkpoint(())
            swept = await sweep_shard(self.worker, SHARD, self.clock.now())
            assert not swept.unreadable
            by_call = {life.hold.request.origin.call_id: life for life in self.calls}
            for charge in swept.recovered:
                life = by_call[charge.call_id]
                assert not self.is_running(life), "a living gateway's call is taken away"
                assert charge.amount == life.kept
                # The journal has the last word, where it has one.
                life.owed = life.owed if life.charge is not None else {charge.amount}
                life.is_open, life.is_settled = False, True
                self.slack += life.hold.request.amount
            for void in swept.voided:
                life = by_call[void.hold.request.origin.call_id]
                assert not self.is_running(life), "a living gateway's call is taken away"
                assert life.kept is None
                life.is_open = False

    @rule()
    def replay(self) -> None:
        self.do(self._replay())

    async def _replay(self) -> None:
        replayed = await replay_into(self.hot, self.journal, self._booked, self._recovered)
        for charge in replayed.recovered:
            await correct(self.engine, self.worker, charge)
        for life in self.calls:
            if life.charge is not None and life.charge.call_id in replayed.settled:
                assert not life.is_settled, "a replay settles what has ended"
                life.is_settled = True
                self.ended(life)

    async def _booked(self, calls: Collection[UUID]) -> frozenset[UUID]:
        async with self.engine.connect() as connection:
            return await booked_calls(connection, calls)

    async def _recovered(self, calls: Collection[UUID]) -> frozenset[UUID]:
        async with self.engine.connect() as connection:
            return await recovered_calls(connection, calls)

    @rule(limit=st.integers(1, 4))
    def work(self, limit: int) -> None:
        self.do(self._book(limit))

    async def _book(self, limit: int) -> None:
        booked = await book_shard(self.engine, self.worker, SHARD, limit)
        assert booked.dead == 0

    @rule(ahead_us=st.sampled_from([0, 60_000_000, -60_000_000]))
    def flush(self, ahead_us: int) -> None:
        booked = self.do(self._booked([life.hold.request.origin.call_id for life in self.calls]))
        self.redis.become_blank(ahead_us)
        self.is_blank = True
        for life in self.calls:
            if life.charge is None and life.hold.request.origin.call_id not in booked:
                # What a sweeper had charged was on the stream alone: with it the charge may be gone.
                life.owed |= {None}
            if life.is_open and life.charge is None:
                # Its hold is not carried over: it may end late, or, should its gateway die, without a charge.
                life.kept = None
            self.slack += life.hold.request.amount
            life.is_open = life.is_settled = False

    @precondition(lambda self: self.is_blank)
    @rule()
    def rebuild(self) -> None:
        self.do(self._rebuild())

    async def _rebuild(self) -> None:
        assert await ensure_epoch(self.engine, self.worker, SHARD)
        self.is_blank = False

    # What holds ------------------------------------------------------------------------------------------------------

    @invariant()
    def holds_add_up(self) -> None:
        if not self.is_blank and self.calls:
            self.do(self._check())

    async def _check(self) -> None:
        hot = await self.worker.balance(SHARD, self.owner)
        if hot is None or await self.worker.epoch(SHARD) is None:
            return
        kept = await self.worker.open_holds(SHARD, self.owner)
        there = {one.hold.request.origin.call_id for one in kept}
        assert there == {life.hold.request.origin.call_id for life in self.calls if life.is_open}
        assert hot.held == sum(one.hold.request.amount for one in kept)
        assert hot.available >= -self.slack

    def teardown(self) -> None:
        try:
            if hasattr(self, "owner"):
                self.do(self._close())
        finally:
            self.redis.close()
            self.do(self.book.dispose())
            self.loop.close()

    async def _close(self) -> None:
        """All is up and quiet: what must be charged is, once, and nothing is held."""
        self.instance += 1
        self.hot = self.store()
        await self._rebuild()
        await self._sweep()
        for _ in range(2):
            await self._replay()
            await self._book(1_000)
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                text("select coalesce(corrects, call_id), sum(amount), count(*) filter (where corrects is null)"
                     " from charge where organization_id = :owner group by 1"),
                {"owner": self.owner},
            )  # fmt: skip
            booked = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        spent = 0
        for life in self.calls:
            amount, count = booked.pop(life.hold.request.origin.call_id, (None, 1))
            assert count == 1
            assert amount in life.owed, f"{amount} is booked, owed is one of {life.owed}"
            spent += amount or 0
        assert not booked, "charges of no call"
        balance = await self._balance()
        await project(self.worker, balance)
        hot = await self.worker.balance(SHARD, self.owner)
        assert hot is not None
        assert balance.posted == self.credits - spent
        assert (hot.balance, hot.held) == (balance.posted, 0)
        report = await verify(self.engine, None)
        assert report.ok, [check for check in report.checks if not check.ok]


def test_money_is_right_in_any_order_of_events(servers: Servers) -> None:
    url = asyncio.run(servers.databases.make("stateful"))
    try:
        run_state_machine_as_test(
            type("MoneyOnTheseServers", (Money,), {"servers": servers, "url": url}),
            settings=settings(
                max_examples=30,
                stateful_step_count=40,
                # To shrink a failure on real servers may take many minutes: add Phase.shrink by hand for that.
                phases=(Phase.generate,),
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        asyncio.run(servers.databases.drop("stateful"))
