"""The load: a program that sends requests to one target at a time and tells what came back.

`python -m benchmarks.load` reads an order as a line of JSON, carries it out, and answers with a line of JSON. A closed
loop keeps `concurrency` requests running and tells what a call costs; an open loop sends at a fixed rate and counts
each latency from the moment the request was due, so that waiting in a queue is not left out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import uvloop

from benchmarks.lines import input_lines

# uvloop's timers tick in milliseconds: the last stretch before a due moment is waited for by asking again and again.
SPIN_SECONDS = 0.002
ANSWER_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to send where. With `rate_per_second` the loop is open, else closed with `concurrency`."""

    host: str
    port: int
    path: str
    key: str
    body: str
    streamed: bool
    seconds: float
    concurrency: int = 1
    rate_per_second: float = 0

    def request(self) -> bytes:
        """The request as it goes over the wire."""
        body = self.body.encode()
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body


@dataclass(slots=True)
class Outcome:
    """What came back; latencies in nanoseconds to the first byte of the body and to its end."""

    completed: int = 0
    failed: int = 0
    failure: str = ""
    first_ns: list[int] = field(default_factory=list)
    whole_ns: list[int] = field(default_factory=list)


class LoadConnection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: Callable[[LoadConnection, str], None] | None = None

    def send(self, request: bytes, due_ns: int, streamed: bool, done: Callable[[LoadConnection, str], None]) -> None:
        """Send `request`; `done` gets this connection and what was wrong with the answer, or an empty text."""
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._done, self._streamed = done, streamed
        self.due_ns, self.first_ns, self.end_ns = due_ns, 0, 0
        self._tail, self._start = b"", b""
        self._transport.write(request)

    def close(self) -> None:
        """Close it; nothing is reported any more."""
        self._done = None
        if self._transport is not None:
            self._transport.close()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports do what asyncio's do, without being of their class.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._transport = None
        self._finish(f"the connection was closed ({error})")

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._done is not None:
            self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self.first_ns:
            self.first_ns = time.perf_counter_ns()
            self._start = body
        self._tail = (self._tail + body)[-256:]

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.end_ns = time.perf_counter_ns()
        whole = self._tail.endswith(b"data: [DONE]\n\n") if self._streamed else b'"usage"' in self._tail
        status = self._parser.get_status_code()
        self._finish("" if status == 200 and whole else f"{status}: {self._start[:300]!r}")

    def _finish(self, failure: str) -> None:
        if self._done is not None:
            done, self._done = self._done, None
            done(self, failure)


class Load:
    """Carries out orders; connections of each target are kept between them."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], deque[LoadConnection]] = {}
        self._loop = asyncio.get_running_loop()

    async def carry_out(self, order: Order) -> Outcome:
        """Send for `order.seconds`, then wait for what is still running."""
        outcome = Outcome()
        request = order.request()
        if order.rate_per_second:
            await self._open_loop(order, request, outcome)
        else:
            await asyncio.gather(*(self._closed_loop(order, request, outcome) for _ in range(order.concurrency)))
        return outcome

    async def _closed_loop(self, order: Order, request: bytes, outcome: Outcome) -> None:
        end = time.perf_counter() + order.seconds
        while time.perf_counter() < end and outcome.failed < order.concurrency:
            await self._one(order, request, time.perf_counter_ns(), outcome)

    async def _open_loop(self, order: Order, request: bytes, outcome: Outcome) -> None:
        start = time.perf_counter_ns()
        running = []
        for place in range(int(order.rate_per_second * order.seconds)):
            due_ns = start + int(place * 1e9 / order.rate_per_second)
            await _wait_until(due_ns)
            running.append(asyncio.ensure_future(self._one(order, request, due_ns, outcome)))
        await asyncio.gather(*running)

    async def _one(self, order: Order, request: bytes, due_ns: int, outcome: Outcome) -> None:
        try:
            connection = await self._connection(order)
        except OSError as problem:
            outcome.failed += 1
            outcome.failure = outcome.failure or f"no connection: {problem}"
            return
        answered: asyncio.Future[str] = self._loop.create_future()
        connection.send(request, due_ns, order.streamed, lambda _, failure: answered.set_result(failure))
        try:
            failure = await asyncio.wait_for(answered, ANSWER_TIMEOUT_SECONDS)
        except TimeoutError:
            failure = "no answer in time"
            connection.close()
        if failure:
            outcome.failed += 1
            outcome.failure = outcome.failure or failure
            return
        outcome.completed += 1
        if order.rate_per_second:
            outcome.first_ns.append(connection.first_ns - due_ns)
            outcome.whole_ns.append(connection.end_ns - due_ns)
        self._idle[order.host, order.port].append(connection)

    async def _connection(self, order: Order) -> LoadConnection:
        idle = self._idle.setdefault((order.host, order.port), deque())
        while idle:
            connection = idle.pop()
            if connection.is_open:
                return connection
        _, connection = await self._loop.create_connection(LoadConnection, order.host, order.port)
        return connection


async def _wait_until(due_ns: int) -> None:
    remaining = (due_ns - time.perf_counter_ns()) / 1e9
    if remaining > SPIN_SECONDS:
        await asyncio.sleep(remaining - SPIN_SECONDS)
    while time.perf_counter_ns() < due_ns:  # noqa: ASYNC110 - the clock tells no one
        await asyncio.sleep(0)


async def serve() -> None:
    """Carry out the orders on standard input until it closes."""
    load = Load()
    reader = await input_lines()
    while line := await reader.readline():
        order: dict[str, Any] = json.loads(line)
        outcome = await load.carry_out(Order(**order))
        answer = {name: getattr(outcome, name) for name in Outcome.__slots__}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(serve())
