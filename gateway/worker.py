"""The worker: moves settled charges from Redis to Postgres, ends the calls of dead gateways, keeps balances right.

Any number of workers may run: the lock on a shard's row decides who books it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import asyncpg
import structlog
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.allowances import grant_allowances
from billing.hot.keys import SHARDS
from billing.hot.store import HotStore, make_hot_store
from billing.notices import notice
from billing.projection import project_all
from billing.rebuild import ensure_epoch
from billing.sealing import seal_postings
from billing.settlement import Booked, book_shard, expire_grants
from billing.spending import count_all_spending
from billing.store.batches import standing
from billing.store.engine import make_engine
from billing.store.ledger import ensure_partitions
from billing.store.shards import epochs, positions
from billing.sweeper import Swept, sweep_shard
from gateway.clock import Clock
from gateway.deliveries import AT_ONCE, Post, deliver
from gateway.memory import forget_old
from gateway.server import InternalServer, config_of
from gateway.telemetry import BATCHES, REGISTRY, WORKER
from models.errors import Unavailable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.settings import Settings

WEATHER: Final = (Unavailable, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""What passes by itself: a part is away, slow or overloaded."""

_BATCH: Final = 1_000
_HANDS: Final = 3
"""Shards booked at a time: below the engine's connections, so that tidying and alerting always have one each."""

_WAIT_MS: Final = 500
_LINGER_SECONDS: Final = 0.5
_BUSY_SECONDS: Final = 0.05
_TIDY_SECONDS: Final = 5.0
_SWEEP_SECONDS: Final = 5.0
_ALERT_SECONDS: Final = 5.0
_PARTITION_EVERY: Final = timedelta(hours=12)
_LONGEST_REST_SECONDS: Final = 10.0
_LAST_ROUNDS_SECONDS: Final = 5.0

_log = structlog.get_logger()


