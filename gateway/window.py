"""A sliding window: how much was counted within the last seconds. Pure: time is an argument."""

from __future__ import annotations


class Window:
    """A count over the current second of the clock and those just before it, `seconds` in all.

    Whole seconds bound the memory: what is counted leaves together with its second.
    """

    __slots__ = ("_counts", "_second", "_sum")

    def __init__(self, seconds: int) -> None:
        self._counts = [0] * seconds
        self._second = 0
        self._sum = 0

    def add(self, now: float) -> None:
        """Count one at `now`."""
        if int(now) > self._second:
            self._advance(int(now))
        self._counts[self._second % len(self._counts)] += 1
        self._sum += 1

    def sum(self, now: float) -> int:
        """How much was counted within the window that ends at `now`."""
        if int(now) > self._second:
            self._advance(int(now))
        return self._sum

    def _advance(self, second: int) -> None:
        for passed in range(max(self._second + 1, second + 1 - len(self._counts)), second + 1):
            slot = passed % len(self._counts)
            self._sum -= self._counts[slot]
            self._counts[slot] = 0
        self._second = second
