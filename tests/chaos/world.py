"""A whole Tollgate under load, of which a part can be taken away, and what has to be so during and after it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from billing.hot.connection import Argument, HotConnection
from models.money import parse_amount
from tests.conftest import Database, RedisProcess
from tests.scripted import DONE, Asked, Script, end, open_stream, said, scripted_backend, send, usage
from tests.stage import Listener, Stage, Tenant, eventually, raise_curtain

STREAMS = 20
CUSTOMERS = 4
PACE_SECONDS = 0.05
"""Pause of a customer between two calls, so that refusals do not fill the processor."""
BOUND_SECONDS = 2.0
LONG = "take your time"


class Gate:
    """A door in front of a server: while it is broken connections are reset, while it is silent nothing passes."""

    def __init__(self) -> None:
        self.url = ""
        self._is_broken = False
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def break_down(self) -> None:
        """As if the server were gone."""
        self._is_broken = True
        for writer in self._writers:
            writer.transport.abort()

    def fall_silent(self) -> None:
        """As if the server, or the network before it, hung."""
        self._passing.clear()

    def open(self) -> None:
        """All is well again."""
        self._is_broken = False
        self._passing.set()

    async def pass_through(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        """One connection from its client's side."""
        self._writers.add(writer)
        try:
            if self._is_broken:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(host, port)
            self._writers.add(far_writer)
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
            self._writers.discard(far_writer)
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def gate_before(url: str) -> AsyncIterator[Gate]:
    """A gate before the server at `url`; its own `url` leads through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    gate, host, port = Gate(), parts.hostname, parts.port

    async def knock(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.pass_through(reader, writer, host, port)

    server = await asyncio.start_server(knock, "127.0.0.1", 0)
    own = server.sockets[0].getsockname()[1]
    gate.url = url.replace(f":{port}/", f":{own}/")
    try:
        yield gate
    finally:
        gate.break_down()
        server.close()


def patient(go_on: asyncio.Event) -> Script:
    """A backend that stops in the middle of a long call until it is told to go on."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hello"))
        if asked.body["messages"][0]["content"] == LONG:
            await go_on.wait()
        await send(writer, said(" there", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    return script


@dataclass(slots=True)
class Crowd:
    """Customers that call again and again, and what they were answered."""

    stage: Stage
    tenant: Tenant
    served: list[str] = field(default_factory=list)
    refused: list[httpx.Response] = field(default_factory=list)
    slowest_refusal: float = 0.0
    slowest_served: float = 0.0

    async def call(self) -> None:
        """Calls, one after the other, until cancelled between two."""
        started = time.monotonic()
        answer = await self.stage.chat(self.tenant)
        seconds = time.monotonic() - started
        if answer.status_code == 200:
            self.served.append(answer.headers["x-request-id"])
            self.slowest_served = max(self.slowest_served, seconds)
        else:
            self.refused.append(answer)
            self.slowest_refusal = max(self.slowest_refusal, seconds)

    async def more_served(self, count: int = CUSTOMERS) -> None:
        """Wait until this many more calls were served."""
        wanted = len(self.served) + count

        async def there() -> bool:
            return len(self.served) >= wanted

        await eventually(there)

    async def more_refused(self, count: int = CUSTOMERS) -> None:
        """Wait until this many more calls were refused."""
        wanted = len(self.refused) + count

        async def there() -> bool:
            return len(self.refused) >= wanted

        await eventually(there)


@asynccontextmanager
async def crowd_of(stage: Stage, tenant: Tenant) -> AsyncIterator[Crowd]:
    """Customers at work; on the way out each ends its last call."""
    crowd, stop = Crowd(stage, tenant), asyncio.Event()

    async def customer() -> None:
        while not stop.is_set():
            await crowd.call()
            await asyncio.sleep(PACE_SECONDS)

    customers = [asyncio.create_task(customer()) for _ in range(CUSTOMERS)]
    try:
        yield crowd
    finally:
        stop.set()
        await asyncio.gather(*customers)


@dataclass(slots=True)
class World:
    """A Tollgate whose parts can be taken away: Postgres behind a gate, and a Redis of its own."""

    stage: Stage
    redis: RedisProcess
    postgres: Gate
    go_on: asyncio.Event

    async def ask_redis(self, *command: Argument) -> None:
        """Have Redis carry out a command of an administrator."""
        connection = await HotConnection.connect(self.redis.url)
        try:
            await connection.execute(*command)
        finally:
            await connection.close()

    async def streams(self, tenant: Tenant) -> list[Listener]:
        """Calls that have begun to stream and wait in the middle; one that a busy machine turns away is made again."""
        begun: list[Listener] = []

        async def have_begun() -> bool:
            begun[:] = [listener for listener in begun if listener.status in (0, 200)]
            begun.extend(self.stage.listen(tenant, LONG) for _ in range(STREAMS - len(begun)))
            return all("hello" in listener.text for listener in begun)

        await eventually(have_begun)
        return begun


@asynccontextmanager
async def world(
    postgres: Database, redis: RedisProcess, journal_dir: Path | None, **changes: Any
) -> AsyncIterator[World]:
    """A Tollgate that sells the model `m`."""
    go_on = asyncio.Event()
    async with (
        gate_before(postgres.app_url) as gate,
        scripted_backend(patient(go_on)) as backend,
        raise_curtain(gate.url, redis.url, journal_dir=journal_dir, **changes) as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield World(stage, redis, gate, go_on)


@dataclass(frozen=True, slots=True)
class Fault:
    """How new calls come to be refused, how long that is kept up, and how it ends."""

    begin: Callable[[World], Awaitable[None]]
    mend: Callable[[World], Awaitable[None]]
    seconds: float = 0.0
    takes_settles: bool = False
    """Whether running calls can be settled meanwhile."""


async def play(here: World, fault: Fault) -> None:
    """A fault under load: new calls are refused in time with a reason, running ones end and are charged once."""
    stage = here.stage
    streaming, crowding = await stage.tenant(), await stage.tenant()
    streams = await here.streams(streaming)
    async with crowd_of(stage, crowding) as crowd:
        await crowd.more_served()
        began = time.monotonic()
        await fault.begin(here)
        await crowd.more_refused()
        here.go_on.set()
        await asyncio.gather(*(stream.task for stream in streams))
        assert all(stream.status == 200 and stream.is_done for stream in streams)
        if fault.takes_settles:
            await stage.charges(streaming, STREAMS)

        async def long_enough() -> bool:
            return time.monotonic() - began >= fault.seconds

        await eventually(long_enough)
        await crowd.more_refused()
        await fault.mend(here)
        await crowd.more_served()
    assert {answer.status_code for answer in crowd.refused} == {503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in crowd.refused)
    assert crowd.slowest_refusal <= BOUND_SECONDS
    await stage.quiet()
    await charged_once(stage, streaming, [stream.call_id for stream in streams])
    await charged_once(stage, crowding, crowd.served)
    await stage.verified(streaming, crowding)


async def charged_once(stage: Stage, tenant: Tenant, calls: list[str]) -> None:
    """Each of these calls has one charge, there are no others, and the balance is what they left."""
    charges = await stage.charges(tenant, len(calls))
    assert sorted(charge["call_id"] for charge in charges) == sorted(calls)
    assert {(charge["ending"], charge["input_tokens"], charge["output_tokens"]) for charge in charges} == {
        ("finished", 5, 2)
    }
    spent = sum(parse_amount(charge["amount"]["amount"], "USD") for charge in charges)

    async def is_exact() -> bool:
        balance = await stage.balance(tenant)
        return parse_amount(balance["balance"]["amount"], "USD") == parse_amount("5", "USD") - spent

    await eventually(is_exact)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A disk of its own with so much room; the test is skipped where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tollgate-test", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is left on a disk; delete the file to give it back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4_096))
        except OSError:
            return filler