async def run_worker(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop` is set, then book what is left and return; a part that is away is waited for."""
    engine = make_engine(settings.database_url.get_secret_value(), pool_size=5, application_name="tollgate worker")
    hot = await make_hot_store(settings.redis_url.get_secret_value())
    post = Post(settings.key_pepper.get_secret_value().encode())
    try:
        worker = Worker(engine, hot, Clock(settings.clock), stop)
        async with showing_metrics(settings.internal_host, settings.worker_internal_port):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.keep(worker.book))
                tasks.create_task(worker.keep(worker.tidy))
                tasks.create_task(worker.keep(worker.sweep))
                tasks.create_task(worker.keep(partial(worker.alert, post)))
            await worker.finish()
    finally:
        await post.close()
        await hot.close()
        await engine.dispose()


@contextlib.asynccontextmanager
async def showing_metrics(host: str, port: int) -> AsyncIterator[int | None]:
    """Serve `/metrics` meanwhile, on the port that is given. A worker whose port is taken books without showing it."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        _log.warning("metrics_not_shown", host=host, port=port, reason=error.strerror)
        yield None
        return
    listener.setblocking(False)
    port = listener.getsockname()[1]
    _log.info("metrics_shown", host=host, port=port)
    server = InternalServer(config_of(Starlette(routes=[Route("/metrics", _read_metrics)]), http="httptools"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield port
    finally:
        server.should_exit = True
        await serving


async def _read_metrics(_request: Request) -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


class Worker:
    """One worker. It knows where each shard's stream is booked to, as far as it has heard."""

    def __init__(self, engine: AsyncEngine, hot: HotStore, clock: Clock, stop: asyncio.Event) -> None:
        self._engine = engine
        self._hot = hot
        self._clock = clock
        self._stop = stop
        self._epochs: dict[int, int] = {}
        self._positions: dict[int, str] = {}
        self._resting: dict[int, float] = {}
        self._partitions_at: float | None = None
        self._hands = asyncio.Semaphore(_HANDS)

    async def keep(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` again and again until told to stop; bad weather is logged once and waited out."""
        failures = 0
        while not self._stop.is_set():
            try:
                await work()
            except WEATHER as error:
                failures += 1
                if failures == 1:
                    _log.warning("worker_waits", action=_name_of(work), reason=f"{type(error).__name__}: {error}")
                await self._pause(min(_LONGEST_REST_SECONDS / 5, 0.1 * 2 ** min(failures, 6)))
            else:
                if failures:
                    _log.info("worker_goes_on", action=_name_of(work), attempt=failures)
                failures = 0

    async def book(self) -> None:
        """One round: mend epochs, wait for charges, book every shard that has some."""
        await self._mend_epochs()
        awake = {shard: at for shard, at in self._positions.items() if self._resting.get(shard, 0) <= time.monotonic()}
        ready = await self._ready(awake)
        if not ready:
            if not awake:
                await self._pause(_BUSY_SECONDS)
            elif await self._hot.wait(awake, _WAIT_MS):
                # A batch of many costs little more than a batch of one.
                await self._pause(_LINGER_SECONDS)
            return
        results = await asyncio.gather(*(self._book_shard(shard) for shard in ready))
        if not any(result.read for result in results):
            await self._pause(_BUSY_SECONDS)

    async def tidy(self) -> None:
        """Partitions and grants on time, balances that a program died before projecting, spend limits, seals.

        Last a look at how batches stand.
        """
        started = time.monotonic()
        if self._partitions_at is None or started - self._partitions_at > _PARTITION_EVERY.total_seconds():
            async with self._engine.begin() as connection:
                for partition in await ensure_partitions(connection, self._clock.now()):
                    _log.info("partition_made", partition=partition)
            await forget_old(self._engine, self._clock.now())
            self._partitions_at = started
        await expire_grants(self._engine, self._clock.now())
        await grant_allowances(self._engine, self._hot, self._clock.now())
        shards = list(self._epochs)
        for shard in shards:
            await project_all(self._engine, self._hot, shard)
        await count_all_spending(self._engine, self._hot, shards, self._clock.now())
        await seal_postings(self._engine)
        async with self._engine.connect() as connection:
            BATCHES.stand(await standing(connection), self._clock.now())
        # However many organizations there are, this takes a tenth of the time at most.
        await self._pause(max(_TIDY_SECONDS, 9 * (time.monotonic() - started)))

    async def sweep(self) -> None:
        """End the calls of gateways that died, and see how much waits to be booked."""
        lengths = await asyncio.gather(*(self._hot.length(shard) for shard in range(SHARDS)))
        for shard, entries in enumerate(lengths):
            WORKER.lag(shard, entries)
        # One shard after the other: what a dead gateway left is ended without crowding out the living.
        for shard in range(SHARDS):
            _tell(await sweep_shard(self._hot, shard, self._clock.now()))
        await self._pause(_SWEEP_SECONDS)

    async def alert(self, post: Post) -> None:
        """Notice what people want to be told of, and send it to them."""
        started = time.monotonic()
        if given := await notice(self._engine, self._clock.now()):
            _log.info("alerts_given", count=given)
        noticed = time.monotonic() - started
        while await deliver(self._engine, post, self._clock.now()) == AT_ONCE and not self._stop.is_set():
            pass
        # As with tidying: however much there is to look at, a tenth of the time at most.
        await self._pause(max(_ALERT_SECONDS, 9 * noticed))

    async def finish(self) -> None:
        """Book what is on the streams now, for some seconds at most; what stays is booked by the next worker."""
        try:
            async with asyncio.timeout(_LAST_ROUNDS_SECONDS):
                while ready := await self._ready(self._positions):
                    results = await asyncio.gather(*(self._book_shard(shard) for shard in ready))
                    if not any(result.read for result in results):
                        return
        except WEATHER as error:
            _log.warning("worker_left_charges", reason=f"{type(error).__name__}: {error}")

    async def _mend_epochs(self) -> None:
        """Rebuild the shards whose epoch Redis does not show; usually sixteen reads in one packet."""
        if not self._epochs:
            await self._learn()
        shown = await asyncio.gather(*(self._hot.epoch(shard) for shard in self._epochs))
        wrong = [shard for shard, epoch in zip(self._epochs, shown, strict=True) if epoch != self._epochs[shard]]
        if not wrong:
            return
        for shard in wrong:
            if not await ensure_epoch(self._engine, self._hot, shard):
                await self._pause(_BUSY_SECONDS)
        before = dict(self._epochs)
        await self._learn()
        raised = [shard for shard in wrong if self._epochs[shard] != before[shard]]
        if raised:
            await count_all_spending(self._engine, self._hot, raised, self._clock.now())
            _log.info("balances_rebuilt", shards=raised, epoch=max(self._epochs[shard] for shard in raised))

    async def _learn(self) -> None:
        async with self._engine.connect() as connection:
            self._epochs = await epochs(connection)
            self._positions = await positions(connection)

    async def _ready(self, at: dict[int, str]) -> list[int]:
        """The shards with an entry after the position that is known."""
        waiting = await asyncio.gather(*(self._hot.read(shard, position, 1) for shard, position in at.items()))
        return [shard for shard, entries in zip(at, waiting, strict=True) if entries]

    async def _book_shard(self, shard: int) -> Booked:
        try:
            async with self._hands:
                booked = await book_shard(self._engine, self._hot, shard, _BATCH)
        except (IntegrityError, ProgrammingError, AssertionError):
            # A fault that will not pass by itself: it must not stop the other shards.
            _log.exception("shard_not_booked", shard=shard)
            self._resting[shard] = time.monotonic() + _LONGEST_REST_SECONDS
            return Booked(shard)
        if booked.position:
            self._positions[shard] = booked.position
        WORKER.booked(booked.read - booked.dead)
        if booked.dead:
            WORKER.dead(booked.dead)
            _log.error("entries_set_aside", shard=shard, dead=booked.dead, position=booked.position)
        if booked.charges:
            _log.debug("charges_booked", shard=shard, charges=booked.charges, position=booked.position)
        return booked

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the order to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass


def _name_of(work: Callable[[], Awaitable[None]]) -> str:
    named = work.func if isinstance(work, partial) else work
    return named.__name__


def _tell(swept: Swept) -> None:
    """A line for each call that was ended without its gateway."""
    WORKER.swept(len(swept.recovered), len(swept.voided))
    for charge in swept.recovered:
        _log.warning(
            "call_recovered",
            call_id=charge.call_id,
            organization_id=charge.organization_id,
            project_id=charge.project_id,
            api_key_id=charge.api_key_id,
            model=charge.model,
            deployment=charge.deployment,
            input_tokens=charge.input_tokens,
            output_tokens=charge.output_tokens,
            amount=charge.amount,
            hold=charge.hold,
            currency=charge.currency,
        )
    for void in swept.voided:
        origin = void.hold.request.origin
        _log.warning(
            "call_voided",
            call_id=origin.call_id,
            organization_id=origin.organization_id,
            project_id=origin.project_id,
            api_key_id=origin.api_key_id,
            model=origin.model,
            reason=void.reason,
        )
    for reason in swept.unreadable:
        _log.error("hold_unreadable", shard=swept.shard, reason=reason)
