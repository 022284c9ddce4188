"""One request on a metered path and its answer: bytes in, bytes out, without an ASGI cycle and without a task.

Measured before the start: the same work costs 35 µs of CPU driven from protocol callbacks and 79 µs awaited over ASGI
(facts on speed; `make bench` repeats the comparison with nginx).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

Header = tuple[bytes, bytes]

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


COPY_LIMIT_BYTES: Final = 1024 * 1024


class Client(Protocol):
    """Who is told what the client of an exchange does."""

    def client_gone(self) -> None:
        """The connection is closed: nobody reads on."""

    def client_ready(self) -> None:
        """The client has read what waited; more may be sent."""


class _NobodyWaits:
    """What uvicorn sets when something happened to a request; here those who want to know are called instead."""

    def set(self) -> None:
        return


class Copy:
    """What was answered, kept up to a limit."""

    __slots__ = ("_pieces", "_size", "content_type", "is_complete", "status")

    def __init__(self) -> None:
        self.status = 0
        self.content_type = ""
        self.is_complete = False
        self._pieces: list[bytes] = []
        self._size = 0

    def head(self, status: int, lines: bytes) -> None:
        """The status, and the headers as they are sent."""
        self.status = status
        for line in lines.split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name == b"content-type":
                self.content_type = value.decode("latin-1")

    def add(self, data: bytes) -> None:
        """A piece of the body."""
        self._size += len(data)
        if self._size <= COPY_LIMIT_BYTES:
            self._pieces.append(data)

    @property
    def body(self) -> bytes | None:
        """The whole body; None where it is not complete, or larger than the limit."""
        return b"".join(self._pieces) if self.is_complete and self._size <= COPY_LIMIT_BYTES else None


class Exchange:
    """A request and the way to answer it, once: with `answer`, or with `open`, `write` and `end`.

    Stands where uvicorn keeps its request-response cycle, so that pipelining, keep-alive and shutdown are uvicorn's.
    What is written is sent by `flush`, all at once.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_client",
        "_copy",
        "_flow",
        "_has_frames",
        "_is_http_1_0",
        "_is_over",
        "_limit_bytes",
        "_on_complete",
        "_out",
        "_then",
        "_transport",
        "_waits_to_continue",
        "disconnected",
        "extra_lines",
        "headers",
        "keep_alive",
        "more_body",
        "path",
        "response_complete",
        "response_started",
    )

    message_event = _NobodyWaits()

    def __init__(
        self,
        path: str,
        headers: list[Header],
        *,
        transport: asyncio.Transport,
        flow: FlowControl,
        limit_bytes: int,
        keep_alive: bool,
        is_http_1_0: bool = False,
        expects_continue: bool = False,
        on_complete: Callable[[], None],
    ) -> None:
        self.path = path
        self.headers = headers
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.disconnected = False
        self._transport = transport
        self._flow = flow
        self._limit_bytes = limit_bytes
        self._is_http_1_0 = is_http_1_0
        self._waits_to_continue = expects_continue
        self._on_complete = on_complete
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._then: Callable[[bytes | None], None] | None = None
        self._client: Client | None = None
        self._out: list[bytes] = []
        self._has_frames = False
        self._is_over = False
        self._copy: Copy | None = None
        self.extra_lines = b""
        """Headers of every answer, whoever makes it."""

    # The request -----------------------------------------------------------------------------------------------------

    def read(self, then: Callable[[bytes | None], None]) -> None:
        """Have the body, now or when it is complete; None where it is larger than the limit.

        Before that no more of it is taken than a read or two: who is not known cannot fill our memory. Where the client
        has left meanwhile nobody is told.
        """
        if self.disconnected:
            return
        self._then = then
        if self._waits_to_continue and self.more_body:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._flow.resume_reading()
        self._look()

    def body_came(self, piece: bytes) -> None:
        """A piece of the body."""
        if self.response_complete:
            return
        self._body_bytes += len(piece)
        if self._body_bytes > self._limit_bytes:
            self._body.clear()
            self._look()
        else:
            self._body.append(piece)
        if self._then is None and self._body_bytes > HIGH_WATER_LIMIT and not self.response_complete:
            self._flow.pause_reading()

    def body_ended(self) -> None:
        """The request is complete."""
        self.more_body = False
        self._look()

    def _look(self) -> None:
        is_too_large = self._body_bytes > self._limit_bytes
        if self._then is None or (self.more_body and not is_too_large):
            return
        then, self._then = self._then, None
        body, self._body = self._body, []
        then(None if is_too_large else body[0] if len(body) == 1 else b"".join(body))

    @property
    def peer(self) -> str:
        """The address of the socket at the other end; empty where it has none."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if name else ""

    # The client ------------------------------------------------------------------------------------------------------

    def watch(self, client: Client | None) -> None:
        """From now on tell `client`; None: nobody."""
        self._client = client

    def lost(self) -> None:
        """The connection is closed."""
        self.disconnected = True
        self._then = None
        if self._client is not None and not self.response_complete:
            self._client.client_gone()

    def writable(self) -> None:
        """What waited was sent."""
        if self._client is not None:
            self._client.client_ready()

    @property
    def has_written(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._out)

    @property
    def is_slow(self) -> bool:
        """Whether more waits to be sent than should; `client_ready` tells when it has gone."""
        return self._flow.write_paused

    def abort(self) -> None:
        """Break the connection: the client has stopped reading."""
        self._transport.abort()

    # The answer ------------------------------------------------------------------------------------------------------

    def keep_copy(self) -> Copy:
        """From now on keep what is answered."""
        self._copy = Copy()
        return self._copy

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """A whole answer, sent at once; `headers` say its content-length."""
        self._has_frames = False
        self._head(status, b"".join(b"%b: %b\r\n" % header for header in headers))
        self.end(body)
        self.flush()

    def open(self, status: int, lines: bytes, length: int | None) -> None:
        """Begin an answer of `length` bytes, or of unknown length (None); `lines` are its headers as they are sent."""
        self._has_frames = length is None and not self._is_http_1_0
        if length is not None:
            lines += b"content-length: %d\r\n" % length
        elif self._has_frames:
            lines += b"transfer-encoding: chunked\r\n"
        else:
            # HTTP/1.0 has no chunks: the end of the connection is the end of the answer.
            self.keep_alive = False
        self._head(status, lines)

    def write(self, data: bytes) -> None:
        """A piece of the answer."""
        if data:
            if self._copy is not None:
                self._copy.add(data)
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data) if self._has_frames else data)

    def end(self, data: bytes) -> None:
        """The last piece of the answer."""
        self.write(data)
        if self._has_frames:
            self._out.append(b"0\r\n\r\n")
        self.response_complete = True
        if self._copy is not None:
            self._copy.is_complete = True

    def flush(self) -> None:
        """Send what was written, and make room for the next request when the answer is complete."""
        out = self._out
        if out:
            self._out = []
            if not self.disconnected:
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        if self.response_complete and not self._is_over:
            self._is_over = True
            if not self.keep_alive and not self.disconnected:
                self._transport.close()
            self._on_complete()

    def _head(self, status: int, lines: bytes) -> None:
        self.response_started = True
        if self._copy is not None:
            self._copy.head(status, lines)
        if self.extra_lines:
            lines += self.extra_lines
        closing = b"" if self.keep_alive else b"connection: close\r\n"
        self._out.append(b"%b%b%b\r\n" % (_STATUS_LINES[status], lines, closing))
