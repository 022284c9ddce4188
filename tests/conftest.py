"""Real servers for tests: one Postgres, Redis and llama.cpp a session, a fresh database or an empty Redis a test."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest
import structlog
from hypothesis import settings

from gateway.embedded import llamacpp as embedded_llamacpp
from gateway.embedded import postgres as embedded_postgres
from gateway.embedded import redis as embedded_redis
from gateway.embedded import tinymodel
from gateway.embedded.children import Child
from gateway.embedded.ports import free_port

OWNER = "tollgate_owner"
APP = "tollgate_app"
PASSWORD = "password"
_TEMPLATE = "tollgate_template"
_ROOM_BYTES = 4 * 1024**3

# How long an example takes says more of the machine than of us; no test asserts it.
settings.register_profile("tollgate", deadline=None)
settings.load_profile("tollgate")

# What structlog does until a program configures it: it would draw a logged error with the values of every variable of
# every frame, which takes a minute where a frame holds an application.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated database of one test: `owner_url` owns the tables, `app_url` is the role the program runs under."""

    name: str
    owner_url: str
    app_url: str


MakeDatabase: TypeAlias = Callable[[str], Coroutine[Any, Any, Database]]


class RedisProcess:
    """A Redis of one test, which may kill, stop and restart it on the same port and files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._port = free_port()
        self._server = self._start()
        self.url = self._server.url

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.child.pid

    def kill(self) -> None:
        """End it as a crash would (kill -9)."""
        self._server.child.signal(signal.SIGKILL)
        self._server.child.stop(seconds=5)

    def pause(self) -> None:
        """Make it hang (SIGSTOP): connections stay open and nothing answers."""
        self._server.child.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._server.child.signal(signal.SIGCONT)

    def restart(self, *, blank: bool = False) -> None:
        """Start it again after `kill`, with its files or without (`blank`)."""
        if blank:
            shutil.rmtree(self.directory)
        self._server = self._start()

    def keep(self) -> None:
        """Copy its files as they are now, while it runs."""
        shutil.copytree(self.directory, self.directory.with_suffix(".kept"), ignore=shutil.ignore_patterns("*.sock"))

    def restore(self) -> None:
        """After `kill`, put the files of `keep` in the place of its own."""
        shutil.rmtree(self.directory)
        self.directory.with_suffix(".kept").rename(self.directory)

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.resume()
        self._server.child.stop(seconds=5)

    def _start(self) -> embedded_redis.Redis:
        self.directory.mkdir(parents=True, exist_ok=True)
        return embedded_redis.start(self.directory, PASSWORD, log=self.directory.with_suffix(".log"), port=self._port)


class Up:
    """A running `tollgate up` with the demo model, in a directory of its own; its output is in `output`."""

    def __init__(self, directory: Path, *, environment: dict[str, str] | None = None, arguments: tuple[str, ...] = ()):
        self.directory = directory
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._arguments = arguments
        self._environment = os.environ | (environment or {})
        self.child = self._start()

    @property
    def output(self) -> str:
        """What it has printed since the first start."""
        return self.child.log.read_text(encoding="utf-8")

    @property
    def facts(self) -> dict[str, Any]:
        """The parsed up.json."""
        facts: dict[str, Any] = json.loads((self.directory / "up.json").read_text(encoding="utf-8"))
        return facts

    def wait_ready(self) -> dict[str, Any]:
        """Wait until it says that it is ready; the parsed up.json."""
        self.child.wait_until(lambda: "Tollgate is ready" in self.child.output(), 90)
        return self.facts

    def wait_end(self, seconds: float) -> int:
        """Wait for it to end by itself; its exit code."""
        poll(lambda: self.child.exit_code() is not None, seconds)
        code = self.child.exit_code()
        assert code is not None
        return code

    def start_again(self) -> None:
        """The same command again, after it has ended."""
        self.child = self._start()

    def parts_are_gone(self) -> bool:
        """Whether no child of it runs any more: each keeps a descriptor of this lock open."""
        with (self.directory / "children.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _start(self) -> Child:
        program = [sys.executable, "-m", "gateway.cli", "up", f"--port={self.port}", f"--data-dir={self.directory}"]
        return Child(
            "tollgate up",
            [*program, *(self._arguments or ("--demo",))],
            log=self.directory.with_suffix(".log"),
            stop_signal=signal.SIGINT,
            orphan_signal=signal.SIGTERM,
            environment=self._environment,
        )


def poll(is_so: Callable[[], bool], seconds: float) -> None:
    """Return when something is so; fails when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests run on plain asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory of this session with a short path, so that unix sockets fit into their 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tg-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def postgres_directory() -> Iterator[Path]:
    """Where the session's Postgres lives: in memory where there is enough, since a database is 650 files."""
    memory = Path("/dev/shm")  # noqa: S108  # a directory in it has a name that nobody can guess
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > _ROOM_BYTES
    place = memory if has_room and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tg-pg-", dir=place, ignore_cleanup_errors=True) as name:
        yield Path(name) / "pg"


