"""The calls that run in this process, and the charges that the hot store has not taken yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import structlog

from billing.hot.entries import encode_checkpoint, encode_prompt_checkpoint, encode_request
from billing.hot.store import HotStore
from billing.journal.journal import Journal
from billing.journal.open_calls import NOWHERE
from billing.tokens import Tokenizers
from gateway.calls.capacity import Capacity
from gateway.calls.machine import Call
from gateway.calls.upstream import Upstreams
from gateway.settings import Settings
from models.call import CallOrigin, Charge, Hold, Void
from models.errors import Unavailable

CHECKPOINT_SECONDS = 1.0
SWEEP_SECONDS = 0.25
SETTLE_AT_STOP_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0

_log = structlog.get_logger("tollgate.calls")


class RunningCall(Protocol):
    """What a process does to its calls from outside."""

    call: Call
    slot: int
    """Where the call is noted while it is at a backend; `NOWHERE` where it is not."""

    def check_time(self, now: float) -> None:
        """End what has taken too long; `now` is the event loop's time."""

    def drain(self) -> None:
        """End with what there is: the process stops."""


class ResponseStore(Protocol):
    """Where responses are kept."""

    async def store(self, origin: CallOrigin, response: dict[str, Any], items: list[Any]) -> bool:
        """Keep a response; answers whether it is kept."""


@dataclass(slots=True)
class Running:
    """Shared by all calls of a process."""

    settings: Settings
    hot: HotStore
    upstreams: Upstreams
    capacity: Capacity
    tokenizers: Tokenizers
    journal: Journal | None = None
    memory: ResponseStore | None = None
    drivers: set[RunningCall] = field(default_factory=set)
    unsettled: set[asyncio.Task[None]] = field(default_factory=set)
    _owed: set[UUID] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _hurried: bool = False

    async def watch(self, stop: asyncio.Event) -> None:
        """Look for calls past one of their time limits, and note how far all have come, four times a second."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            now = loop.time()
            for driver in tuple(self.drivers):
                driver.check_time(now)
                self.note(driver)
            expected = loop.time() + SWEEP_SECONDS
            await asyncio.sleep(SWEEP_SECONDS)
            self.capacity.lag.woke(expected, loop.time())

    async def keep_checkpoints(self, stop: asyncio.Event) -> None:
        """Once a second, write how far all calls have come, in one go; it also shows that this process is alive."""
        while not stop.is_set():
            points = [point for driver in tuple(self.drivers) if (point := driver.call.checkpoint()) is not None]
            try:
                await self.hot.checkpoint(points)
            except Unavailable:
                pass
            except Exception:
                # This loop is the process's sign of life: were it to end, the sweeper would take all calls for dead.
                _log.exception("checkpoint_failed")
            await asyncio.sleep(CHECKPOINT_SECONDS)

    def note(self, driver: RunningCall, *, is_sent: bool = False) -> None:
        """Have what a call owes known to whoever finds this process dead, from when it `is_sent` to a backend."""
        notes, call = None if self.journal is None else self.journal.open_calls, driver.call
        if notes is None:
            return
        if driver.slot != NOWHERE:
            if (point := call.checkpoint()) is not None:
                notes.note(driver.slot, encode_checkpoint(point))
        elif is_sent and call.hold is not None:
            # Half the price of a checkpoint: nothing is known yet but the size of the prompt.
            tokens = min(call.meter.prompt_estimate, call.hold_request.input_bound)
            sent = encode_prompt_checkpoint(tokens, call.deployment.backend.name)
            driver.slot = notes.enter(call.hold.encoded or encode_request(call.hold.request), sent)

    def call_ids(self) -> frozenset[UUID]:
        """The calls that have not ended, or whose end the hot store has not taken yet."""
        return frozenset(driver.call.hold_request.origin.call_id for driver in self.drivers) | self._owed

    async def drain(self, seconds: float) -> None:
        """Wait for running calls to end, then end them; then wait for all charges to be taken."""
        await self._until(lambda: self._hurried or not self.drivers, seconds)
        for driver in tuple(self.drivers):
            driver.drain()
        await self._until(lambda: not self.drivers and not self.unsettled, SETTLE_AT_STOP_SECONDS)

    def hurry(self) -> None:
        """Do not wait for running calls any longer."""
        self._hurried = True
        self._changed.set()

    async def _until(self, is_so: Callable[[], bool], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_so():
                    self._changed.clear()
                    await self._changed.wait()

    def ended(self, driver: RunningCall) -> None:
        """A call has ended, durably."""
        self.forget(driver.slot)
        driver.slot = NOWHERE
        self.drivers.discard(driver)
        self._changed.set()

    def forget(self, slot: int) -> None:
        """What was noted of a call is known elsewhere now."""
        if slot != NOWHERE and self.journal is not None and self.journal.open_calls is not None:
            self.journal.open_calls.leave(slot)

    def detach(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let work go on that must not end with the request it belongs to."""
        task = asyncio.create_task(work)
        self.unsettled.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.unsettled.discard(task)
        self._changed.set()

    def settle(self, hold: Hold, charge: Charge) -> asyncio.Task[None]:
        """Settle, again and again until the hot store has taken it; settling is idempotent by call id."""
        return self._end(charge.call_id, lambda: self.hot.settle(hold, charge), "settle_waits")

    def release(self, void: Void) -> asyncio.Task[None]:
        """Give a hold back, again and again until the hot store has done it."""
        return self._end(void.hold.request.origin.call_id, lambda: self.hot.void(void.hold), "release_waits")

    def _end(self, call_id: UUID, do: Callable[[], Awaitable[bool]], event: str) -> asyncio.Task[None]:
        self._owed.add(call_id)
        task = self.detach(_persist(do, event, call_id))
        task.add_done_callback(lambda _: self._owed.discard(call_id))
        return task


async def _persist(do: Callable[[], Awaitable[bool]], event: str, call_id: UUID) -> None:
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            await do()
        except Unavailable as error:
            _log.warning(event, call_id=call_id, reason=error.message, retry_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        else:
            return
