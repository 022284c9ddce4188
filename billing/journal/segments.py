"""Files of the journal: made whole before they are used, written in one synchronous write a batch, read once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from billing.journal.frames import (
    FORMAT_VERSION,
    HEADER_BYTES,
    Damage,
    Header,
    Record,
    decode_header,
    encode_header,
    salt_of,
    scan,
)

SUFFIX: Final = ".segment"
DAMAGED_SUFFIX: Final = ".damaged"
"""Put behind the name of a segment that is confirmed but had damage inside: somebody should look at that disk."""


def segment_paths(home: Path) -> list[Path]:
    """The segments in a directory, oldest first."""
    return sorted(path for path in home.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SegmentFile:
    """A segment that is being written. Its space is allocated, so a disk that is full later does not matter to it."""

    def __init__(self, path: Path, descriptor: int, salt: int, segment_bytes: int) -> None:
        self.path = path
        self.salt = salt
        self._descriptor = descriptor
        self._position = HEADER_BYTES
        self._end = segment_bytes

    @classmethod
    def create(cls, home: Path, instance_id: UUID, number: int, segment_bytes: int) -> SegmentFile:
        """A new segment whose space, header and name are on disk; raises `OSError` and leaves nothing."""
        path = home / f"{number:012d}{SUFFIX}"
        # O_DSYNC makes a write return when the disk has it, as write and fdatasync would, but in one system call: the
        # writing thread then waits once for the interpreter's lock instead of twice.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DSYNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, segment_bytes)
            os.pwrite(descriptor, encode_header(instance_id, number, segment_bytes), 0)
            os.fsync(descriptor)
            sync_directory(home)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
            raise
        return cls(path, descriptor, salt_of(instance_id, number), segment_bytes)

    @property
    def room_bytes(self) -> int:
        """How much more can be written."""
        return self._end - self._position

    def write(self, frames: bytes) -> None:
        """Write frames behind the last ones; they are on disk when this returns.

        After an `OSError` nothing is known about the file's end, and it must not be written again: the kernel drops
        pages that it could not write, and a second sync reports success over them.
        """
        rest = memoryview(frames)
        while rest:
            written = os.pwrite(self._descriptor, rest, self._position)
            self._position += written
            rest = rest[written:]

    def close(self) -> None:
        """Give the file back; all that was acknowledged is on disk."""
        with suppress(OSError):
            os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found in a segment; `is_foreign` where another version of the format keeps it from being read."""

    records: tuple[Record, ...]
    damages: tuple[Damage, ...]
    is_foreign: bool = False

    @property
    def is_suspect(self) -> bool:
        """Whether more is wrong than a last write that was cut off."""
        return self.is_foreign or any(not damage.is_tail for damage in self.damages)


def read_segment(path: Path, instance_id: UUID) -> Contents:
    """All that is intact in a segment of `instance_id`; raises `OSError` where the disk does not give the bytes."""
    segment = path.read_bytes()
    header = decode_header(segment)
    if header is None:
        if not segment.strip(b"\0"):
            # The program died while it made this file.
            return Contents((), ())
        # The name of the file says the same, so the records behind a damaged header are not lost.
        header = Header(FORMAT_VERSION, instance_id, int(path.stem))
        damages = [Damage(0, HEADER_BYTES, is_tail=False)]
    else:
        damages = []
    if header.version != FORMAT_VERSION:
        return Contents((), (), is_foreign=True)
    records: list[Record] = []
    for found in scan(segment, salt_of(header.instance_id, header.number)):
        if isinstance(found, Record):
            records.append(found)
        else:
            damages.append(found)
    return Contents(tuple(records), tuple(damages))
