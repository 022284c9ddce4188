"""Simulated time: an event loop in which a timer costs nothing, because time jumps to it when nothing else is to do.

What really takes time (Postgres) happens while simulated time stands still, and is looked at only when nothing else is
ready. So the order of all steps follows from the seed, however fast this machine is today.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, cast

START: Final = datetime(2026, 3, 30, 12, tzinfo=UTC)
"""Two days before the end of a month and of a quarter."""

_PATIENCE_SECONDS: Final = 60.0
_ROUNDING_SECONDS: Final = 1e-9
"""Of two moments that are that close, it is the same microsecond."""


class SimulatedClock:
    """Microseconds since the start of the simulation, in the forms that the program asks for."""

    def __init__(self) -> None:
        self.us = 0
        self.is_real_work_going_on: Callable[[], bool] = lambda: False
        self._outside = 0

    def now(self) -> datetime:
        """The present moment, as `gateway.clock.Clock` tells it."""
        return START + timedelta(microseconds=self.us)

    def unix_us(self, ahead_us: int = 0) -> int:
        """Microseconds since 1970, as a Redis whose clock is `ahead_us` ahead of ours tells them."""
        return int(START.timestamp()) * 1_000_000 + self.us + ahead_us

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Preparations and clearing away: time stands still for all that happens in here."""
        self._outside += 1
        try:
            yield
        finally:
            self._outside -= 1

    @property
    def stands_still(self) -> bool:
        """Whether somebody waits for something real."""
        return self._outside > 0 or self.is_real_work_going_on()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The event loop of a simulation. Timers of one moment run in the order in which they were set.

    It has a turn of its own, so that this order and when sockets are asked are not left to a version of Python.
    """

    _ready: deque[asyncio.Handle]
    _selector: selectors.BaseSelector
    _stopping: bool

    def __init__(self, clock: SimulatedClock) -> None:
        self._simulated = clock
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()
        super().__init__()

    def time(self) -> float:
        """Seconds since the start of the simulation."""
        return self._simulated.us / 1_000_000

    def call_at(  # type: ignore[override]  # the packing of arguments cannot be said as shortly as it is
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call it when that moment has come."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_soon_threadsafe(  # type: ignore[override]  # the same
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call it in the next turn: there is no other thread whose call would have to wake this one."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Do it here and now: a thread would be as fast as the machine lets it."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        # While anything is ready sockets have to wait, or their speed would decide who is first.
        if not ready and not self._stopping:
            self._wait()
        due = self.time() + _ROUNDING_SECONDS
        while timers and timers[0][0] < due:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _wait(self) -> None:
        if self._simulated.stands_still:
            found = self._selector.select(_PATIENCE_SECONDS)
            if not found:
                raise RuntimeError("Nothing real answers: a task waits for simulated time inside its transaction.")
            cast("Any", self)._process_events(found)
        elif not self._timers:
            raise RuntimeError("Nothing will ever happen again: every task waits for another one.")
        else:
            left_us = math.ceil((self._timers[0][0] - self.time()) * 1_000_000)
            self._simulated.us += max(1, left_us)
