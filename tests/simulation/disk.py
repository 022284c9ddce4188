"""The disk of a machine: the real journal on a directory in memory, written by its own event loop instead of a thread.

A killed process leaves what it had written; of the write that was under way any part may be there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

from billing.journal import journal as journals
from billing.journal import writer
from billing.journal.frames import Record
from billing.journal.journal import Journal, open_journal
from billing.journal.open_calls import SUFFIX, OpenCalls
from billing.journal.writer import Outcome, Writer, _fill
from models.ids import uuid7
from tests.simulation.faults import Fault, Faults

SEGMENT_BYTES: Final = 96 * 1024
"""Small, so that a run fills some and the journal forgets them."""


class _NoThread:
    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass

    def is_alive(self) -> bool:
        return True


class LoopWriter(Writer):
    """A writer that takes simulated time for its writes. `is_full` makes them fail."""

    delay: Callable[[], float] = staticmethod(lambda: 0.0)
    is_full = False

    def __init__(self, *arguments: Any) -> None:
        self._records: list[Record] = []
        self._timer: asyncio.TimerHandle | None = None
        self.is_dead = False
        with patch.object(writer, "threading", SimpleNamespace(Thread=_NoThread)):
            super().__init__(*arguments)

    def put(self, records: list[Record]) -> None:
        """Let records be written with the others that come until then."""
        self._records += records
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.delay(), self._write)

    @property
    def is_writing(self) -> bool:
        """Whether bytes are on their way to the disk."""
        return self._timer is not None

    def stop(self) -> None:
        """Write what waits and seal."""
        self._write()
        self._end()

    def die(self, torn: float) -> bool:
        """The process is killed; this part of the bytes that waited is on disk. Answers whether there were any."""
        if self._timer is not None:
            self._timer.cancel()
        records, self._records, self.is_dead = self._records, [], True
        if records and self._current is not None:
            frames, _ = _fill(self._current, records)
            self._current.write(frames[: int(len(frames) * torn)])
        for segment in (self._current, self._spare):
            if segment is not None:
                segment.close()
        return bool(records)

    def _write(self) -> None:
        self._timer = None
        records, self._records = self._records, []
        if self.is_dead or not records:
            return
        if self.is_full:
            self._failed("the disk is full")
            self._report(Outcome(lost=len(records), reason="the disk is full"))
            return
        self._report(self._commit(records))
        if self._spare is None:
            self._prepare()


class Disk:
    """What outlives the processes of one machine, until it is lost itself."""

    def __init__(self, home: Path, random: Random, faults: Faults) -> None:
        self.name = home.name
        self._home = home
        self._random = random
        self._faults = faults
        self.is_full = False
        self.slow_seconds = 0.02
        """The longest that a write takes."""
        self.open: list[Journal] = []
        home.mkdir(parents=True)

    def journal(self, now: datetime) -> tuple[Journal, UUID]:
        """The journal of a new process, and the process's name."""
        instance_id = uuid7(now)
        with ExitStack() as replaced:
            replaced.enter_context(patch.object(journals, "Writer", LoopWriter))
            if self.is_full:
                replaced.enter_context(patch.object(OpenCalls, "create", _no_room))
            journal = open_journal(self._home, instance_id, segment_bytes=SEGMENT_BYTES)
        written = _writer(journal)
        written.delay = lambda: self._random.random() * self.slow_seconds
        written.is_full = self.is_full
        self.open.append(journal)
        return journal, instance_id

    def fill(self, is_full: bool) -> None:
        """The disk becomes full, or has room again."""
        self.is_full = is_full
        for journal in self.open:
            written = _writer(journal)
            written.is_full = is_full
            if not is_full:
                written.trouble = None

    def is_writing(self, journal: Journal) -> bool:
        """Whether a write of this journal is under way."""
        return _writer(journal).is_writing

    def freeze_notes(self, journal: Journal) -> None:
        """The process of this journal is killed: what it had noted of its calls stays as it is now."""
        if journal.open_calls is not None:
            journal.open_calls._memory.close()

    def lose_notes(self) -> None:
        """The machine dies: of what was only mapped nothing had come to the disk."""
        for path in self._home.glob(f"*/*{SUFFIX}"):
            path.unlink()

    def crash(self, journal: Journal) -> None:
        """The process of this journal is killed."""
        self.open.remove(journal)
        if _writer(journal).die(self._random.choice((0.0, 1.0, self._random.random()))):
            self._faults[Fault.WRITE_TORN] += 1
        for claim in journal._claims.values():
            os.close(claim._descriptor)
        journal._claims.clear()
        journal._is_closed = True

    async def close(self, journal: Journal) -> None:
        """The process of this journal ends as it should."""
        self.open.remove(journal)
        await journal.close()

    def lose(self) -> None:
        """All that was on it is gone."""
        shutil.rmtree(self._home)
        self._home.mkdir(parents=True)


def _no_room(*_: object) -> Any:
    raise OSError(errno.ENOSPC, "the disk is full")


def _writer(journal: Journal) -> LoopWriter:
    found = journal._writer
    assert isinstance(found, LoopWriter)
    return found