@pytest.fixture(scope="session")
def postgres_server(scratch: Path, postgres_directory: Path) -> Iterator[embedded_postgres.Postgres]:
    """One Postgres of the session, with the roles `tollgate_owner` and `tollgate_app`; durability off, for speed."""
    directory, log = postgres_directory, scratch / "postgres.log"
    embedded_postgres.initialise(directory, PASSWORD, log=log)
    settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}
    settings |= {"max_wal_size": "256MB"}
    server = embedded_postgres.start(directory, PASSWORD, log=log, socket_directory=directory, settings=settings)
    try:
        for role in (OWNER, APP):
            asyncio.run(embedded_postgres.create_role(server, role, PASSWORD))
        yield server
    finally:
        server.child.stop(seconds=10)


@pytest.fixture(scope="session")
def _migrated(postgres_server: embedded_postgres.Postgres) -> str:
    """Name of the migrated database that those of the tests are copies of."""
    from migrations.run import migrate

    asyncio.run(embedded_postgres.create_database(postgres_server, _TEMPLATE, OWNER))
    migrate(postgres_server.url(_TEMPLATE, OWNER, PASSWORD), APP)
    return _TEMPLATE


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def make_database(postgres_server: embedded_postgres.Postgres, _migrated: str) -> MakeDatabase:
    """Makes a fresh, migrated database, which goes with the session's server."""

    async def make(name: str) -> Database:
        # A number each time: what a package shares is set up again where other packages come in between.
        name = f"{name}_{next(_numbers)}"
        # Files are copied as they are; the usual way writes every page to the log.
        await _order(postgres_server, f"create database {name} owner {OWNER} template {_migrated} strategy file_copy")
        return Database(
            name, owner_url=postgres_server.url(name, OWNER, PASSWORD), app_url=postgres_server.url(name, APP, PASSWORD)
        )

    return make


async def _order(server: embedded_postgres.Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def postgres(postgres_server: embedded_postgres.Postgres, make_database: MakeDatabase) -> Iterator[Database]:
    """A fresh, migrated database of this test."""
    database = asyncio.run(make_database("test"))
    yield database
    asyncio.run(_order(postgres_server, f"drop database {database.name} with (force)"))


@pytest.fixture(scope="session")
def redis_server(scratch: Path) -> Iterator[embedded_redis.Redis]:
    """One Redis of the session, on TCP and on a unix socket (`socket_path`)."""
    server = embedded_redis.start(
        scratch / "redis", PASSWORD, log=scratch / "redis.log", socket_path=scratch / "redis.sock"
    )
    try:
        yield server
    finally:
        server.child.stop(seconds=5)


@pytest.fixture
def redis(redis_server: embedded_redis.Redis) -> embedded_redis.Redis:
    """The session's Redis, empty; `url` connects to it."""
    embedded_redis.command(redis_server, "FLUSHALL")
    embedded_redis.command(redis_server, "SCRIPT FLUSH")
    return redis_server


@pytest.fixture
def redis_process(scratch: Path) -> Iterator[RedisProcess]:
    """A Redis of this test alone, which it may kill, pause and restart."""
    server = RedisProcess(scratch / f"redis-{next(_numbers)}")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def tiny_model(scratch: Path) -> tuple[Path, Path]:
    """Paths of the demo model and of its tokenizer.json."""
    return tinymodel.make(scratch / "models")


@pytest.fixture(scope="session")
def llamacpp(scratch: Path, tiny_model: tuple[Path, Path]) -> Iterator[embedded_llamacpp.LlamaCpp]:
    """A real llama.cpp server of the model `tiny` (context 4096), with embeddings and /metrics; `url` is its root."""
    server = embedded_llamacpp.start(tiny_model[0], log=scratch / "llamacpp.log")
    try:
        yield server
    finally:
        server.child.stop(seconds=5)


@pytest.fixture(scope="session")
def tollgate_up(scratch: Path) -> Iterator[dict[str, Any]]:
    """A real `tollgate up` of the session, for journeys; the parsed up.json. Do not kill its parts."""
    running = Up(scratch / "up")
    try:
        yield running.wait_ready()
    finally:
        running.child.stop(seconds=15)
