"""Appending: in order, many in one write, through segments that fill up, fail, or hang."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from billing.journal import writer
from billing.journal.batches import JournalUnavailable
from billing.journal.frames import FRAME_BYTES, HEADER_BYTES
from billing.journal.journal import open_journal
from billing.journal.segments import SegmentFile
from models.errors import Unavailable
from models.ids import uuid7
from tests.integration.hot.nouns import NOW
from tests.integration.journal.conftest import SMALL_BYTES, Opening, left_in, record, segments, until

pytestmark = pytest.mark.anyio

Write = Callable[[SegmentFile, bytes], None]


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next `times` writes reach the file by half and fail, as a disk does that is going."""
    write, left = SegmentFile.write, [times]

    def fail(segment: SegmentFile, frames: bytes) -> None:
        if left[0] == 0:
            return write(segment, frames)
        left[0] -= 1
        write(segment, frames[: len(frames) // 2])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(SegmentFile, "write", fail)


async def test_futures_are_done_in_order_and_records_share_writes(
    opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SegmentFile.write
    writes: list[int] = []
    done: list[int] = []

    def counting(segment: SegmentFile, frames: bytes) -> None:
        writes.append(len(frames))
        write(segment, frames)

    monkeypatch.setattr(SegmentFile, "write", counting)
    journal = opened(segment_bytes=1024 * 1024)
    records = [record() for _ in range(500)]
    for number, one in enumerate(records):
        future = journal.append(one)
        future.add_done_callback(functools.partial(lambda number, _: done.append(number), number))
    await journal.append(record())
    assert done == list(range(500))
    assert len(writes) < 50
    await journal.close()
    assert list(opened().replay())[:-1] == records


async def test_segments_follow_each_other_and_every_size_up_to_a_whole_one_fits(
    opened: Opening, tmp_path: Path
) -> None:
    journal = opened()
    largest = SMALL_BYTES - HEADER_BYTES - FRAME_BYTES
    records = [record(size) for size in (0, 1, largest, 5_000, 5_000, largest - 1, 10)]
    await asyncio.gather(*(journal.append(one) for one in records))
    # The spare comes after the records are acknowledged.
    await until(lambda: len(segments(tmp_path)) == 6)
    assert len(journal.unconfirmed()) == 6
    with pytest.raises(JournalUnavailable, match="larger than a segment"):
        await journal.append(record(largest + 1))
    await journal.close()
    assert list(opened().replay()) == records


async def test_a_failed_write_is_done_again_in_another_segment(
    opened: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened()
    first, second = record(), record()
    await journal.append(first)
    failing(monkeypatch, 1)
    with capture_logs() as lines:
        await journal.append(second)
        await until(lambda: journal.is_healthy)
    assert journal.failures == 1
    assert {line["event"] for line in lines} >= {"journal_in_trouble"}
    assert journal.unconfirmed() == {first.call_id}
    third = record()
    await journal.append(third)
    await journal.close()
    replayed = list(opened().replay())
    assert replayed == [first, second, third]


async def test_where_the_next_segment_fails_too_the_caller_is_told_and_later_all_is_well(
    opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened()
    failing(monkeypatch, 2)
    with pytest.raises(JournalUnavailable, match="Input/output error"):
        await journal.append(record())
    assert issubclass(JournalUnavailable, Unavailable)
    await until(lambda: journal.is_healthy)
    last = record()
    await journal.append(last)
    await journal.close()
    assert last in opened().replay()


async def test_a_disk_that_hangs_is_not_healthy(opened: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    write = SegmentFile.write

    def hang(segment: SegmentFile, frames: bytes) -> None:
        goes_on.wait(10)
        write(segment, frames)

    monkeypatch.setattr(SegmentFile, "write", hang)
    monkeypatch.setattr(writer, "STUCK_MS", 20)
    journal = opened()
    future = journal.append(record())
    await until(lambda: not journal.is_healthy)
    assert not future.done()
    goes_on.set()
    await future
    await until(lambda: journal.is_healthy)


async def test_what_waits_is_written_at_the_close_and_nothing_after_it(opened: Opening) -> None:
    journal = opened()
    futures = [journal.append(record()) for _ in range(100)]
    await journal.close()
    await journal.close()
    assert all(future.done() and future.exception() is None for future in futures)
    assert not journal.is_healthy
    with pytest.raises(JournalUnavailable, match="closed"):
        await journal.append(record())
    assert len(list(opened().replay())) == 100


async def test_a_caller_that_left_disturbs_nobody(opened: Opening) -> None:
    journal = opened()
    left, stays = journal.append(record()), journal.append(record())
    left.cancel()
    await stays


async def test_a_journal_without_records_leaves_nothing(opened: Opening, tmp_path: Path) -> None:
    await opened().close()
    assert left_in(tmp_path) == []


async def test_a_directory_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalUnavailable, match="cannot be opened"):
        open_journal(tmp_path / "file" / "journal", uuid7(NOW))
