"""`tollgate up`: starts every part in order, starts again what dies, and stops all in the reverse order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import quote

from gateway.discovery import FoundBackend, ServedModel
from gateway.embedded import datadir, llamacpp, local, postgres, redis, seed, tinymodel
from gateway.embedded.children import Child
from gateway.embedded.datadir import DataDirectory
from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import LOOPBACK, answers_ok, demand_free
from gateway.embedded.restarts import MOST, WINDOW_SECONDS, Restarts
from models.catalog import BackendKind

DATABASE = "tollgate"
OWNER_ROLE = "tollgate_owner"
APP_ROLE = "tollgate_app"
STARTED_BY_UP = "TOLLGATE_STARTED_BY_UP"
"""Set for our children only: `serve` and `worker` accept a rehearsed clock from nobody else."""

DRAIN_SECONDS = 2.0
"""How long running calls may go on after Ctrl-C; then they are ended and charged for what was delivered."""
LONGEST_SOCKET_PATH = 100
STOP_SECONDS = {"gateway": 2.5, "worker": 2.5, "backend": 0.5, "redis": 0.8, "postgres": 1.5}
"""The order of stopping and the patience for each part: with the drain less than 10 s."""

_READY_SECONDS = 45.0
_WATCH_SECONDS = 0.1

BABBLES = "Its weights are random: it babbles, but every token is counted and billed as real ones are."

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What `tollgate up` was asked for."""

    port: int
    data_directory: Path
    backends: tuple[str, ...] = ()
    demo: bool = False
    clock: datetime | None = None


@dataclass(slots=True)
class Part:
    """A child and how to start it again."""

    name: str
    start: Callable[[], Child]
    child: Child
    restarts: Restarts = field(default_factory=Restarts)


def run(options: Options, say: Say) -> None:
    """Run everything until SIGINT, SIGTERM or SIGHUP. Raises `CannotStart`; nothing is left running then."""
    if sys.platform != "linux":
        raise CannotStart("`tollgate up` needs Linux; elsewhere, run docker-compose.yml.")
    _turn_signals_into_interrupts()
    try:
        with datadir.opened(options.data_directory) as directory:
            demand_free(options.port)
            supervisor = Supervisor(options, directory, say)
            try:
                supervisor.start()
                supervisor.watch()
            finally:
                supervisor.stop()
    except OSError as error:
        raise datadir.cannot_write(options.data_directory, error) from error
    except KeyboardInterrupt:
        say("Stopped. Everything is kept; the same command starts it again.")


