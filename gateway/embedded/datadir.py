"""The one directory in which an embedded Tollgate keeps everything: its lock, secrets, ports, logs and `up.json`."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import free_port

FIRST_START_BYTES = 256 * 1024 * 1024
LATER_START_BYTES = 64 * 1024 * 1024
_ORPHAN_SECONDS = 10.0
_SECRETS = ("key_pepper", "superuser_password", "owner_password", "app_password", "redis_password")


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """A locked data directory. `children_lock` is a descriptor that children keep open: free when all are gone."""

    path: Path
    children_lock: int

    @property
    def postgres(self) -> Path:
        """Where Postgres keeps its files."""
        return self.path / "pg"

    @property
    def redis(self) -> Path:
        """Where Redis keeps its files."""
        return self.path / "redis"

    @property
    def journal(self) -> Path:
        """Where the gateway keeps its journal."""
        return self.path / "journal"

    @property
    def models(self) -> Path:
        """Where the demo model and its tokenizer lie."""
        return self.path / "models"

    @property
    def up_file(self) -> Path:
        """What clients and scripts read."""
        return self.path / "up.json"

    def log(self, name: str) -> Path:
        """The log file of one child."""
        return self.path / "logs" / f"{name}.log"

    def secrets(self) -> dict[str, str]:
        """Passwords and the pepper of the keys; made at the first start, the same ever after."""
        path = self.path / "secrets.json"
        known = read_json(path)
        missing = [name for name in _SECRETS if name not in known]
        if missing:
            known |= {name: secrets.token_urlsafe(32) for name in missing}
            write_json(path, known)
        return {name: str(value) for name, value in known.items()}

    def port(self, name: str) -> int:
        """A free port for a part: the one it had last time, where nobody took it, so that URLs last."""
        path = self.path / "ports.json"
        known = read_json(path)
        port = free_port(known.get(name))
        if known.get(name) != port:
            write_json(path, known | {name: port})
        return port


@contextmanager
def opened(path: Path) -> Iterator[DataDirectory]:
    """Make (0700), check and lock a data directory. Raises `CannotStart` where it is in use, closed to us or full."""
    path = path.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        children = os.open(path / "children.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        _take(lock, path)
        _wait_for_orphans(children, path)
        _demand_space(path)
        yield DataDirectory(path, children)
    finally:
        os.close(children)
        os.close(lock)


def cannot_write(path: Path, error: OSError) -> CannotStart:
    """The sentence for a failure of the file system under a data directory."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CannotStart(f"The disk of {path} is full; free some space, or choose another place with --data-dir.")
    reason = (error.strerror or str(error)).lower()
    return CannotStart(f"Cannot write to {path} ({reason}); choose another place with --data-dir.")


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode().strip() or "unknown"
        raise CannotStart(
            f"Another `tollgate up` (pid {pid}) is using {path}; stop it, or choose another place with --data-dir."
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _wait_for_orphans(children: int, path: Path) -> None:
    """Children of a killed supervisor are ending; two servers on the same files would destroy them."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(children, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"Programs of an earlier `tollgate up` still run on {path}; end them first."
                ) from None
            time.sleep(0.02)
        else:
            return


def _demand_space(path: Path) -> None:
    needed = LATER_START_BYTES if (path / "pg" / "PG_VERSION").exists() else FIRST_START_BYTES
    free = shutil.disk_usage(path).free
    if free < needed:
        raise CannotStart(
            f"The disk of {path} is full: {free // 2**20} MiB are free and {needed // 2**20} MiB are needed;"
            " free some space, or choose another place with --data-dir."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a file of ours, 0600, at once: a reader sees the old one or the new one, also after a crash."""
    draft = path.with_name(f"{path.name}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as output:
        output.write(json.dumps(value, indent=2) + "\n")
        output.flush()
        os.fsync(output.fileno())
    os.replace(draft, path)
