"""Journals in a directory of the test, small records, and the hot store's own fixtures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol
from uuid import UUID

import pytest

from billing.journal.frames import Record
from billing.journal.journal import Journal, open_journal
from models.ids import uuid7
from tests.integration.hot.conftest import store, tenant
from tests.integration.hot.nouns import NOW

__all__ = ["store", "tenant"]

SMALL_BYTES = 16 * 1024


class Opening(Protocol):
    """Opens a journal, which is closed with the test."""

    def __call__(self, directory: Path | None = None, *, segment_bytes: int = SMALL_BYTES) -> Journal: ...


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opening]:
    """Journals of fresh instances, in the test's directory unless told otherwise."""
    async with AsyncExitStack() as journals:

        def opening(directory: Path | None = None, *, segment_bytes: int = SMALL_BYTES) -> Journal:
            journal = open_journal(directory or tmp_path, uuid7(NOW), segment_bytes=segment_bytes)
            journals.push_async_callback(journal.close)
            return journal

        yield opening


def record(payload_bytes: int = 100) -> Record:
    """A record of a new call, whose payload follows from its id."""
    call_id = uuid7(NOW)
    return Record(1, call_id, payload_of(call_id, payload_bytes))


def payload_of(call_id: UUID, payload_bytes: int = 100) -> bytes:
    """What the record of a call has to say."""
    return (call_id.bytes * (payload_bytes // 16 + 1))[:payload_bytes]


def segments(directory: Path, suffix: str = ".segment") -> list[Path]:
    """The segments of all instances."""
    return sorted(directory.glob(f"*/*{suffix}"))


def left_in(directory: Path) -> list[str]:
    """The names that are in a directory."""
    return sorted(path.name for path in directory.iterdir())


async def until(is_so: Callable[[], bool], seconds: float = 5) -> None:
    """Return when something is so; fails when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        await asyncio.sleep(0.01)