class Supervisor:
    """The parts of one data directory, for the main thread only: children die with the thread that started them."""

    def __init__(self, options: Options, directory: DataDirectory, say: Say) -> None:
        self._options = options
        self._directory = directory
        self._say = say
        self._secrets = directory.secrets()
        self._parts: dict[str, Part] = {}
        self._began = time.monotonic()
        self._facts: dict[str, Any] = {}

    def start(self) -> None:
        """Start and fill everything, and tell how to make the first call."""
        self._start_stores()
        backends, tokenizer = self._find_backends()
        self._start_gateway()
        earlier = datadir.read_json(self._directory.up_file)
        seeded = seed.fill(
            self._base_url, self._database_url(APP_ROLE), self._secrets["key_pepper"], backends, tokenizer, earlier
        )
        self._facts = {
            "base_url": self._base_url,
            **seeded,
            # The console comes later; its names are here so that scripts need not change.
            "console_url": None,
            "console_email": None,
            "console_password": None,
            "database_url": self._database_url(APP_ROLE),
            "owner_database_url": self._database_url(OWNER_ROLE),
            "redis_url": self._redis_url,
            "metrics_url": f"http://{LOOPBACK}:{self._internal_port}/metrics",
            "worker_metrics_url": f"http://{LOOPBACK}:{self._worker_port}/metrics",
        }
        self._write_up_file()
        self._say(welcome(self._facts, self._options.data_directory, time.monotonic() - self._began))
        if self._options.clock is not None:
            self._say(f"The billing clock began at {self._options.clock.isoformat()}, because TOLLGATE_CLOCK says so.")

    def watch(self) -> NoReturn:
        """Start again what ends, until we are interrupted. Raises `CannotStart` when a part ends too often."""
        while True:
            for part in self._parts.values():
                if part.child.exit_code() is not None:
                    self._start_again(part)
            time.sleep(_WATCH_SECONDS)

    def stop(self) -> None:
        """Stop all parts: the gateway drains, the worker books the rest, then what they stood on goes."""
        if self._facts:
            self._say("Stopping ...")
        if "gateway" in self._parts:
            self._parts["gateway"].child.ask_to_stop(DRAIN_SECONDS)
        for name, seconds in STOP_SECONDS.items():
            if name in self._parts:
                self._parts[name].child.stop(seconds)
        if self._facts:
            self._parts.clear()
            self._write_up_file()

    # Starting ---------------------------------------------------------------------------------------------------------

    def _start_stores(self) -> None:
        if not (self._directory.postgres / "PG_VERSION").exists():
            self._say("First start: making a database ...")
        self._postgres_port, self._redis_port = self._directory.port("postgres"), self._directory.port("redis")
        self._redis_url = f"redis://:{self._secrets['redis_password']}@{LOOPBACK}:{self._redis_port}/0"
        log = self._directory.log("postgres")
        postgres.initialise(self._directory.postgres, self._secrets["superuser_password"], log=log)
        self._add("redis", self._run_redis)
        self._add("postgres", lambda: self._run_postgres().child)
        asyncio.run(self._prepare_database())
        from migrations.run import migrate

        migrate(self._database_url(OWNER_ROLE), APP_ROLE)

    def _run_postgres(self) -> postgres.Postgres:
        self._server = postgres.start(
            self._directory.postgres,
            self._secrets["superuser_password"],
            log=self._directory.log("postgres"),
            port=self._postgres_port,
            keep_open=(self._directory.children_lock,),
        )
        return self._server

    async def _prepare_database(self) -> None:
        await postgres.create_role(self._server, OWNER_ROLE, self._secrets["owner_password"])
        await postgres.create_role(self._server, APP_ROLE, self._secrets["app_password"])
        await postgres.create_database(self._server, DATABASE, OWNER_ROLE)

    def _run_redis(self) -> Child:
        return redis.start(
            self._directory.redis,
            self._secrets["redis_password"],
            log=self._directory.log("redis"),
            port=self._redis_port,
            socket_path=self._redis_socket,
            keep_open=(self._directory.children_lock,),
        ).child

    @property
    def _redis_socket(self) -> Path | None:
        """Gateway and worker speak to Redis over a socket, a fifth cheaper, where its path fits into 107 bytes."""
        path = (self._directory.redis / "redis.sock").resolve()
        return path if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH else None

    def _find_backends(self) -> tuple[list[FoundBackend], Path | None]:
        """The given backends, else the ones around, else our own with the path of its tokenizer."""
        if self._options.backends:
            return local.look_at(self._options.backends), None
        found = [] if self._options.demo else local.look_around(self._options.port)
        if found:
            for backend in found:
                self._say(
                    f"Found {backend.kind.value} at {backend.url} with {', '.join(m.id for m in backend.models)}."
                )
            return found, None
        reason = "As asked" if self._options.demo else "No model server was found on the usual ports"
        self._say(f"{reason}: a tiny demo model answers. {BABBLES}")
        model, tokenizer = tinymodel.make(self._directory.models)
        port = self._directory.port("backend")
        self._add("backend", lambda: self._run_demo(model, port))
        served = ServedModel("tiny", tinymodel.CONTEXT_LENGTH)
        url = f"http://{LOOPBACK}:{port}"
        return [FoundBackend("demo", BackendKind.LLAMACPP, url, (served,))], tokenizer

    def _run_demo(self, model: Path, port: int) -> Child:
        keep_open = (self._directory.children_lock,)
        return llamacpp.start(model, log=self._directory.log("backend"), port=port, keep_open=keep_open).child

    def _start_gateway(self) -> None:
        self._base_url = f"http://{LOOPBACK}:{self._options.port}"
        self._internal_port = self._directory.port("internal")
        self._worker_port = self._directory.port("worker")
        self._add("worker", lambda: self._run_command("worker"))
        self._add("gateway", lambda: self._run_command("serve"))
        self._parts["gateway"].child.wait_until(lambda: answers_ok(self._options.port, "/readyz"), _READY_SECONDS)

    def _run_command(self, command: str) -> Child:
        """`tollgate serve` or `tollgate worker`, exactly as in production: only the URLs differ."""
        name = "gateway" if command == "serve" else command
        return Child(
            name,
            [sys.executable, "-m", "gateway.cli", command],
            log=self._directory.log(name),
            environment=os.environ | self._environment(),
            keep_open=(self._directory.children_lock,),
        )

    def _program_redis_url(self) -> str:
        path = self._redis_socket
        if path is None:
            return self._redis_url
        return f"unix://:{self._secrets['redis_password']}@{quote(str(path))}"

    def _environment(self) -> dict[str, str]:
        variables = {
            "TOLLGATE_DATABASE_URL": self._database_url(APP_ROLE),
            "TOLLGATE_REDIS_URL": self._program_redis_url(),
            "TOLLGATE_JOURNAL_DIR": str(self._directory.journal),
            "TOLLGATE_KEY_PEPPER": self._secrets["key_pepper"],
            "TOLLGATE_HOST": LOOPBACK,
            "TOLLGATE_PORT": str(self._options.port),
            "TOLLGATE_INTERNAL_HOST": LOOPBACK,
            "TOLLGATE_INTERNAL_PORT": str(self._internal_port),
            "TOLLGATE_WORKER_INTERNAL_PORT": str(self._worker_port),
            "TOLLGATE_DOCS_ENABLED": "true",
            STARTED_BY_UP: "1",
        }
        if self._options.clock is not None:
            # A child that is started again goes on where the clock is now, not where it began.
            start = self._options.clock + timedelta(seconds=time.monotonic() - self._began)
            variables["TOLLGATE_CLOCK"] = start.astimezone(UTC).isoformat()
        return variables

    def _database_url(self, role: str) -> str:
        password = self._secrets["owner_password" if role == OWNER_ROLE else "app_password"]
        return f"postgresql://{role}:{password}@{LOOPBACK}:{self._postgres_port}/{DATABASE}"

    # Watching ---------------------------------------------------------------------------------------------------------

    def _add(self, name: str, start: Callable[[], Child]) -> None:
        self._parts[name] = Part(name, start, start())

    def _start_again(self, part: Part) -> None:
        delay = part.restarts.after(time.monotonic())
        words = part.child.last_words()
        if delay is None:
            raise CannotStart(
                f"The {part.name} ended more than {MOST} times within {WINDOW_SECONDS:.0f} s, so everything stops;"
                f" it said: {words} (see {part.child.log})"
            )
        self._say(f"The {part.name} ended (exit code {part.child.exit_code()}); starting it again.")
        time.sleep(delay)
        try:
            part.child = part.start()
        except CannotStart as error:
            self._say(error.message)  # counted as one more end by the next look
            return
        self._write_up_file()

    def _write_up_file(self) -> None:
        names = ("gateway", "worker", "postgres", "redis", "backend")
        pids = {name: self._parts[name].child.pid if name in self._parts else None for name in names}
        datadir.write_json(self._directory.up_file, self._facts | {"pids": pids})


