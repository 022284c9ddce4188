"""One line of a batch in the place of a client's request: its body is there, and its answer is kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl

from gateway.exchange import Client, Exchange, Header


class LineExchange(Exchange):
    """A request without a connection. `answered` is done when the answer is complete, or will never be."""

    __slots__ = ("_line", "_pieces", "answered", "client", "retry_after_seconds", "status")

    def __init__(self, path: str, body: bytes) -> None:
        super().__init__(
            path,
            [],
            # There is none: every method that would use it is replaced below.
            transport=cast(asyncio.Transport, None),
            flow=cast(FlowControl, None),
            limit_bytes=len(body),
            keep_alive=True,
            on_complete=_nothing,
        )
        self._line = body
        self._pieces: list[bytes] = []
        self.status = 0
        self.retry_after_seconds = 0
        self.client: Client | None = None
        """Who drives the call; also after its end."""
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def body(self) -> bytes:
        """The body of the answer."""
        return b"".join(self._pieces)

    # What the call path asks ------------------------------------------------------------------------------------------

    def read(self, then: Callable[[bytes | None], None]) -> None:
        """The body is there."""
        then(self._line)

    def watch(self, client: Client | None) -> None:
        """Nobody leaves, and nobody is slow; but who drives the call knows what it was charged."""
        if client is not None:
            self.client = client

    @property
    def has_written(self) -> bool:
        """Whether something is to be flushed."""
        return self.response_complete and not self.answered.done()

    @property
    def is_slow(self) -> bool:
        """Memory is never slow."""
        return False

    def abort(self) -> None:
        """There will be no (more) answer."""
        self._end()

    # The answer ------------------------------------------------------------------------------------------------------

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """A whole answer."""
        self._begin(status, headers)
        self._pieces = [body]
        self.response_complete = True
        self._end()

    def open(self, status: int, lines: bytes, length: int | None) -> None:
        """The head of an answer."""
        self._begin(status, ())

    def write(self, data: bytes) -> None:
        """A piece of the answer."""
        self._pieces.append(data)

    def end(self, data: bytes) -> None:
        """The last piece."""
        self._pieces.append(data)
        self.response_complete = True

    def flush(self) -> None:
        """What was written is there already."""
        if self.response_complete:
            self._end()

    def _begin(self, status: int, headers: Iterable[Header]) -> None:
        self.response_started = True
        self.status = status
        self.retry_after_seconds = next((int(value) for name, value in headers if name == b"retry-after"), 0)

    def _end(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)


def _nothing(*_: Any) -> None:
    """Nobody waits for a connection to be free again."""
