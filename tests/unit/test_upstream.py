"""A connection to a backend between two calls: neither may see, or end, what is the other's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.calls import upstream
from gateway.calls.upstream import Address, Connection, Pool
from models.errors import TollgateError
from tests.unit.samples import deployment

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"5\r\nhello\r\n"
END = b"0\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False
        self.reads = True

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Listener:
    """A call, as its backend's connection knows it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def upstream_head(self, status: int, content_type: bytes) -> None:
        self.heard.append(status)

    def upstream_bytes(self, data: bytes) -> None:
        self.heard.append(data)

    def upstream_end(self) -> None:
        self.heard.append("end")

    def upstream_lost(self, error: TollgateError, is_stale: bool) -> None:
        self.heard.append("stale" if is_stale else "lost")


def connected() -> tuple[Pool, Connection, FakeTransport]:
    pool = Pool(Address.of(deployment().backend))
    connection, transport = Connection(pool), FakeTransport()
    connection.connection_made(transport)
    return pool, connection, transport


async def a_few_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_connection_serves_one_call_after_another() -> None:
    pool, connection, transport = connected()
    for _ in range(3):
        listener = Listener()
        connection.send(b"x", listener)
        connection.data_received(HEAD + PIECE + END)
        assert listener.heard == [200, b"hello", "end"]
        connection.leave()
        assert pool.idle() is connection
    assert not transport.is_closed


async def test_what_a_call_left_to_end_by_itself_does_not_end_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LINGER_SECONDS", 0.0)
    pool, connection, transport = connected()
    connection.send(b"one", Listener())
    connection.data_received(HEAD + PIECE)
    # [DONE] was in that piece: the call is over, and the end of the message comes a moment later.
    connection.leave()
    connection.data_received(END)
    again = pool.idle()
    assert again is connection
    listener = Listener()
    again.send(b"two", listener)
    await a_few_turns()
    assert not transport.is_closed
    connection.data_received(HEAD + PIECE + END)
    assert listener.heard == [200, b"hello", "end"]


async def test_a_message_that_does_not_end_costs_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "LINGER_SECONDS", 0.0)
    pool, connection, transport = connected()
    connection.send(b"one", Listener())
    connection.data_received(HEAD + PIECE)
    connection.leave()
    await a_few_turns()
    assert transport.is_closed
    assert pool.idle() is None


@pytest.mark.parametrize(
    "is_at_once", [pytest.param(True, id="with the answer"), pytest.param(False, id="when the connection is idle")]
)
async def test_an_answer_that_nobody_asked_for_costs_the_connection(is_at_once: bool) -> None:
    pool, connection, transport = connected()
    listener = Listener()
    connection.send(b"one", listener)
    if is_at_once:
        connection.data_received(WHOLE + WHOLE)
        connection.leave()
    else:
        connection.data_received(WHOLE)
        connection.leave()
        connection.data_received(WHOLE)
    assert listener.heard == [200, b"hi", "end"]
    # Twice in the pool, it would be given to two calls, and one would get the answer of the other.
    assert pool.idle() is None
    assert transport.is_closed


async def test_an_idle_connection_that_is_half_way_into_an_answer_is_not_used() -> None:
    pool, connection, transport = connected()
    connection.send(b"one", Listener())
    connection.data_received(WHOLE)
    connection.leave()
    connection.data_received(HEAD)
    assert pool.idle() is None
    assert transport.is_closed


async def test_a_connection_that_was_given_up_while_idle_is_stale() -> None:
    pool, connection, _ = connected()
    connection.send(b"one", Listener())
    connection.data_received(WHOLE)
    connection.leave()
    again = pool.idle()
    assert again is connection
    listener = Listener()
    again.send(b"two", listener)
    connection.connection_lost(None)
    assert listener.heard == ["stale"]
    connection.connection_lost(None)
    assert listener.heard == ["stale"]


@pytest.mark.parametrize("head", [WHOLE[:10], HEAD, HEAD + PIECE])
async def test_a_connection_that_is_lost_in_an_answer_is_not_stale(head: bytes) -> None:
    pool, connection, _ = connected()
    connection.send(b"one", Listener())
    connection.data_received(WHOLE)
    connection.leave()
    again, listener = pool.idle(), Listener()
    assert again is not None
    again.send(b"two", listener)
    connection.data_received(head)
    connection.connection_lost(ConnectionResetError())
    assert listener.heard[-1] == "lost"


async def test_a_paused_connection_goes_back_to_the_pool_reading() -> None:
    pool, connection, transport = connected()
    connection.send(b"one", Listener())
    connection.data_received(HEAD)
    connection.pause()
    assert not transport.reads
    connection.data_received(END)
    connection.leave()
    assert transport.reads
    assert pool.idle() is connection
