"""Who owns the segments of an instance: the process that holds the lock beside its directory, as long as it lives."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from billing.journal.open_calls import open_call_paths
from billing.journal.segments import segment_paths


@dataclass(frozen=True, slots=True)
class Claim:
    """The segments of one instance, in `home`, are ours until `release`; the kernel lets go when we die."""

    instance_id: UUID
    home: Path
    _lock: Path
    _descriptor: int

    def release(self) -> None:
        """Let go, and tidy up where nothing is left."""
        if not segment_paths(self.home) and not open_call_paths(self.home):
            # In this order, under the lock: who waits for it looks whether the file is still there.
            with suppress(OSError):
                self.home.rmdir()
            with suppress(OSError):
                self._lock.unlink()
        os.close(self._descriptor)


def claim(directory: Path, instance_id: UUID) -> Claim | None:
    """The claim on an instance's segments; None where a living process has it. Raises `OSError`."""
    lock = directory / f"{instance_id}.lock"
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, lock):
                return Claim(instance_id, directory / str(instance_id), lock, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # It was removed by its last owner after we had opened it: what we locked is nobody's.
        os.close(descriptor)


def instances(directory: Path) -> Iterator[UUID]:
    """The instances that have a directory of segments here, oldest first where ids are UUIDv7."""
    for home in sorted(directory.iterdir()):
        # A program's claim is older than its directory, so whoever finds one finds it claimed or abandoned.
        with suppress(ValueError):
            instance_id = UUID(home.name)
            if home.is_dir():
                yield instance_id


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
