"""A simulated worker: books, mends epochs, sweeps and tidies like the real one, and dies between any two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from billing.hot.store import START, HotStore
from billing.projection import project_all
from billing.rebuild import ensure_epoch
from billing.settlement import book_shard, expire_grants
from billing.store.shards import epochs
from billing.sweeper import sweep_shard
from models.errors import Unavailable

if TYPE_CHECKING:
    from tests.simulation.world import World

WEATHER: Final = (Unavailable, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
BATCH: Final = 500
SWEEP_SECONDS: Final = 5.0
TIDY_SECONDS: Final = 5.0


class WorkerKilled(Exception):
    """The worker is killed at this step; its transaction is rolled back by the database."""


class Worker:
    """One worker. What it knows dies with it, and it is started again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._engine = cast("Any", world.book)
        self._hot = HotStore("", cast("Any", world.line(self)))
        self._epochs: dict[int, int] = {}
        self._positions: dict[int, str] = {}
        self.sleeps_until = 0.0

    async def go_on(self) -> None:
        """Return when the worker runs; it may be killed here."""
        loop = asyncio.get_running_loop()
        if loop.time() < self.sleeps_until:
            await asyncio.sleep(self.sleeps_until - loop.time())
        self._world.failpoint("between two steps")

    async def run(self) -> None:
        """Work for ever."""
        await asyncio.gather(
            self._again(self._book, lambda: self._world.random.expovariate(1 / self._world.linger_seconds)),
            self._again(self._sweep, lambda: SWEEP_SECONDS),
            self._again(self._tidy, lambda: TIDY_SECONDS),
        )

    async def _again(self, work: Callable[[], Awaitable[None]], pause: Callable[[], float]) -> None:
        while True:
            try:
                await work()
            except WEATHER:
                await asyncio.sleep(0.2)
            except WorkerKilled:
                self._epochs, self._positions = {}, {}
                await asyncio.sleep(1)
            await asyncio.sleep(pause())

    async def _book(self) -> None:
        if not self._epochs:
            async with self._engine.connect() as connection:
                self._epochs = await epochs(connection)
        known = self._epochs
        for shard in self._world.shards:
            if await self._hot.epoch(shard) != known[shard]:
                await ensure_epoch(self._engine, self._hot, shard)
                self._epochs, self._positions = {}, {}
                return
        for shard in self._world.shards:
            if not await self._hot.read(shard, self._positions.get(shard, START), 1):
                continue
            booked = await book_shard(self._engine, self._hot, shard, BATCH)
            self._positions[shard] = booked.position or self._positions.get(shard, START)
            if booked.dead:
                self._world.fail(AssertionError(f"{booked.dead} charges were set aside"))

    async def _sweep(self) -> None:
        for shard in self._world.shards:
            await sweep_shard(self._hot, shard, self._world.clock.now())

    async def _tidy(self) -> None:
        await expire_grants(self._engine, self._world.clock.now())
        for shard in self._world.shards:
            await project_all(self._engine, self._hot, shard)
