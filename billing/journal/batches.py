"""What waits for the disk, on the event loop's side: gathered, paced, and told when it is there.

The thread is given records, never those who wait for them: what it let go of last, it would have to take apart, which
for a whole call costs more than writing it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from billing.journal.frames import Record
from models.errors import Unavailable

CROWD: Final = 4
"""Calls in flight from which writes are paced, since they then have company soon."""
PACE_SECONDS: Final = (0.008, 0.016)
"""Time between two writes in a crowd of up to 32 calls, and of 64 and more. A write costs up to 300 µs of CPU, nearly
all of it the kernel's, however many records share it. A lone call never waits."""
_PACE_SECONDS_A_CALL: Final = 0.000_25


class JournalUnavailable(Unavailable):
    """The record is not known to be on disk: settle straight to the hot store. It may still be found by a replay."""


Then = Callable[[JournalUnavailable | None], None]
"""Is told that a record is on disk (None), or why that is not known."""


class Batches:
    """Used on the event loop alone. `write` hands records to whoever writes, who answers in the same order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, write: Callable[[list[Record]], None]) -> None:
        self._loop = loop
        self._write = write
        self._records: list[Record] = []
        self._underway: deque[tuple[Record, Then]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._last_at = 0.0

    def add(self, record: Record, then: Then, in_flight: int) -> None:
        """Have a record written: at once, or in a crowd with the others of some milliseconds.

        Where all calls in flight wait for the disk by now, nobody else can come, and waiting on would be for nothing.
        """
        self._records.append(record)
        self._underway.append((record, then))
        if in_flight < CROWD or len(self._underway) >= in_flight:
            self.hand_over()
        elif self._timer is None:
            least, most = PACE_SECONDS
            next_at = self._last_at + min(most, max(least, in_flight * _PACE_SECONDS_A_CALL))
            if self._loop.time() >= next_at:
                self.hand_over()
            else:
                self._timer = self._loop.call_at(next_at, self.hand_over)

    def unwritten(self) -> list[Record]:
        """Records of which nothing has been told yet."""
        return [record for record, _ in self._underway]

    def hand_over(self) -> None:
        """Have written what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._records:
            records, self._records = self._records, []
            self._last_at = self._loop.time()
            self._write(records)

    def written(self, durable: int, lost: int, reason: str) -> None:
        """Of the records that were handed over first, so many are on disk, and of so many behind them it is unknown."""
        for _ in range(durable):
            self._underway.popleft()[1](None)
        for _ in range(lost):
            self._underway.popleft()[1](JournalUnavailable(f"the journal cannot be written ({reason})"))
