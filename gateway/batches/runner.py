"""Runs batches in a gateway, beside all others that do: claims lines, has them called, stores what comes of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from billing.store import batches as stored
from billing.store.batches import Claimed, Tokens
from billing.store.files import drop_files
from billing.store.keys import find_api_key_by_id
from billing.store.pages import AnyRow
from gateway.batches.exchange import LineExchange
from gateway.batches.finishing import finish
from gateway.batches.lines import own_error
from gateway.batches.outcomes import MOST_FAILURES, NO_MONEY, Again, judge
from gateway.batches.returns import give_back
from gateway.batches.room import Room
from gateway.batches.validation import validate
from gateway.calls.driver import Driver
from gateway.calls.intake import Intake
from gateway.calls.running import Running
from gateway.parts import Parts
from gateway.telemetry import BATCHES
from models.account import Principal
from models.call import Charge
from models.errors import Unavailable

WEATHER: Final = (Unavailable, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
"""What passes by itself: a part is away, slow or overloaded."""

FAULTS: Final = (DataError, IntegrityError, ProgrammingError)
"""What does not, although it looks like it."""

LOOK_SECONDS: Final = 0.5
LINGER_SECONDS: Final = 0.02
TIDY_SECONDS: Final = 5.0
SHORTEST_REST_SECONDS: Final = 1
LONGEST_REST_SECONDS: Final = 60
STORE_AGAIN_SECONDS: Final = 0.5
LAST_STORES_SECONDS: Final = 5.0
_LOOK_AT: Final = 200
"""Lines of a batch that are looked at for ones that there is room for."""
_BATCHES_AT_ONCE: Final = 20
_RETURNS_AT_ONCE: Final = 50
_REVOKED: Final = {
    "code": "api_key_revoked",
    "message": "The API key that created this batch works no more, or its project or organization is closed.",
}

_log = structlog.get_logger("tollgate.batches")


@dataclass(slots=True)
class _Known:
    """The caller behind a key, None where it is dead, and until when that is believed."""

    principal: Principal | None
    until: float


class Batches:
    """The batches as one gateway sees them. `run` goes on for the life of the process; `close` waits for its lines.

    The engine of `parts` is its own.
    """

    def __init__(self, parts: Parts, intake: Intake, running: Running) -> None:
        self._parts = parts
        self._intake = intake
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._held: dict[UUID, Claimed] = {}
        """Lines at work here, by call id."""
        self._exchanges: set[LineExchange] = set()
        """Those of them that are being called."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._keys: dict[UUID, _Known] = {}
        self._resting: dict[UUID, float] = {}
        """Batches of which a line was put off a moment ago, and until when no other line of them is tried."""
        self._room_made = asyncio.Event()
        self._has_open = False
        """Whether a batch was open at the last look: where none was, nobody asks Postgres for lines."""

    async def run(self, stop: asyncio.Event) -> None:
        """Do all that there is to do, again and again; a part that is away is waited for."""
        async with asyncio.TaskGroup() as tasks:
            for work, seconds in (
                (self._move_on, LOOK_SECONDS),
                (self._keep_lines, self._parts.settings.batch_lease_seconds / 4),
                (self._tidy, TIDY_SECONDS),
            ):
                tasks.create_task(_again_and_again(work, seconds, stop))
            tasks.create_task(_again_and_again(self._take_lines, LOOK_SECONDS, stop, self._room_made))

    async def close(self) -> None:
        """Wait for what lines have come to, once all calls have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_STORES_SECONDS)
        for task in tuple(self._tasks):
            task.cancel()
        await self._parts.engine.dispose()

    # The steps of a batch --------------------------------------------------------------------------------------------

    async def _move_on(self) -> None:
        """Validate what was created, finish what has run, end what is over time."""
        batches = await self._open()
        self._has_open = bool(batches)
        for batch in batches:
            try:
                await self._move(batch)
            except Exception as error:
                if isinstance(error, WEATHER) and not isinstance(error, FAULTS):
                    raise
                # One that cannot be worked on must not stop the others.
                _log.exception("batch_broke", organization_id=batch.organization_id, kind=batch.status)

    async def _move(self, batch: AnyRow) -> None:
        if batch.status == "validating":
            await validate(self._parts, batch)
        elif batch.status == "in_progress":
            await self._end_running(batch)
        elif (status := await finish(self._parts, batch)) is not None:
            _log.info("batch_ended", kind=status, organization_id=batch.organization_id, count=batch.total)

    async def _end_running(self, batch: AnyRow) -> None:
        now = self._parts.clock.now()
        async with self._parts.engine.begin() as connection:
            if now >= batch.expires_at or not await stored.has_lines_left(connection, batch.id):
                values = {"status": "finalizing", "finalizing_at": now}
                await stored.move_batch(connection, batch.id, ("in_progress",), values)

    async def _open(self) -> list[AnyRow]:
        async with self._parts.engine.connect() as connection:
            return await stored.open_batches(connection)

    async def _tidy(self) -> None:
        """Give back what lost attempts cost, and drop files that have expired."""
        for _ in range(_RETURNS_AT_ONCE):
            if not await give_back(self._parts):
                break
        async with self._parts.engine.begin() as connection:
            await drop_files(connection, self._parts.clock.now(), 20)

    # Lines -----------------------------------------------------------------------------------------------------------

    async def _take_lines(self) -> None:
        """Begin as many lines as there is room for, in turn between organizations."""
        if not self._has_open or not self._free:
            return
        now = self._parts.clock.now()
        self._resting = {one: until for one, until in self._resting.items() if until > self._loop.time()}
        batches = [
            one
            for one in await self._open()
            if one.status == "in_progress" and one.expires_at > now and one.id not in self._resting
        ]
        for batch, limit in _in_turn(batches, self._free):
            principal = await self._principal(batch)
            if principal is not None:
                await self._take_of(batch, principal, min(limit, self._free))

    @property
    def _free(self) -> int:
        """How many lines may begin now, as far as this process is concerned."""
        running = self._running
        if self._intake.is_draining or running.capacity.lag.is_shedding or running.capacity.room.waiting_calls:
            return 0
        return max(0, self._parts.settings.batch_calls - len(self._held))

    async def _take_of(self, batch: AnyRow, principal: Principal, limit: int) -> None:
        if limit <= 0:
            return
        parts, catalog = self._parts, self._parts.catalog.current
        self._running.capacity.know(catalog)
        models = [one.model for one in self._held.values()]
        room = Room(catalog, self._running.capacity.room, models, parts.settings.batch_share, batch.organization_id)
        async with parts.engine.begin() as connection:
            claimed = await stored.claim_lines(
                connection,
                batch.id,
                lambda models: room.take(models, limit),
                look_at=min(_LOOK_AT, 4 * limit),
                organization_id=batch.organization_id,
                lease_seconds=parts.settings.batch_lease_seconds,
                now=parts.clock.now(),
            )
        BATCHES.lost(sum(one.was_lost for one in claimed))
        for one in claimed:
            self._held[one.call_id] = one
            task = asyncio.create_task(self._run_line(batch, one, principal))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _principal(self, batch: AnyRow) -> Principal | None:
        """The caller of a batch's lines; a batch whose key is dead is stopped."""
        parts, now = self._parts, self._loop.time()
        known = self._keys.get(batch.api_key_id)
        if known is None or known.until <= now:
            async with parts.engine.connect() as connection:
                principal = await find_api_key_by_id(connection, batch.api_key_id, parts.clock.now())
            self._keys = {key: one for key, one in self._keys.items() if one.until > now}
            known = self._keys[batch.api_key_id] = _Known(principal, now + parts.settings.key_cache_seconds)
        if known.principal is None:
            values = {"status": "cancelling", "cancelling_at": parts.clock.now(), "errors": [_REVOKED]}
            async with parts.engine.begin() as connection:
                await stored.move_batch(connection, batch.id, ("in_progress",), values)
        return known.principal

    async def _run_line(self, batch: AnyRow, claimed: Claimed, principal: Principal) -> None:
        try:
            if claimed.failures >= MOST_FAILURES:
                # Whoever ran it died of it, again and again.
                told = own_error("attempts_exhausted", f"This request was tried {claimed.failures} times in vain.")
                await self._persist(lambda: self._end(batch, claimed, None, told, None, is_lost=False))
                return
            exchange = LineExchange(batch.endpoint, claimed.body)
            self._exchanges.add(exchange)
            try:
                self._intake.begin_line(exchange, principal, claimed.call_id)
                await exchange.answered
            finally:
                self._exchanges.discard(exchange)
            await self._persist(lambda: self._store(batch, claimed, exchange))
        except Exception:
            # The line is taken again when its time is over.
            _log.exception("batch_line_broke", call_id=claimed.call_id)
        finally:
            self._held.pop(claimed.call_id, None)
            self._room_made.set()

    async def _store(self, batch: AnyRow, claimed: Claimed, exchange: LineExchange) -> None:
        """Write down what came of an attempt: its answer, or that there will be another one."""
        status = exchange.status if exchange.response_complete else 0
        outcome = judge(
            status,
            exchange.retry_after_seconds,
            delays=claimed.delays,
            failures=claimed.failures,
            is_money_held=status == NO_MONEY and self._is_money_held(batch.organization_id),
        )
        charge = _charge_of(exchange)
        if isinstance(outcome, Again):
            seconds = 0 if self._intake.is_draining else outcome.seconds
            if not outcome.has_failed:
                # What one is refused for, the others would be as well.
                rest_seconds = max(exchange.retry_after_seconds, SHORTEST_REST_SECONDS)
                self._resting[batch.id] = self._loop.time() + min(rest_seconds, LONGEST_REST_SECONDS)
            lost = 0
            async with self._parts.engine.begin() as connection:
                is_ours = await stored.put_off(connection, claimed, seconds, has_failed=outcome.has_failed)
                if charge is not None:
                    lost = await self._lose(connection, batch, claimed)
            BATCHES.lost(lost)
            BATCHES.run("taken" if not is_ours else "retried" if outcome.has_failed else "put_off")
            return
        if status:
            told, told_status = exchange.body, status
        else:
            told, told_status = own_error("no_answer", "There was no answer to this request."), None
        is_lost = charge is not None and not outcome.is_paid
        await self._end(batch, claimed, told_status, told, charge, is_lost=is_lost)

    def _is_money_held(self, organization_id: UUID) -> bool:
        """Whether money of an organization is held for a line that runs here, and may come free."""
        holds = (one.client.call.hold for one in self._exchanges if isinstance(one.client, Driver))
        return any(hold is not None and hold.request.origin.organization_id == organization_id for hold in holds)

    async def _end(
        self, batch: AnyRow, claimed: Claimed, status: int | None, told: bytes, charge: Charge | None, *, is_lost: bool
    ) -> None:
        tokens, lost = Tokens() if charge is None or is_lost else _tokens_of(charge), 0
        async with self._parts.engine.begin() as connection:
            is_ours = await stored.end_line(connection, claimed, status, told, tokens)
            # A line that is another's by now needs no note: whoever took it has made one. One that is not ours since we
            # have ended it before, and were not told, must have none: its answer is there, and is paid for.
            if is_lost:
                lost = await self._lose(connection, batch, claimed)
        BATCHES.lost(lost)
        BATCHES.run("taken" if not is_ours else "completed" if stored.is_good(status) else "failed")

    async def _lose(self, connection: Any, batch: AnyRow, claimed: Claimed) -> int:
        attempt = (claimed.call_id, batch.id, claimed.line)
        return len(await stored.add_lost(connection, batch.organization_id, [attempt]))

    async def _persist(self, store: Callable[[], Awaitable[None]]) -> None:
        """Store, again and again until Postgres takes it: an answer that was paid for is worth waiting with."""
        while True:
            try:
                await store()
            except FAULTS:
                raise
            except WEATHER as error:
                _log.warning("batch_line_waits", reason=type(error).__name__, retry_seconds=STORE_AGAIN_SECONDS)
                await asyncio.sleep(STORE_AGAIN_SECONDS)
            else:
                return

    async def _keep_lines(self) -> None:
        if self._held:
            async with self._parts.engine.begin() as connection:
                await stored.keep_lines(connection, list(self._held.values()), self._parts.settings.batch_lease_seconds)


