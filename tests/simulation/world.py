"""One run: machines with gateways, workers, an operator, customers, one Redis, one Postgres, and what befalls them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, cast
from uuid import UUID

import msgspec
from sqlalchemy import text

from billing.hot.keys import SHARD_KEYS, SHARDS
from billing.hot.store import HotStore
from billing.rebuild import ensure_epoch
from billing.verify import verify
from models.call import CallRequest, Charge, Endpoint, Hold
from tests.simulation.auditor import Auditor, Row
from tests.simulation.backends import Vice
from tests.simulation.book import Book
from tests.simulation.clock import SimulatedClock
from tests.simulation.disk import Disk
from tests.simulation.faults import CALM, Fault, Faults, Weather
from tests.simulation.gateway import Gateway
from tests.simulation.operator import OFFERS, Operator
from tests.simulation.redis import Line, Program, Redis
from tests.simulation.worker import Worker, WorkerKilled

MACHINES: Final = 2
WORKERS: Final = 2
REST_SECONDS: Final = 75.0
"""A gateway is silent for 35 seconds before it is swept, looked at every 5; all is booked a minute after that."""

REPLAY_SECONDS: Final = 30.0
"""What a new process finds in the journals of the last one is booked and corrected within this time."""

_LONGEST_WRITE_SECONDS: Final = 1.0
_LONGEST_END_SECONDS: Final = 300.0
_ROWS: Final = text("select call_id, organization_id, corrects, amount, hold, ending, price_version_ids from charge")
_EXPIRED: Final = text(
    "select organization_id, sum(amount) as amount from posting join transfer on posting_id = posting.id"
    " where kind = 'expire' group by 1"
)
_POSTED: Final = text("select organization_id, posted from organization_balance")


@dataclass
class World:
    """Everything in one run; `weather` is how it is at the moment."""

    seed: int
    calls: int
    clock: SimulatedClock
    book: Book
    home: Path
    random: Random = field(init=False)
    weather: Weather = field(init=False)
    auditor: Auditor = field(init=False)
    faults: Faults = field(default_factory=Faults)
    vices: Counter[Vice] = field(default_factory=Counter)
    shards: tuple[int, ...] = ()
    linger_seconds: float = 2.0
    started: int = 0
    redis: Redis = field(init=False)
    last_settled: dict[UUID, tuple[Hold, Charge]] = field(default_factory=dict)
    machines: list[Disk] = field(default_factory=list)
    gateways: list[Gateway] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    operator: Operator = field(init=False)
    _failed: asyncio.Future[None] = field(init=False)
    _processes: int = 0
    _worker_is_doomed: bool = False
    _back_at: float = 0.0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.weather = CALM
        self._calm = asyncio.Event()
        self.auditor = Auditor(lambda: self.clock.us, self.fail)
        self.shards = tuple(self.random.sample(range(SHARDS), self.random.choice((1, 1, 2))))
        self.linger_seconds = self.random.choice((2.0, 4.0, 8.0))
        self._failed = asyncio.get_running_loop().create_future()

    def line(self, program: Program) -> Line:
        """A connection to Redis for a program."""
        return Line(self.redis, program, self.random, lambda: self.weather, self.faults)

    def fail(self, error: BaseException) -> None:
        """Something is wrong: the run ends."""
        if not self._failed.done():
            self._failed.set_exception(error)

    def failpoint(self, name: str) -> None:
        """A point of the program at which a worker may be killed."""
        if self._worker_is_doomed or self.random.random() < self.weather.worker_killed:
            self._worker_is_doomed = False
            self.faults[Fault.WORKER_KILLED] += 1
            self.auditor.note(None, "worker is killed", name)
            raise WorkerKilled

    def send_customers_away(self) -> None:
        """They were told 503 and to try again: nobody calls for a second."""
        self._back_at = asyncio.get_running_loop().time() + 1

    def saw_client_leave(self) -> None:
        """Counted."""
        self.faults[Fault.CLIENT_GONE] += 1

    def saw_slow_client(self) -> None:
        """Counted."""
        self.faults[Fault.CLIENT_SLOW] += 1

    def saw_backend_misbehave(self, vice: Vice) -> None:
        """Counted."""
        self.faults[Fault.BACKEND] += 1
        self.vices[vice] += 1

    # A run -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From an empty house to the last check; raises what is found to be wrong."""
        asyncio.get_running_loop().set_exception_handler(self._heard)
        story = asyncio.create_task(self._run())
        await asyncio.wait({story, self._failed}, return_when=asyncio.FIRST_COMPLETED)
        if not story.done():
            story.cancel()
            await asyncio.gather(story, return_exceptions=True)
        elif not self._failed.done():
            await story
        if self._failed.done():
            raise cast("BaseException", self._failed.exception())
        self._failed.cancel()

    def _heard(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.fail(context.get("exception") or RuntimeError(context["message"]))

    async def _run(self) -> None:
        self.operator = Operator(self)
        engine = cast("Any", self.book)
        for shard in self.shards:
            await ensure_epoch(engine, self._own(), shard)
        await self.operator.open()
        self.machines = [Disk(self.home / f"machine-{number}", self.random, self.faults) for number in range(MACHINES)]
        self.gateways = [self._gateway(machine) for machine in self.machines]
        self.workers = [Worker(self) for _ in range(WORKERS)]
        working = [asyncio.create_task(worker.run()) for worker in self.workers]
        working.append(asyncio.create_task(self._expire()))
        for task in working:
            task.add_done_callback(self._ended)
        try:
            await self._live()
            await self._rest()
            rows = await self._rows()
            self.auditor.check_booked(rows)
            self._check_nothing_is_held()
            await self._settle_again()
            await self._restart()
            await asyncio.sleep(REPLAY_SECONDS)
            await self._check()
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            for gateway in self.gateways:
                await gateway.kill()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _own(self) -> HotStore:
        return HotStore("", cast("Any", self.line(self.operator)))

    def _gateway(self, machine: Disk) -> Gateway:
        self._processes += 1
        return Gateway(self, machine, f"{machine.name}, process {self._processes}")

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.redis.expire()

    # While customers call --------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        weather = Weather.drawn(self.seed)
        self.auditor.note(None, "the weather", weather)
        self.weather = weather
        events = [asyncio.create_task(self.operator.run())]
        for fault, seconds in weather.disasters.items():
            events.append(asyncio.create_task(self._again(_DISASTERS[fault], seconds)))
        for task in events:
            task.add_done_callback(self._ended)
        await self._arrive()
        self.weather = CALM
        self._calm.set()
        # What has begun comes to its end: nobody is left half killed.
        await asyncio.gather(*events)

    async def _again(self, disaster: Callable[[World], Awaitable[None]], seconds: float) -> None:
        first = min(seconds, self.weather.first_within(self.calls))
        pause = self.random.random() * first
        while not self._calm.is_set():
            try:
                async with asyncio.timeout(pause):
                    await self._calm.wait()
            except TimeoutError:
                await disaster(self)
            pause = self.random.expovariate(1 / seconds)

    async def _arrive(self) -> None:
        random = self.random
        rate = self.weather.calls_a_second
        while self.started < self.calls:
            away = max(0.0, self._back_at - asyncio.get_running_loop().time())
            await asyncio.sleep(away + random.expovariate(rate / 8))
            ready = [gateway for gateway in self.gateways if gateway.takes_calls]
            for _ in range(min(random.randrange(1, 16), self.calls - self.started)):
                if ready and random.choice(ready).take(
                    _request(random), random.choice(self.operator.principals), self.started
                ):
                    self.started += 1

    # At rest ---------------------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """All parts are up again and nothing more goes wrong: what is broken has its time to mend."""
        self.auditor.note(None, "all parts are up")
        for machine in self.machines:
            if not machine.open:
                self.gateways.append(self._gateway(machine))
        async with asyncio.timeout(_LONGEST_END_SECONDS):
            while any(gateway.open_calls for gateway in self.gateways):  # noqa: ASYNC110 - simulated time costs nothing
                await asyncio.sleep(1)
        await asyncio.sleep(REST_SECONDS)
        for gateway in self.gateways:
            if gateway.taken_places:
                raise self.auditor.broken(f"{gateway.taken_places} places are taken at rest in {gateway.name}")

    async def _settle_again(self) -> None:
        """The last charge of each customer is told again, as by a replay after an hour: Redis has forgotten its end.

        It is booked already, so it must change nothing, and Redis must get back what it has debited for it. Nothing
        comes after it whose running total would cover up for it.
        """
        for hold, charge in self.last_settled.values():
            self._happens(Fault.END_FORGOTTEN, charge.call_id)
            self.redis.ask("DEL", f"{SHARD_KEYS[hold.request.origin.shard].done}{charge.call_id}")
            self.auditor.end_forgotten(self.auditor.story_of(charge.call_id))
            await self._own().settle(hold, charge)
        async with asyncio.timeout(_LONGEST_END_SECONDS):
            while any(self.redis.ask("XLEN", SHARD_KEYS[shard].stream) for shard in self.shards):  # noqa: ASYNC110
                await asyncio.sleep(1)

    async def _restart(self) -> None:
        """The last journals are closed, and read by those that come after."""
        for gateway in list(self.gateways):
            self.gateways.remove(gateway)
            await gateway.drain(1)
        self.gateways = [self._gateway(machine) for machine in self.machines]

    async def _rows(self) -> list[Row]:
        async with self.book.connect() as connection:
            return [
                Row(row[0], row[1], row[2], int(row[3]), int(row[4]), row[5], tuple(row[6]))
                for row in await connection.execute(_ROWS)
            ]

    def _check_nothing_is_held(self) -> None:
        self.redis.catch_up()
        for principal in self.operator.principals:
            keys, owner = SHARD_KEYS[principal.shard], str(principal.organization_id)
            for call in self.redis.ask("HKEYS", keys.holds + owner):
                raise self.auditor.broken("a hold is left at rest", self.auditor.calls[call.decode()])
            held = int(self.redis.ask("HGET", keys.organization + owner, "held") or 0)
            left = [self.redis.ask("HGETALL", name + owner) for name in (keys.checkpoints, keys.in_flight)]
            if held or any(left):
                raise self.auditor.broken(f"organization {owner}: {held} held at rest, and {left} left")

    async def _check(self) -> None:
        rows = await self._rows()
        self.auditor.check_amounts(rows)
        self._check_nothing_is_held()
        await self._check_money(rows)
        engine = cast("Any", self.book)
        for shard in range(SHARDS):
            await ensure_epoch(engine, self._own(), shard)
        report = await verify(engine, self._own())
        findings = [f"{check.name}: {finding}" for check in report.checks for finding in check.findings]
        if findings:
            raise self.auditor.broken(f"verify finds: {findings}")

    async def _check_money(self, rows: list[Row]) -> None:
        """Opening + credits − charges = balance, in Postgres and in Redis."""
        async with self.book.connect() as connection:
            expired = {row[0]: int(row[1]) for row in await connection.execute(_EXPIRED)}
            posted = {row[0]: int(row[1]) for row in await connection.execute(_POSTED)}
        for principal in self.operator.principals:
            owner = principal.organization_id
            spent = sum(row.amount for row in rows if row.owner == owner)
            expected = self.auditor.money[owner].credits - expired.get(owner, 0) - spent
            shown = self.redis.ask("HGET", f"{SHARD_KEYS[principal.shard].organization}{owner}", "balance")
            if not expected == posted[owner] == int(shown):
                raise self.auditor.broken(
                    f"organization {owner} has {expected}; the book says {posted[owner]}, Redis {shown}"
                )

    # Disasters -------------------------------------------------------------------------------------------------------

    def _happens(self, fault: Fault, about: object = "") -> None:
        self.faults[fault] += 1
        self.auditor.note(None, fault.value, about)

    async def _redis_away(self) -> None:
        self._happens(Fault.REDIS_AWAY)
        self.redis.is_away = True
        try:
            await asyncio.sleep(self.random.random() * 8)
        finally:
            self.redis.is_away = False

    async def _redis_blank(self) -> None:
        self._happens(Fault.REDIS_BLANK)
        self.redis.catch_up()
        lost: Counter[Any] = Counter()
        for shard in self.shards:
            for _, fields in self.redis.ask("XRANGE", SHARD_KEYS[shard].stream, "-", "+"):
                charge = msgspec.json.decode(fields[1], type=_Charge)
                lost[UUID(charge.organization_id)] += charge.amount
        self.redis.become_blank(self.random.choice((0, 0, 120_000_000, -120_000_000)))
        self.auditor.redis_forgets("Redis is blank", lost)

    async def _redis_older(self) -> None:
        snapshot = self.redis.snapshot()
        spent = {owner: money.spent for owner, money in self.auditor.money.items()}
        await asyncio.sleep(self.random.random() * 2)
        self._happens(Fault.REDIS_OLDER)
        self.redis.become(snapshot)
        money = self.auditor.money
        self.auditor.redis_forgets(
            "Redis is older", {owner: money[owner].spent - spent.get(owner, 0) for owner in money}
        )

    async def _postgres_away(self) -> None:
        self._happens(Fault.POSTGRES_AWAY)
        self.book.is_away = True
        try:
            await asyncio.sleep(self.random.random() * 20)
        finally:
            self.book.is_away = False

    async def _some_gateway(self) -> Gateway | None:
        """One that is open; None where the customers are through before there is one."""
        while not self._calm.is_set():
            if ready := [gateway for gateway in self.gateways if gateway.is_open]:
                return self.random.choice(ready)
            await asyncio.sleep(0.1)
        return None

    async def _gateway_killed(self) -> None:
        await self._kill(Fault.GATEWAY_KILLED)

    async def _memory_lost(self) -> None:
        await self._kill(Fault.MEMORY_LOST)

    async def _disk_lost(self) -> None:
        await self._kill(Fault.DISK_LOST)

    async def _kill(self, fault: Fault) -> None:
        while (gateway := await self._some_gateway()) is not None:
            if self.random.random() < 0.5:
                await self._write_begins(gateway)
            if gateway.is_open:
                break
        else:
            return
        self._happens(fault, gateway.name)
        self.gateways.remove(gateway)
        await gateway.kill(loses_memory=fault is Fault.MEMORY_LOST, disk_lost=fault is Fault.DISK_LOST)
        await asyncio.sleep(self.random.random() * self.random.choice((1, 50)))
        self.gateways.append(self._gateway(gateway.disk))

    async def _write_begins(self, gateway: Gateway) -> None:
        """Wait until its journal is writing, which is rare by chance; not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_WRITE_SECONDS):
                while gateway.is_open and not gateway.disk.is_writing(gateway.journal):  # noqa: ASYNC110 - simulated time
                    await asyncio.sleep(0.001)

    async def _gateway_frozen(self) -> None:
        gateway = await self._some_gateway()
        if gateway is not None:
            self._happens(Fault.GATEWAY_FROZEN, gateway.name)
            await gateway.freeze(self.random.choice((1, 10, 45, 70)) * (0.5 + self.random.random() / 2))

    async def _gateway_drained(self) -> None:
        gateway = await self._some_gateway()
        if gateway is None or gateway.is_frozen:
            return
        self._happens(Fault.GATEWAY_DRAINED, gateway.name)
        await gateway.drain(self.random.random() * 5)
        if gateway in self.gateways:
            self.gateways.remove(gateway)
            self.gateways.append(self._gateway(gateway.disk))

    async def _journal_full(self) -> None:
        disk = self.random.choice(self.machines)
        self._happens(Fault.JOURNAL_FULL, disk.name)
        disk.fill(True)
        try:
            await asyncio.sleep(self.random.random() * 10)
        finally:
            disk.fill(False)

    async def _journal_slow(self) -> None:
        disk = self.random.choice(self.machines)
        self._happens(Fault.JOURNAL_SLOW, disk.name)
        disk.slow_seconds = self.random.choice((0.5, 2, 6))
        try:
            await asyncio.sleep(self.random.random() * 10)
        finally:
            disk.slow_seconds = 0.02

    async def _worker_killed(self) -> None:
        """At its next step, which counts it."""
        self._worker_is_doomed = True

    async def _worker_asleep(self) -> None:
        self._happens(Fault.WORKER_ASLEEP)
        self.random.choice(self.workers).sleeps_until = asyncio.get_running_loop().time() + self.random.random() * 60


_DISASTERS: Final[dict[Fault, Callable[[World], Awaitable[None]]]] = {
    Fault.REDIS_AWAY: World._redis_away,
    Fault.REDIS_BLANK: World._redis_blank,
    Fault.REDIS_OLDER: World._redis_older,
    Fault.POSTGRES_AWAY: World._postgres_away,
    Fault.GATEWAY_KILLED: World._gateway_killed,
    Fault.MEMORY_LOST: World._memory_lost,
    Fault.DISK_LOST: World._disk_lost,
    Fault.GATEWAY_FROZEN: World._gateway_frozen,
    Fault.GATEWAY_DRAINED: World._gateway_drained,
    Fault.JOURNAL_FULL: World._journal_full,
    Fault.JOURNAL_SLOW: World._journal_slow,
    Fault.WORKER_KILLED: World._worker_killed,
    Fault.WORKER_ASLEEP: World._worker_asleep,
}


class _Charge(msgspec.Struct):
    organization_id: str
    amount: int


def _request(random: Random) -> CallRequest:
    """What a customer asks for, as it is after parsing."""
    offer = random.choice(OFFERS)
    words = random.randrange(1, 10)
    if random.random() < 0.05:
        body = {"input": "word " * words}
        return CallRequest(Endpoint.EMBEDDINGS, offer.name, body, input_bound=5 * words)
    return CallRequest(
        Endpoint.CHAT_COMPLETIONS,
        offer.name,
        {"messages": [{"role": "user", "content": "word " * words}]},
        stream=random.random() < 0.7,
        include_usage=random.random() < 0.3,
        n=random.choice((1, 1, 1, 1, 1, 2, 3)),
        max_output_tokens=random.choice((10, 40, 100, 100)),
        input_bound=random.choice((5 * words + 60, 5 * words + 60, 2_000, None)),
    )
