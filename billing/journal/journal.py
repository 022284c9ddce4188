"""The journal of one process: append on the event loop, replay what dead processes left, forget what is booked."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from billing.journal.batches import Batches, JournalUnavailable, Then
from billing.journal.claims import Claim, claim, instances
from billing.journal.frames import FRAME_BYTES, HEADER_BYTES, Record
from billing.journal.open_calls import OpenCalls, open_call_paths, read_open_calls
from billing.journal.segments import DAMAGED_SUFFIX, Contents, read_segment, segment_paths, sync_directory
from billing.journal.writer import Outcome, Sealed, Writer

SEGMENT_BYTES: Final = 16 * 1024 * 1024
OPEN_CALLS: Final = 2_048
"""Calls noted at a time: twice as many as a process runs at backends unless told otherwise, since some still end."""

_log = structlog.get_logger("tollgate.journal")


@dataclass(slots=True)
class _Kept:
    """A segment that is not written any more, and which of its calls are not known to be booked."""

    unconfirmed: set[UUID]
    is_suspect: bool = False


@dataclass(frozen=True, slots=True)
class _Left:
    """What a dead process had noted of the calls it had at a backend: hold and point of each."""

    owned: Claim
    calls: list[tuple[bytes, bytes]]


def open_journal(
    directory: Path, instance_id: UUID, *, segment_bytes: int = SEGMENT_BYTES, open_calls: int = OPEN_CALLS
) -> Journal:
    """The journal of this process, in a directory that all gateways of this machine share; call it in the event loop.

    Take a fresh UUIDv7 as `instance_id` for each process: what an earlier one left is found by `replay` whatever its
    name. Where the disk is full the journal opens all the same and is not healthy. Raises `JournalUnavailable` where
    the directory cannot be used or a living process owns this instance.
    """
    assert 0 < segment_bytes - HEADER_BYTES < 2**32 - HEADER_BYTES, f"segments of {segment_bytes} bytes"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        owned = claim(directory, instance_id)
        if owned is None:
            raise JournalUnavailable(f"the journal {instance_id} belongs to a process that is running")
        try:
            owned.home.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory)
        except OSError:
            owned.release()
            raise
    except OSError as error:
        raise JournalUnavailable(f"the journal cannot be opened: {error}") from error
    return Journal(directory, owned, segment_bytes, open_calls)


class Journal:
    """Use it from the event loop that it was opened in.

    At the start `replay` and settle what is not booked, before the first call is taken. From then on, every some
    seconds, `forget` those of `unconfirmed` that Postgres has. `close` last, when every call has ended.
    """

    def __init__(self, directory: Path, owned: Claim, segment_bytes: int, open_calls: int) -> None:
        self._directory = directory
        self._owned = owned
        self._largest_bytes = segment_bytes - HEADER_BYTES - FRAME_BYTES
        self._loop = asyncio.get_running_loop()
        # By path: the segments of this instance that are sealed, and those of dead ones once they were replayed.
        self._kept: dict[Path, _Kept] = {}
        self._claims: dict[UUID, Claim] = {owned.instance_id: owned}
        self._inheriting: dict[Path, Claim] = dict.fromkeys(segment_paths(owned.home), owned)
        # Notes of calls that nobody has ended yet, of dead instances and of this one's own earlier life.
        self._left: dict[Path, _Left] = {}
        self.dead: set[UUID] = set()
        """Instances that `replay` found dead: their owner ends what they hold elsewhere, then calls `buried`."""
        self._take_left(owned)
        self.open_calls = self._note_calls(open_calls)
        self._is_closed = False
        self._logged: str | None = None
        number = max((int(path.stem) for path in self._inheriting), default=0)
        self._writer = Writer(owned.home, owned.instance_id, number, segment_bytes, self._report)
        self._batches = Batches(self._loop, self._writer.put)
        self._log_trouble()

    # Writing ---------------------------------------------------------------------------------------------------------

    def append(self, record: Record, *, in_flight: int = 0) -> asyncio.Future[None]:
        """Write a record; the future is done when it is on disk, and futures are done in the order of appending.

        `in_flight` is how many calls run now: among many, a write waits up to 16 ms for others to share it with.

        The future fails with `JournalUnavailable` where the disk is full and the reserve used up, or fails again and
        again. Such a record may be found by a later replay all the same.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self.start(record, partial(_resolve, future), in_flight=in_flight)
        return future

    def start(self, record: Record, then: Then, *, in_flight: int = 0) -> None:
        """`append` without waiting: `then` is told None or the error, in this turn of the loop or later."""
        assert 0 < record.kind < 256, f"a record of kind {record.kind}"
        if self._is_closed:
            then(JournalUnavailable("the journal is closed"))
        elif len(record.payload) > self._largest_bytes:
            then(JournalUnavailable(f"a record of {len(record.payload)} bytes is larger than a segment"))
        else:
            self._batches.add(record, then, in_flight)

    @property
    def is_healthy(self) -> bool:
        """Whether new calls may be taken: the last write succeeded, a spare segment is ready, the disk answers.

        While this is False, the calls that run still have the rest of the segment that is being written.
        """
        return self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why this journal is not healthy, for logs and readiness; None while it is."""
        if self._is_closed or not self._writer.is_alive:
            return "the journal is closed"
        return "the disk does not answer" if self._writer.is_stuck else self._writer.trouble

    @property
    def failures(self) -> int:
        """Failed writes and failed attempts at a spare segment since the start."""
        return self._writer.failures

    async def close(self) -> None:
        """Write what waits, then give everything back; what is not confirmed stays on disk for the next replay."""
        if self._is_closed:
            return
        self._is_closed = True
        self._batches.hand_over()
        await asyncio.to_thread(self._writer.stop)
        # The thread's last report is on its way through the loop, before this.
        await asyncio.sleep(0)
        if self.open_calls is not None:
            self.open_calls.close()
        for owned in self._claims.values():
            owned.release()
        self._claims.clear()

    # After a crash ---------------------------------------------------------------------------------------------------

    def replay(self) -> Iterator[Record]:
        """The records of dead instances in this directory, and of this one's own earlier life, in order of writing.

        Blocks for the reading of a segment at a time. What is yielded belongs to this journal from then on: its calls
        are `unconfirmed`, and `forget` deletes its files. Again is harmless: it yields what is not confirmed yet, and
        what instances left that have died since. Damage is logged with its place; intact records around it are kept.
        """
        self._adopt()
        for path, owned in list(self._inheriting.items()):
            # What was yielded before may have been confirmed since.
            contents = self._read(path, owned.instance_id) if path in self._inheriting else None
            if contents is None:
                continue
            before = self._kept.get(path)
            unconfirmed = before.unconfirmed if before else {record.call_id for record in contents.records}
            self._kept[path] = _Kept(unconfirmed, contents.is_suspect)
            if not unconfirmed and not contents.is_suspect:
                self._drop(path)
            yield from (record for record in contents.records if record.call_id in unconfirmed)

    def written(self) -> Iterator[Record]:
        """The records of this instance that are still on disk, in order of writing: for when Redis came back blank.

        Blocks for the reading of a segment at a time; may be called from another thread than the event loop's.
        """
        for path in segment_paths(self._owned.home):
            with suppress(FileNotFoundError):
                yield from read_segment(path, self._owned.instance_id).records

    def unwritten(self) -> list[Record]:
        """The records that are on their way to the disk, which may take its time: `written` has not got them yet."""
        return self._batches.unwritten()

    def unconfirmed(self) -> frozenset[UUID]:
        """The calls in sealed and replayed segments that are not known to be booked: ask Postgres about these."""
        return frozenset().union(*(kept.unconfirmed for kept in self._kept.values()))

    def forget(self, confirmed: Collection[UUID]) -> int:
        """These calls are booked in Postgres; returns how many segments were deleted, which had no other calls.

        A segment with damage inside is renamed instead: what was there may be of use to somebody.
        """
        done = []
        for path, kept in self._kept.items():
            kept.unconfirmed.difference_update(confirmed)
            if not kept.unconfirmed:
                done.append(path)
        for path in done:
            self._drop(path)
        return len(done)

    def left_open(self) -> dict[Path, list[tuple[bytes, bytes]]]:
        """Hold and point of the calls that dead instances had at a backend, by file; after `replay`, which finds them.

        Once these calls have ended, `drop_open` their file.
        """
        return {path: left.calls for path, left in self._left.items()}

    def drop_open(self, path: Path) -> None:
        """All calls of a file of `left_open` have ended."""
        owned = self._left.pop(path).owned
        with suppress(OSError):
            path.unlink()
        self._release_empty(owned)

    def buried(self, instance_id: UUID) -> None:
        """What a dead instance held elsewhere has ended. Its directory stays until then: it says whom to look after,
        should this process die in the middle of it."""
        self.dead.discard(instance_id)
        if instance_id in self._claims:
            self._release_empty(self._claims[instance_id])

    def _note_calls(self, slots: int) -> OpenCalls | None:
        try:
            return OpenCalls.create(self._owned.home, slots)
        except OSError as error:
            # Checkpoints in Redis are there all the same.
            _log.error("open_calls_not_noted", reason=str(error))
            return None

    def _adopt(self) -> None:
        """Take what instances left whose process is dead."""
        for instance_id in instances(self._directory):
            if instance_id in self._claims:
                continue
            try:
                owned = claim(self._directory, instance_id)
            except OSError as error:
                _log.error("journal_not_readable", name=str(instance_id), reason=str(error))
                continue
            if owned is None:
                continue
            self.dead.add(instance_id)
            self._take_left(owned)
            self._claims[instance_id] = owned
            self._inheriting.update(dict.fromkeys(segment_paths(owned.home), owned))

    def _take_left(self, owned: Claim) -> None:
        """Read the notes of open calls that a process has left."""
        for path in open_call_paths(owned.home):
            try:
                calls = list(read_open_calls(path))
                if not calls:
                    path.unlink()
                    continue
            except OSError as error:
                _log.error("journal_not_readable", name=f"{path.parent.name}/{path.name}", reason=str(error))
            else:
                self._left[path] = _Left(owned, calls)

    def _has_left(self, owned: Claim) -> bool:
        return any(left.owned is owned for left in self._left.values())

    def _read(self, path: Path, instance_id: UUID) -> Contents | None:
        name = f"{path.parent.name}/{path.name}"
        try:
            contents = read_segment(path, instance_id)
        except OSError as error:
            _log.error("journal_not_readable", name=name, reason=str(error))
            return None
        if contents.is_foreign:
            _log.error("journal_not_readable", name=name, reason="written by another version of Tollgate")
            return None
        for damage in contents.damages:
            # A cut off last write is what every crash leaves; anything else is a disk to look at.
            log = _log.warning if damage.is_tail else _log.error
            event = "journal_tail_cut_off" if damage.is_tail else "journal_damaged"
            log(event, name=name, position=damage.position, count=damage.size)
        return contents

    def _drop(self, path: Path) -> None:
        kept = self._kept.pop(path)
        owned = self._inheriting.pop(path, None)
        try:
            if kept.is_suspect:
                path.rename(path.with_suffix(DAMAGED_SUFFIX))
            else:
                path.unlink()
        except OSError as error:
            # It is replayed after the next start, and settles nothing twice.
            _log.warning("journal_not_deleted", name=path.name, reason=str(error))
        if owned is not None:
            self._release_empty(owned)

    def _release_empty(self, owned: Claim) -> None:
        if owned is self._owned or owned.instance_id in self.dead:
            return
        if owned in self._inheriting.values() or self._has_left(owned):
            return
        del self._claims[owned.instance_id]
        owned.release()

    # What the thread tells -------------------------------------------------------------------------------------------

    def _report(self, outcome: Outcome) -> None:
        """Called from the writing thread; one wake-up of the loop a batch. The loop is gone when a test ends badly."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._heard, outcome)

    def _heard(self, outcome: Outcome) -> None:
        self._batches.written(outcome.durable, outcome.lost, outcome.reason)
        for sealed in outcome.sealed:
            self._keep(sealed)
        self._log_trouble()

    def _keep(self, sealed: Sealed) -> None:
        self._kept[sealed.path] = _Kept(set(sealed.call_ids))
        if not sealed.call_ids:
            self._drop(sealed.path)

    def _log_trouble(self) -> None:
        trouble = self._writer.trouble
        if trouble == self._logged:
            return
        if trouble is not None:
            _log.error("journal_in_trouble", reason=trouble)
        else:
            _log.info("journal_goes_on")
        self._logged = trouble


def _resolve(future: asyncio.Future[None], error: JournalUnavailable | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