def _in_turn(batches: list[AnyRow], free: int) -> list[tuple[AnyRow, int]]:
    """One batch of each organization first, then another of each; with how many of its lines may begin."""
    # Shuffled, so that gateways do not all look for the same lines.
    random.shuffle(batches)
    batches.sort(key=lambda one: one.organization_id)
    queues = [list(own) for _, own in groupby(batches, key=lambda one: one.organization_id)]
    random.shuffle(queues)
    if not queues:
        return []
    share = max(1, -(-free // len(queues)))
    turns = [(queue[turn], share) for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return turns[:_BATCHES_AT_ONCE]


def _charge_of(exchange: LineExchange) -> Charge | None:
    """What the attempt was charged, if it came to that."""
    return exchange.client.call.charge if isinstance(exchange.client, Driver) else None


def _tokens_of(charge: Charge) -> Tokens:
    return Tokens(charge.input_tokens, charge.cached_tokens, charge.output_tokens, charge.reasoning_tokens)


async def _again_and_again(
    work: Callable[[], Awaitable[None]], seconds: float, stop: asyncio.Event, sooner: asyncio.Event | None = None
) -> None:
    """Do `work` every so many seconds, or when it is wanted `sooner`; bad weather is waited out."""
    is_away = False
    awaited = sooner or stop
    while not stop.is_set():
        try:
            await work()
        except FAULTS:
            _log.exception("batches_broke", action=_name_of(work))
        except WEATHER as error:
            if not is_away:
                _log.warning("batches_wait", action=_name_of(work), reason=type(error).__name__)
            is_away = True
        except Exception:
            _log.exception("batches_broke", action=_name_of(work))
        else:
            is_away = False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await awaited.wait()
        if sooner is not None and sooner.is_set():
            sooner.clear()
            # Others end in the same moment; one look for all of them costs the database less.
            await asyncio.sleep(LINGER_SECONDS)


def _name_of(work: Callable[[], Awaitable[None]]) -> str:
    return getattr(work, "__name__", "")
