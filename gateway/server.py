"""The public HTTP server: uvicorn with the limits a stranger meets, and a shutdown that loses no call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.exchange import Exchange
from models.ids import uuid7

HEADER_SECONDS = 10.0
"""Time in which a request's head must arrive."""
BODY_SECONDS = 30.0
"""Time in which its body must arrive."""
HEAD_LIMIT_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 75
STALL_SECONDS = 60.0
"""How long a client may take nothing of what waits for it, also of an answer that its call is done with."""
MAX_CONNECTIONS = 8_192

_REFUSED = {
    400: (b"400 Bad Request", b"This is not a valid HTTP request."),
    408: (b"408 Request Timeout", b"The request did not arrive in time."),
    431: (b"431 Request Header Fields Too Large", b"The headers are too large."),
}


class PublicProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on a request, in time and in bytes of its head, and errors in our shape.

    A POST to one of the metered `paths` becomes an `Exchange` and goes to `metered` at the end of its head, without
    ASGI; all else goes to the application.
    """

    _timer: asyncio.TimerHandle | None = None
    _idle_timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0
    _stall: asyncio.TimerHandle | None = None
    _unsent_bytes = 0
    _head_bytes = 0
    _in_head = True
    _exchange: Exchange | None = None

    def __init__(
        self,
        *arguments: Any,
        metered: Callable[[Exchange], None],
        paths: Collection[str],
        body_seconds: float,
        body_limit_bytes: int,
        patience: Mapping[bytes, float] | None = None,
        **options: Any,
    ) -> None:
        """`patience` is the time in which a body must arrive on those paths that take larger ones."""
        super().__init__(*arguments, **options)
        self._metered = metered
        self._paths = {path.encode(): path for path in paths}
        self._body_seconds = self._usual_body_seconds = body_seconds
        self._patience = patience or {}
        self._body_limit_bytes = body_limit_bytes

    # asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio: a client connected."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client is gone."""
        self._arrived()
        self._taken()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        if self._in_head:
            self._head_bytes += len(data)
            # A body that comes with its head is no part of it, hence the look for the end of the head.
            if self._head_bytes > HEAD_LIMIT_BYTES and b"\r\n\r\n" not in data[:HEAD_LIMIT_BYTES]:
                self._refuse(431)
                return
        super().data_received(data)
        # A request that came in one piece needs no timer, and most do.
        if self._timer is None and self._head_bytes and self.parser is not None:
            self._wait(HEADER_SECONDS if self._in_head else self._body_seconds)

    def pause_writing(self) -> None:
        """asyncio: more waits to be sent than should."""
        super().pause_writing()
        self._look_for_stall()

    def resume_writing(self) -> None:
        """asyncio: what waited was sent."""
        self._taken()
        super().resume_writing()
        if self._exchange is not None:
            self._exchange.writable()

    # httptools -------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """httptools: a request begins. The ASGI scope is made when it is known to be needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """httptools: the head is complete."""
        self._arrived()
        self._in_head = False
        path = self._paths.get(self.url.partition(b"?")[0])
        if path is None or self.parser.get_method() != b"POST":
            url, headers, expects_continue = self.url, self.headers, self.expect_100_continue
            self._body_seconds = self._patience.get(url, self._usual_body_seconds)
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects_continue
            self.headers += headers
            super().on_headers_complete()
            return
        self._body_seconds = self._usual_body_seconds
        before = self.cycle
        is_http_1_0 = self.parser.get_http_version() == "1.0"
        self.cycle = exchange = Exchange(  # type: ignore[assignment]
            path,
            self.headers,
            transport=self.transport,
            flow=self.flow,
            limit_bytes=self._body_limit_bytes,
            keep_alive=not is_http_1_0 and self.parser.should_keep_alive(),
            is_http_1_0=is_http_1_0,
            expects_continue=self.expect_100_continue and not is_http_1_0,
            on_complete=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start(exchange)
        else:
            # Sent before the last one was answered: it waits in uvicorn's line.
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def _start(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._metered(exchange)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """uvicorn: the turn of this request has come."""
        if isinstance(cycle, Exchange):
            # In a turn of its own: the answer to the one before has led here, and a read may hold thousands of requests
            # that are refused at once.
            self._exchange = cycle
            self.loop.call_soon(self._start_unless_lost, cycle)
        else:
            self._exchange = None
            super()._start_asgi_task(cycle, app)

    def _start_unless_lost(self, exchange: Exchange) -> None:
        if not exchange.disconnected:
            self._start(exchange)

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of a body."""
        if isinstance(self.cycle, Exchange):
            self.cycle.body_came(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools: the request is complete; what follows is the head of the next."""
        self._arrived()
        self._in_head = True
        self._head_bytes = 0
        if isinstance(self.cycle, Exchange):
            self.cycle.body_ended()
        else:
            super().on_message_complete()

    # Keep-alive ------------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """uvicorn: a request is answered. As there, but that one timer a connection looks how long it has been idle."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(KEEP_ALIVE_SECONDS, self._look_for_idleness)

    def _look_for_idleness(self) -> None:
        self._idle_timer = None
        if self.transport.is_closing():
            return
        if self._head_bytes or not self.cycle.response_complete:
            # A request is under way; its end will arm the timer again.
            return
        idle = self.loop.time() - self._idle_since
        if idle < KEEP_ALIVE_SECONDS:
            self._idle_timer = self.loop.call_later(KEEP_ALIVE_SECONDS - idle, self._look_for_idleness)
        else:
            self.transport.close()

    # Bounds ----------------------------------------------------------------------------------------------------------

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
        if self._is_behind_another:
            # Its answer would have to wait anyway; and where we have stopped reading it is not the client that is late.
            self._wait(HEADER_SECONDS if self._in_head else self._body_seconds)
        else:
            self._refuse(408)

    def _look_for_stall(self) -> None:
        # To close would not do: that waits until all is sent.
        unsent = self.transport.get_write_buffer_size()
        if self._stall is not None and unsent >= self._unsent_bytes:
            self.transport.abort()
            return
        self._unsent_bytes = unsent
        self._stall = self.loop.call_later(STALL_SECONDS, self._look_for_stall)

    def _taken(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    @property
    def _is_behind_another(self) -> bool:
        """Whether what arrives now belongs to a request that another, which is not answered yet, came before."""
        if self._in_head:
            return self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline)

    def _refuse(self, status: int) -> None:
        self._arrived()
        line, message = _REFUSED[status]
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}' % message
        if self.transport.is_closing():
            return
        # Inside another answer it would corrupt that, before it be taken for it; and a body that was answered before it
        # had come was only thrown away.
        if not self._is_behind_another and (self._in_head or not self.cycle.response_started):
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
