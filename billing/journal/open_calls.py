"""The calls that are at a backend now, in memory that outlives a killed process: a mapped file beside the journal.

A checkpoint in Redis is up to a second old, and a Redis that is killed too may not have written all it acknowledged: it
puts off writing while it syncs. Here a call is noted in the moment in which a backend is sent it, at the price of a
copy in memory, so whoever finds the file knows each call that may have delivered a token. The kernel keeps mapped
pages when the process dies; when the machine does, the checkpoints in Redis are what there is.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

SUFFIX: Final = ".open"
SLOT_BYTES: Final = 2_048
"""Two pages hold four calls. A hold with every limit there is takes half a slot; one that does not fit is not noted."""
POINT_BYTES: Final = 256

_LENGTH_BYTES: Final = 2
_POINTS_AT: Final = 1
_HOLD_AT: Final = _POINTS_AT + 2 * POINT_BYTES
_MOST_HOLD: Final = SLOT_BYTES - _HOLD_AT - _LENGTH_BYTES
_MOST_POINT: Final = POINT_BYTES - _LENGTH_BYTES
_FREE: Final = 0
NOWHERE: Final = -1
"""The slot of a call that is not noted."""


def open_call_paths(home: Path) -> list[Path]:
    """The files of noted calls in the directory of an instance."""
    return sorted(home.glob(f"*{SUFFIX}"))


class OpenCalls:
    """Slots for so many calls. A slot is a byte that says which of its two points counts (0: none), two points, a hold.

    What counts is switched by that one byte, last, so a process killed in the middle of a copy leaves what was before.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self._path = path
        self._memory = memory
        self._free = list(range(0, len(memory), SLOT_BYTES))[::-1]
        self._slots = len(self._free)

    @classmethod
    def create(cls, home: Path, slots: int) -> OpenCalls:
        """An empty file whose space is allocated, since a mapped page without space would end the process.

        Raises `OSError` and leaves nothing.
        """
        path = home / f"{uuid4().hex}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, slots * SLOT_BYTES)
            return cls(path, mmap.mmap(descriptor, slots * SLOT_BYTES))
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(descriptor)

    def enter(self, hold: bytes, point: bytes) -> int:
        """Note a call and how far it has come; its slot, or `NOWHERE`."""
        if self._memory.closed or not self._free or len(hold) > _MOST_HOLD or len(point) > _MOST_POINT:
            return NOWHERE
        slot = self._free.pop()
        at = slot + _HOLD_AT
        self._memory[at : at + _LENGTH_BYTES + len(hold)] = _framed(hold)
        self.note(slot, point)
        return slot

    def note(self, slot: int, point: bytes) -> None:
        """Note how far the call of a slot has come; one that does not fit leaves the one before."""
        memory = self._memory
        if memory.closed or len(point) > _MOST_POINT:
            return
        which = 2 if memory[slot] == 1 else 1
        at = slot + _POINTS_AT + (which - 1) * POINT_BYTES
        memory[at : at + _LENGTH_BYTES + len(point)] = _framed(point)
        memory[slot] = which

    def leave(self, slot: int) -> None:
        """The call of a slot has ended, and its end is durable."""
        if not self._memory.closed:
            self._memory[slot] = _FREE
            self._free.append(slot)

    def close(self) -> None:
        """Give the file back; it is deleted where all its calls have ended. Those that end later stay noted."""
        self._memory.close()
        if len(self._free) == self._slots:
            with suppress(OSError):
                self._path.unlink()


def read_open_calls(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Hold and point of each call that a dead process had noted; raises `OSError`."""
    content = path.read_bytes()
    for slot in range(0, len(content) - SLOT_BYTES + 1, SLOT_BYTES):
        which = content[slot]
        if which in (1, 2):
            yield _read(content, slot + _HOLD_AT), _read(content, slot + _POINTS_AT + (which - 1) * POINT_BYTES)


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


def _read(content: bytes, at: int) -> bytes:
    start = at + _LENGTH_BYTES
    return content[start : start + int.from_bytes(content[at:start], "little")]
