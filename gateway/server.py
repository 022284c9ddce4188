"""The public HTTP server: uvicorn with the limits a stranger meets, and a shutdown that loses no call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from models.ids import uuid7

HEADER_SECONDS = 10.0
"""Time in which a request's head must arrive."""
BODY_SECONDS = 30.0
"""Time in which its body must arrive."""
HEAD_LIMIT_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 75
MAX_CONNECTIONS = 8_192

DISCONNECT = "tollgate.disconnect"

_REFUSED = {
    400: (b"400 Bad Request", b"This is not a valid HTTP request."),
    408: (b"408 Request Timeout", b"The request did not arrive in time."),
    431: (b"431 Request Header Fields Too Large", b"The headers are too large."),
}


class _Corked:
    """A transport that sends what is written in one turn of the event loop at once.

    uvicorn writes head and body of an answer one by one: a system call each, a tenth of all CPU time of a plain call.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send with whatever else is written in this turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        """Send what waits, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._transport.write(b"".join(waiting))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PublicProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on a request, in time and in bytes of its head, and errors in our shape.

    It tells at once when a client leaves: `scope["extensions"]["tollgate.disconnect"]["watch"]` takes a function, or
    None, which spares each call a task that waits for `http.disconnect`.
    """

    _on_disconnect: Callable[[], None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def __init__(self, *arguments: Any, body_seconds: float = BODY_SECONDS, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._body_seconds = body_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio: a client connected."""
        super().connection_made(transport)
        self.transport = _Corked(transport, self.loop)  # type: ignore[assignment]
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client is gone."""
        self._arrived()
        super().connection_lost(exc)
        if self._on_disconnect is not None:
            self._on_disconnect()
            self._on_disconnect = None

    def on_message_begin(self) -> None:
        """httptools: a request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {DISCONNECT: {"watch": self._watch}}

    def _watch(self, on_disconnect: Callable[[], None] | None) -> None:
        self._on_disconnect = on_disconnect

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        if self._in_head:
            if self._timer is None:
                self._wait(HEADER_SECONDS)
            self._head_bytes += len(data)
            # A body that comes with its head is no part of it, hence the look for the end of the head.
            if self._head_bytes > HEAD_LIMIT_BYTES and b"\r\n\r\n" not in data[:HEAD_LIMIT_BYTES]:
                self._refuse(431)
                return
        super().data_received(data)
        if not self._in_head and self._timer is None:
            self._wait(self._body_seconds)

    def on_headers_complete(self) -> None:
        """httptools: the head is complete."""
        self._arrived()
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """httptools: the request is complete; what follows is the head of the next."""
        super().on_message_complete()
        self._arrived()
        self._in_head = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """uvicorn: the bytes are no HTTP."""
        self._refuse(400)

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _arrived(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self._in_head or (self.cycle is not None and not self.cycle.response_started):
            self._refuse(408)
        else:
            # Answered already, and the rest of the body was only thrown away.
            self.transport.close()

    def _refuse(self, status: int) -> None:
        self._arrived()
        line, message = _REFUSED[status]
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}' % message
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"x-request-id: %b\r\nconnection: close\r\n\r\n%b"
                % (line, len(body), str(uuid7(datetime.now(UTC))).encode(), body)
            )
            self.transport.close()


class PublicServer(uvicorn.Server):
    """Stops in the order that loses nothing: `drain` ends the calls before uvicorn closes connections."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], hurry: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._hurry = hurry
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Asked to stop; asked again, running calls are ended now, but no charge is skipped."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif self._hurry is not None:
            self._loop.call_soon_threadsafe(self._hurry)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn: asked to stop."""
        for server in self.servers:
            server.close()
        await self._drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT, and then end with status 0 instead of the signal: the stop was clean."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


class InternalServer(uvicorn.Server):
    """The internal port; stopped by the public server's end, not by signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the public server."""
        yield


def config_of(app: Any, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration for both ports: no access log, no server header, our own logging."""
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        access_log=False,
        # The peer is the socket's: nothing here believes X-Forwarded-For.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
        **options,
    )
