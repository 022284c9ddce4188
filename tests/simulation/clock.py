"""Simulated time: an event loop in which a timer costs nothing, because time jumps to it when nothing else is to do.

What really takes time (Postgres) happens while simulated time stands still, and is looked at only when nothing else is
ready. So the order of all steps follows from the seed, however fast this machine is today.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

START: Final = datetime(2026, 3, 30, 12, tzinfo=UTC)
"""Two days before the end of a month and of a quarter."""

_PATIENCE_SECONDS: Final = 60.0


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


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # With a time-out of zero something is ready: sockets have to wait, or their speed would decide who is first.
        if timeout is not None and timeout <= 0:
            return []
        if self._clock.stands_still:
            found = super().select(_PATIENCE_SECONDS)
            if not found:
                raise RuntimeError("Nothing real answers: a task waits for simulated time inside its transaction.")
            return found
        if timeout is None:
            raise RuntimeError("Nothing will ever happen again: every task waits for another one.")
        self._clock.us += max(1, math.ceil(timeout * 1_000_000))
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The event loop of a simulation."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._simulated = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        """Seconds since the start of the simulation."""
        return self._simulated.us / 1_000_000

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Do it here and now: a thread would be as fast as the machine lets it."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future
