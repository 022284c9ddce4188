"""The thread that writes: all that waits when it becomes free goes to disk in one write, acknowledged together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final
from uuid import UUID

from billing.journal.frames import FRAME_BYTES, Record, frame
from billing.journal.segments import SegmentFile

RETRY_MS: Final = 250
"""How long after a failure a new segment is tried for, and again."""
STUCK_MS: Final = 2_000
"""A write that takes longer is a disk that hangs: new calls are refused in as much time."""

_TRIES: Final = 2
"""Segments that one batch may spoil: where the second fails too, it is the disk, and the caller must know."""
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment that is not written any more, and the calls acknowledged in it."""

    path: Path
    call_ids: frozenset[UUID]


@dataclass(slots=True)
class Outcome:
    """What became of a batch: the first `durable` records are on disk, of the `lost` ones `reason` says why not."""

    durable: int = 0
    lost: int = 0
    reason: str = ""
    sealed: list[Sealed] = field(default_factory=list)


class Writer:
    """Owns the segment that is written and the spare behind it. `report` is called from the thread, once a batch.

    `trouble` is None while all is well: the last write succeeded and a spare is ready. The spare is the reserve for the
    calls that run when the disk fills up: whoever sees trouble stops taking new ones.
    """

    def __init__(
        self, home: Path, instance_id: UUID, number: int, segment_bytes: int, report: Callable[[Outcome], None]
    ) -> None:
        self.trouble: str | None = None
        self.failures = 0
        self._home = home
        self._instance_id = instance_id
        self._number = number
        self._segment_bytes = segment_bytes
        self._report = report
        self._queue: SimpleQueue[list[Record] | None] = SimpleQueue()
        self._current: SegmentFile | None = None
        self._spare: SegmentFile | None = None
        self._call_ids: list[UUID] = []
        self._rest_until_ns = 0
        self._busy_since_ns = 0
        self._sealed: list[Sealed] = []
        self._prepare()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether the disk has not answered for longer than a caller should wait."""
        since = self._busy_since_ns
        return bool(since) and time.monotonic_ns() - since > STUCK_MS * _NS_PER_MS

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def put(self, records: list[Record]) -> None:
        """Let records be written."""
        self._queue.put(records)

    def stop(self) -> None:
        """Write what waits, end the thread and return when it has ended; blocks."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            batch, is_last = self._take()
            self._busy_since_ns = time.monotonic_ns()
            if batch:
                self._report(self._commit(batch))
            # After the report: the calls of this batch need not wait for it.
            if self._spare is None and not is_last:
                self._prepare()
            self._busy_since_ns = 0
        self._end()

    def _take(self) -> tuple[list[Record], bool]:
        """All that waits, or nothing where it is time to try for a spare; and whether there will be no more."""
        try:
            waiting = [self._queue.get(timeout=None if self._spare else RETRY_MS / 1_000)]
        except Empty:
            return [], False
        waiting += (self._queue.get_nowait() for _ in range(self._queue.qsize()))
        # The end is asked for once, after everything else.
        is_last = waiting[-1] is None
        return [record for records in waiting if records is not None for record in records], is_last

    def _commit(self, batch: list[Record]) -> Outcome:
        durable, tries, reason = 0, _TRIES, ""
        try:
            while durable < len(batch):
                segment = self._segment(FRAME_BYTES + len(batch[durable].payload))
                frames, call_ids = _fill(segment, batch[durable:])
                try:
                    segment.write(frames)
                except OSError as error:
                    self._spoiled(error)
                    tries -= 1
                    if not tries:
                        self._rest()
                        raise
                else:
                    durable += len(call_ids)
                    self._call_ids += call_ids
                    if self._spare is not None:
                        self.trouble = None
        except Exception as error:
            # Whatever it was: nobody may wait for ever, and the thread must serve the next batch.
            reason = f"{type(error).__name__}: {error}"
        sealed, self._sealed = self._sealed, []
        return Outcome(durable, len(batch) - durable, reason, sealed)

    def _segment(self, size_bytes: int) -> SegmentFile:
        """A segment with room for a frame; raises `OSError` where the reserve is used up and no space has come back."""
        if self._current is not None and self._current.room_bytes >= size_bytes:
            return self._current
        if self._spare is None:
            self._prepare()
        if self._spare is None:
            # The current segment is kept: smaller records may still fit.
            raise OSError(self.trouble)
        self._seal()
        self._current, self._spare = self._spare, None
        return self._current

    def _prepare(self) -> None:
        """Have a spare, unless the disk failed a moment ago."""
        if time.monotonic_ns() < self._rest_until_ns:
            return
        # Each try has its own number: where a failed one left its file behind, that name is taken.
        self._number += 1
        try:
            self._spare = SegmentFile.create(self._home, self._instance_id, self._number, self._segment_bytes)
        except Exception as error:
            # Whatever it was: the thread must serve those that wait, now and later.
            self._failed(f"no spare segment: {error}")
            self._rest()
        else:
            self.trouble = None

    def _spoiled(self, error: OSError) -> None:
        """Never touch the current segment again. What it has acknowledged is safe, the rest goes to another."""
        self._failed(f"a segment could not be written: {error}")
        self._seal()

    def _failed(self, trouble: str) -> None:
        self.trouble = trouble
        self.failures += 1

    def _rest(self) -> None:
        """Fail fast for a while, instead of trying the disk for every batch."""
        self._rest_until_ns = time.monotonic_ns() + RETRY_MS * _NS_PER_MS

    def _seal(self) -> None:
        if self._current is not None:
            self._current.close()
            self._sealed.append(Sealed(self._current.path, frozenset(self._call_ids)))
            self._current, self._call_ids = None, []

    def _end(self) -> None:
        self._seal()
        if self._spare is not None:
            self._spare.close()
            self._sealed.append(Sealed(self._spare.path, frozenset()))
            self._spare = None
        self._report(Outcome(sealed=self._sealed))


def _fill(segment: SegmentFile, records: Sequence[Record]) -> tuple[bytes, list[UUID]]:
    """The frames of as many records as there is room for, which is one at least, and their calls."""
    parts: list[bytes] = []
    call_ids: list[UUID] = []
    room = segment.room_bytes
    for record in records:
        room -= FRAME_BYTES + len(record.payload)
        if room < 0:
            break
        parts += frame(record, segment.salt)
        call_ids.append(record.call_id)
    return b"".join(parts), call_ids
