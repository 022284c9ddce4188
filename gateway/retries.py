"""The retry budget: when many calls fail, trying each again would only add to the load. Pure: time is an argument."""

from __future__ import annotations

from gateway.window import Window

WINDOW_SECONDS = 10
SHARE = 0.1
"""Retries per call (facts on reliability, section 8)."""
FLOOR = 3
"""Retries that a window always has, so that a gateway with few calls may retry at all (Envoy: 3 at a time)."""


class RetryBudget:
    """The retries of a process: at most `share` of the calls within ten seconds, or `floor`, whichever is more."""

    __slots__ = ("_calls", "_floor", "_retries", "_share")

    def __init__(self, share: float = SHARE, floor: int = FLOOR) -> None:
        self._share = share
        self._floor = floor
        self._calls = Window(WINDOW_SECONDS)
        self._retries = Window(WINDOW_SECONDS)

    def called(self, now: float) -> None:
        """A call makes its first attempt."""
        self._calls.add(now)

    def take(self, now: float) -> bool:
        """Whether one more retry is within the budget; if so, it is taken from it."""
        if self._retries.sum(now) + 1 > max(self._floor, self._share * self._calls.sum(now)):
            return False
        self._retries.add(now)
        return True
