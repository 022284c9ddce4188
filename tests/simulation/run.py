"""Runs from a seed: each has a fresh database, an empty Redis and disks in memory, and comes to an outcome."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import structlog

from billing import rebuild, settlement
from billing.store.ledger import ensure_partitions
from gateway import telemetry
from gateway.calls import driver
from models import ids
from tests.simulation.auditor import Story, Violation
from tests.simulation.backends import Vice
from tests.simulation.book import Book, Databases, paused_sleep
from tests.simulation.calls import watched
from tests.simulation.clock import START, SimulatedClock, SimulatedLoop
from tests.simulation.faults import Faults
from tests.simulation.redis import Redis
from tests.simulation.world import World

RUN_CALLS: Final = 5_000
"""Calls of one run: enough for all to happen, few enough that one that fails is replayed in seconds."""

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a file system, not a file of a known name
_SHOWN_EVENTS: Final = 40
_FAULTS_OF_OURS: Final = frozenset(
    {"call_broke", "call_not_ended", "release_broke", "checkpoint_failed", "charge_not_journaled"}
)
"""What the call path says where it catches what must never be raised."""


@dataclass(frozen=True, slots=True)
class Servers:
    """The real servers that runs use, one after the other."""

    redis_socket: Path
    redis_password: str
    databases: Databases


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to; `error` is what broke it, `story` the last events that led to it."""

    seed: int
    calls: int
    endings: Counter[str]
    faults: Faults
    vices: Counter[Vice]
    simulated_seconds: float
    trace: int
    error: str | None = None
    story: tuple[str, ...] = ()


def seeds(seed: int, calls: int) -> Iterator[tuple[int, int]]:
    """The runs of a simulation: their seeds, each by itself enough to repeat its run, and their calls."""
    while calls > 0:
        yield seed, min(calls, RUN_CALLS)
        seed, calls = seed + 1, calls - RUN_CALLS


def simulate(seed: int, calls: int, servers: Servers) -> Outcome:
    """One run, from its seed alone."""
    clock = SimulatedClock()
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock)) as runner:
        return runner.run(_simulate(seed, calls, servers, clock))


async def _simulate(seed: int, calls: int, servers: Servers, clock: SimulatedClock) -> Outcome:
    home = Path(tempfile.mkdtemp(prefix="tg-sim-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None))
    try:
        name = f"run_{seed}_{calls}"
        with clock.outside():
            url = await servers.databases.make(name)
        book = Book(url, clock)
        try:
            async with book.begin() as connection:
                await ensure_partitions(connection, START)
            return await _told(World(seed, calls, clock, book, home), servers)
        finally:
            await book.dispose()
            with clock.outside():
                await servers.databases.drop(name)
    finally:
        shutil.rmtree(home)


async def _told(world: World, servers: Servers) -> Outcome:
    redis = Redis(servers.redis_socket, servers.redis_password, world.clock, world.auditor.observe)
    redis.ask("FLUSHALL")
    world.redis = redis
    error: BaseException | None = None
    try:
        with _replaced(world):
            await world.run()
    except Exception as found:
        error = found
    finally:
        redis.close()
    return Outcome(
        seed=world.seed,
        calls=world.started,
        endings=world.auditor.endings,
        faults=world.faults,
        vices=world.vices,
        simulated_seconds=world.clock.us / 1_000_000,
        trace=world.auditor.trace,
        error=None if error is None else f"{type(error).__name__}: {error}",
        story=tuple(_story(world, error)) if error is not None else (),
    )


@contextmanager
def _replaced(world: World) -> Iterator[None]:
    """What the program takes from outside comes from the seed: random ids, points to die at, sleep in a transaction."""
    bits = Random(world.seed)
    told = structlog.get_config()
    structlog.configure(processors=[_Silent(world)], cache_logger_on_first_use=False)
    try:
        with (
            patch.object(ids, "os", SimpleNamespace(urandom=bits.randbytes)),
            patch.dict(driver._DOES, watched()),
            patch.object(telemetry, "log_call", lambda *_, **__: None),
            patch.object(settlement, "failpoint", world.failpoint),
            patch.object(rebuild, "failpoint", world.failpoint),
            patch.object(rebuild, "asyncio", SimpleNamespace(sleep=paused_sleep)),
        ):
            yield
    finally:
        structlog.configure(**told)


class _Silent:
    """The program's log becomes events of the run, and is shown only if it fails."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, _logger: Any, _level: str, event: MutableMapping[str, Any]) -> Any:
        if event["event"] in _FAULTS_OF_OURS:
            self._world.fail(AssertionError(f"the program was broken: {event}"))
        if "retry_seconds" not in event:
            self._world.auditor.note(None, f"log: {event.pop('event')}", dict(event))
        raise structlog.DropEvent


def _story(world: World, error: BaseException) -> Iterator[str]:
    story = error.story if isinstance(error, Violation) else None
    if story is not None:
        yield f"The call {story.call_id}, model {story.request.model}, by {story.gateway}:"
        yield from _lines(story.events)
        yield f"  hold {story.hold.amount}, {story.terms}"
    yield "What happened around it:"
    yield from _lines(_near(world, story))


def _near(world: World, story: Story | None) -> list[tuple[int, str, object]]:
    events = world.auditor.events
    if story is None or not story.events:
        return events[-_SHOWN_EVENTS:]
    first_us, last_us = story.events[0][0] - 5_000_000, world.clock.us
    near = [event for event in events if first_us <= event[0] <= last_us]
    return near[:_SHOWN_EVENTS]


def _lines(events: list[tuple[int, str, object]]) -> Iterator[str]:
    for at_us, sentence, about in events:
        yield f"  {at_us / 1_000_000:10.6f} s  {sentence} {about}".rstrip()
