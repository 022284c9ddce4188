"""Loop lag: an event loop that wakes too late has more work than time, and takes no new calls. Pure.

Two bounds and a second of patience keep it from changing its mind with every wake-up (facts on reliability, section 8).
"""

from __future__ import annotations

SHED_ABOVE_SECONDS = 0.1
CALM_BELOW_SECONDS = 0.05
PATIENCE_SECONDS = 1.0


class LoopLag:
    """How late a loop wakes. `seconds` is the last lag; while `is_shedding`, new calls are refused with 503."""

    __slots__ = ("_since", "is_shedding", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_shedding = False
        self._since: float | None = None

    def woke(self, expected: float, actual: float) -> None:
        """The loop was to wake at `expected`, and did at `actual`; to be told several times a second."""
        self.seconds = max(0.0, actual - expected)
        is_calm, is_late = self.seconds < CALM_BELOW_SECONDS, self.seconds > SHED_ABOVE_SECONDS
        if not (is_calm if self.is_shedding else is_late):
            self._since = None
        elif self._since is None:
            # Counted from here, not from `expected`: a single stall, however long, is over when it is seen.
            self._since = actual
        elif actual - self._since >= PATIENCE_SECONDS:
            self.is_shedding = not self.is_shedding
            self._since = None