def welcome(facts: dict[str, Any], directory: Path, seconds: float) -> str:
    """What `up` prints when it is ready; both examples can be pasted as they are."""
    model, messages = facts["model"], '[{"role": "user", "content": "Hello"}]'
    return f"""
Tollgate is ready at {facts["base_url"]} (after {seconds:.1f} s). Your first call:

curl {facts["base_url"]}/v1/chat/completions \\
  -H "Authorization: Bearer {facts["api_key"]}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": {messages}}}'

The same in Python:

from openai import OpenAI

client = OpenAI(base_url="{facts["base_url"]}/v1", api_key="{facts["api_key"]}")
answer = client.chat.completions.with_raw_response.create(model="{model}", messages={messages})
print(answer.parse().choices[0].message.content)
print("receipt:", answer.headers["x-request-id"])

Receipts             {facts["base_url"]}/v1/calls/REQUEST-ID with the same key, for what a call cost
Keys and addresses   {directory / "up.json"}
Logs                 {directory / "logs"}
API reference        {facts["base_url"]}/docs
Stop                 Ctrl-C (everything is kept; the same command starts it again)
"""


def _turn_signals_into_interrupts() -> None:
    """The first signal to stop raises KeyboardInterrupt wherever we are; later ones must not disturb the stopping."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, interrupt)
