"""The public port between the bytes of a client and the call path: order, bounds, timers, and who is told what."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway import server
from gateway.exchange import Exchange
from gateway.server import HEADER_SECONDS, KEEP_ALIVE_SECONDS, STALL_SECONDS, PublicProtocol, config_of

CHAT = "/v1/chat/completions"
LIMIT_BYTES = 1_000_000
BODY_SECONDS = 30.0
HIGH_WATER_BYTES = 65_536
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STREAM = b"content-type: text/event-stream\r\n"


class FakeLoop:
    """A loop whose time passes when a test says so; tasks are those of the real one."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, FakeHandle]] = []
        self._ready: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> FakeHandle:
        handle = FakeHandle(callback, arguments)
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), handle))
        return handle

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._ready.append((callback, arguments))

    def create_task(self, work: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def turn(self) -> None:
        """Do all that is to be done now."""
        while self._ready:
            callback, arguments = self._ready.popleft()
            callback(*arguments)

    def advance(self, seconds: float) -> None:
        """Let time pass, with the timers that it sets off."""
        until = self.now + seconds
        self.turn()
        while self._timers and self._timers[0][0] <= until:
            self.now, _, handle = heapq.heappop(self._timers)
            if not handle.is_cancelled:
                handle.callback(*handle.arguments)
                self.turn()
        self.now = until


@dataclass(slots=True)
class FakeHandle:
    callback: Callable[..., None]
    arguments: tuple[Any, ...]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeTransport(asyncio.Transport):
    """Keeps what was written, and closes as asyncio does: when all is sent; the protocol is told in a later turn."""

    def __init__(self, loop: FakeLoop) -> None:
        super().__init__()
        self.written = bytearray()
        self.reads = True
        self.was_aborted = False
        self.unsent_bytes = 0
        self.protocol: PublicProtocol
        self._loop = loop
        self._is_closing = False

    def write(self, data: Any) -> None:
        assert not self._is_closing, "nothing is written after the end"
        self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self.unsent_bytes:
                self._loop.call_soon(self._lost)

    def abort(self) -> None:
        self.was_aborted = self._is_closing = True
        self._loop.call_soon(self._lost)

    def _lost(self) -> None:
        if self.protocol.parser is not None:
            self.protocol.connection_lost(None)

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


@dataclass(slots=True)
class Answer:
    """One answer as its client reads it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False


class Reader:
    """Reads answers as httptools does."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._headers: dict[str, str] = {}
        self._parser = httptools.HttpResponseParser(self)

    def read(self, data: bytes) -> list[Answer]:
        self._parser.feed_data(data)
        return self.answers

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode()] = value.decode()

    def on_headers_complete(self) -> None:
        self.answers.append(Answer(self._parser.get_status_code(), self._headers))

    def on_body(self, data: bytes) -> None:
        self.answers[-1].body += data

    def on_message_complete(self) -> None:
        self.answers[-1].is_complete = True


@dataclass(slots=True)
class Watcher:
    """The client of an exchange, as a call sees it."""

    gone: int = 0
    ready: int = 0

    def client_gone(self) -> None:
        self.gone += 1

    def client_ready(self) -> None:
        self.ready += 1


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """All that is not metered: reads the request, and says what it was."""
    while (await receive()).get("more_body"):
        pass
    said = f"asgi {scope['method']} {scope['path']}".encode()
    head = [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 404, "headers": head})
    await send({"type": "http.response.body", "body": said})


class Wire:
    """A client's connection to the public port."""

    def __init__(self, metered: Callable[[Exchange], None] | None = None) -> None:
        self.loop = FakeLoop()
        self.exchanges: list[Exchange] = []
        self.transport = FakeTransport(self.loop)
        self.state = ServerState()
        self._metered = metered
        config = config_of(asgi, http=PublicProtocol)
        config.load()
        self.protocol = PublicProtocol(
            config,
            self.state,
            {},
            cast("asyncio.AbstractEventLoop", self.loop),
            metered=self._begin,
            paths=[CHAT, "/v1/embeddings"],
            body_seconds=BODY_SECONDS,
            body_limit_bytes=LIMIT_BYTES,
        )
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    def _begin(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self._metered is not None:
            self._metered(exchange)

    def send(self, *pieces: bytes) -> Wire:
        for piece in pieces:
            if self.transport.is_closing():
                break
            self.protocol.data_received(piece)
            self.loop.turn()
        return self

    async def until_asgi_ended(self) -> None:
        while self.state.tasks:
            await asyncio.gather(*self.state.tasks)
            self.loop.turn()

    @property
    def written(self) -> bytes:
        return bytes(self.transport.written)

    @property
    def answers(self) -> list[Answer]:
        return Reader().read(self.written)

    @property
    def bodies(self) -> list[bytes]:
        return [answer.body for answer in self.answers]


def post(
    body: bytes = b"{}", path: str = CHAT, *headers: str, version: str = "1.1", length: int | None = None
) -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def say(exchange: Exchange, body: bytes) -> None:
    exchange.answer(200, [(b"content-length", b"%d" % len(body))], body)
    assert exchange.response_complete


def echo(exchange: Exchange) -> None:
    """Answer with what was asked."""
    exchange.read(lambda body: say(exchange, b"echo " + (body or b"nothing")))


def streamed(exchange: Exchange) -> None:
    """Answer with what was asked, in pieces of a byte, each sent by itself."""

    def answer(body: bytes | None) -> None:
        assert body is not None
        exchange.open(200, STREAM, None)
        for number in range(len(body)):
            exchange.write(body[number : number + 1])
            exchange.flush()
        exchange.end(b"")
        exchange.flush()

    exchange.read(answer)


# One request ---------------------------------------------------------------------------------------------------------


def test_a_whole_request_in_one_read() -> None:
    wire = Wire(echo).send(post(b'{"a":1}'))
    assert wire.bodies == [b'echo {"a":1}']
    assert not wire.transport.is_closing()
    assert wire.exchanges[0].path == CHAT
    assert (b"host", b"x") in wire.exchanges[0].headers


@settings(max_examples=150)
@given(
    cuts=st.lists(st.integers(0, 330), max_size=8),
    is_chunked=st.booleans(),
    is_streamed=st.booleans(),
)
def test_bytes_may_be_split_anywhere(cuts: list[int], is_chunked: bool, is_streamed: bool) -> None:
    chunked = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n4;x=y\r\nmore\r\n0\r\n\r\n"
    ).encode()
    sent = (chunked if is_chunked else post(b"fourmore")) * 2 + post(b"last")
    ends = sorted({0, *cuts, len(sent)})
    wire = Wire(streamed if is_streamed else echo)
    wire.send(*(sent[start:end] for start, end in itertools.pairwise(ends)))
    bodies = [b"fourmore", b"fourmore", b"last"]
    assert wire.bodies == (bodies if is_streamed else [b"echo " + body for body in bodies])
    assert all(answer.is_complete for answer in wire.answers)
    wire.loop.advance(max(BODY_SECONDS, HEADER_SECONDS))
    assert not wire.transport.is_closing(), "no timer of a request that has come is left"


def test_a_query_is_no_part_of_the_path() -> None:
    wire = Wire(echo).send(post(b"{}", CHAT + "?api-version=1&x=/v1/embeddings"))
    assert wire.exchanges[0].path == CHAT
    assert wire.bodies == [b"echo {}"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "target"),
    [
        pytest.param("GET", CHAT, id="another method"),
        pytest.param("PUT", CHAT, id="a method with a body"),
        pytest.param("POST", f"http://x{CHAT}", id="absolute form"),
        pytest.param("POST", f"http://x{CHAT}?a=b", id="absolute form with a query"),
        pytest.param("POST", "/v1/chat%2Fcompletions", id="an encoded slash"),
        pytest.param("POST", "/v1/chat/%63ompletions", id="an encoded letter"),
        pytest.param("POST", f"{CHAT}/", id="a slash at the end"),
        pytest.param("POST", f"/{CHAT}", id="two slashes"),
        pytest.param("POST", f"{CHAT}#x", id="a fragment"),
        pytest.param("POST", f"{CHAT};x", id="a parameter"),
        pytest.param("POST", "/v1/chat/../chat/completions", id="a way around"),
        pytest.param("POST", CHAT.upper(), id="capitals"),
    ],
)
async def test_what_is_no_metered_path_is_for_the_application(method: str, target: str) -> None:
    wire = Wire(echo).send(f"{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode())
    await wire.until_asgi_ended()
    assert not wire.exchanges
    [answer] = wire.answers
    assert answer.body.startswith(b"asgi ")


def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection() -> None:
    for headers in ((), ("connection: keep-alive",)):
        wire = Wire(streamed).send(post(b"words", CHAT, *headers, version="1.0"))
        head, _, body = wire.written.partition(b"\r\n\r\n")
        assert body == b"words"
        assert b"transfer-encoding" not in head
        assert b"content-length" not in head
        assert head.count(b"connection: close") == 1
        assert wire.transport.is_closing()


def test_http_1_0_with_a_whole_answer() -> None:
    wire = Wire(echo).send(post(b"words", version="1.0"))
    [answer] = wire.answers
    assert (answer.body, answer.headers["connection"]) == (b"echo words", "close")
    assert wire.transport.is_closing()


def test_a_client_may_ask_for_the_end_of_the_connection() -> None:
    wire = Wire(echo).send(post(b"{}", CHAT, "connection: close") + post())
    [answer] = wire.answers
    assert answer.headers["connection"] == "close"
    assert wire.transport.is_closing()
    assert len(wire.exchanges) == 1


def test_a_kept_connection_is_closed_when_nothing_comes() -> None:
    wire = Wire(echo).send(post(), post())
    assert len(wire.answers) == 2
    wire.loop.advance(KEEP_ALIVE_SECONDS - 1)
    assert not wire.transport.is_closing()
    wire.send(post())
    wire.loop.advance(KEEP_ALIVE_SECONDS - 1)
    assert not wire.transport.is_closing()
    wire.loop.advance(2)
    assert wire.transport.is_closing()
    assert len(wire.answers) == 3


# The body ------------------------------------------------------------------------------------------------------------


def test_100_continue_is_said_when_the_body_is_wanted() -> None:
    wire = Wire().send(post(b"", CHAT, "expect: 100-continue", length=4))
    assert not wire.written, "who is not known is not asked for a body"
    echo(wire.exchanges[0])
    assert wire.written == CONTINUE
    wire.send(b"four")
    assert [answer.status for answer in wire.answers] == [100, 200]
    assert wire.bodies[-1] == b"echo four"


def test_100_continue_is_not_said_when_the_body_is_there() -> None:
    wire = Wire(echo).send(post(b"four", CHAT, "expect: 100-continue"))
    # The head ends before its body is seen, so the wish is granted; what counts is that it comes first.
    assert wire.written.removeprefix(CONTINUE).startswith(b"HTTP/1.1 200")


def test_http_1_0_knows_no_100_continue() -> None:
    wire = Wire(echo).send(post(b"", CHAT, "expect: 100-continue", version="1.0", length=4), b"four")
    assert wire.written.startswith(b"HTTP/1.1 200")


def test_a_body_is_refused_without_100_continue() -> None:
    wire = Wire(lambda exchange: say(exchange, b"no")).send(post(b"", CHAT, "expect: 100-continue", length=4))
    assert [answer.status for answer in wire.answers] == [200]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_above_the_limit(is_chunked: bool) -> None:
    got: list[bytes | None] = []

    def take(exchange: Exchange) -> None:
        def then(body: bytes | None) -> None:
            got.append(body)
            say(exchange, b"too large")

        exchange.read(then)

    wire = Wire(take)
    size, total = 50_000, LIMIT_BYTES + 500_000
    if is_chunked:
        pieces = [b"%x\r\n%b\r\n" % (size, b"x" * size)] * (total // size) + [b"0\r\n\r\n"]
        wire.send(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode(), *pieces)
    else:
        wire.send(post(b"", length=total), *[b"x" * size] * (total // size))
    assert got == [None]
    assert wire.bodies == [b"too large"]
    # What was thrown away is no part of the next request.
    wire.send(post(b"next"))
    assert got == [None, b"next"]


def test_a_body_at_the_limit_is_taken() -> None:
    wire = Wire().send(post(b"x" * LIMIT_BYTES))
    got: list[bytes | None] = []
    wire.exchanges[0].read(got.append)
    assert [len(body or b"") for body in got] == [LIMIT_BYTES]


def test_a_body_above_the_limit_before_its_sender_is_known() -> None:
    wire = Wire().send(post(b"", length=LIMIT_BYTES + 1), b"x" * (LIMIT_BYTES + 1))
    assert not wire.transport.reads
    got: list[bytes | None] = []
    wire.exchanges[0].read(got.append)
    assert got == [None]


def test_little_is_taken_before_its_sender_is_known() -> None:
    wire = Wire().send(post(b"", length=LIMIT_BYTES))
    taken = 0
    while wire.transport.reads:
        assert taken <= 2 * HIGH_WATER_BYTES
        wire.send(b"x" * 16_384)
        taken += 16_384
    got: list[bytes | None] = []
    wire.exchanges[0].read(got.append)
    assert wire.transport.reads
    wire.send(b"x" * (LIMIT_BYTES - taken))
    assert [len(body or b"") for body in got] == [LIMIT_BYTES]


def test_an_answer_before_the_body_is_there() -> None:
    wire = Wire(lambda exchange: say(exchange, b"who are you?")).send(post(b"", length=200_000))
    assert wire.bodies == [b"who are you?"]
    wire.send(b"x" * 150_000)
    assert wire.transport.reads, "the rest is thrown away, and the connection lives on"
    wire.send(b"x" * 50_000 + post())
    assert wire.bodies == [b"who are you?"] * 2


# Pipelined requests --------------------------------------------------------------------------------------------------


def test_three_metered_requests_are_answered_in_their_order() -> None:
    wire = Wire().send(post(b"one") + post(b"two") + post(b"three"))
    assert len(wire.exchanges) == 1, "one at a time: the first is not answered yet"
    assert not wire.transport.reads
    for number in range(3):
        echo(wire.exchanges[number])
        wire.loop.turn()
    assert wire.bodies == [b"echo one", b"echo two", b"echo three"]
    assert wire.transport.reads


def test_the_body_of_a_waiting_request_is_bounded() -> None:
    wire = Wire().send(post(b"one") + post(b"", length=LIMIT_BYTES))
    assert not wire.transport.reads
    # What a transport had read before it was paused.
    wire.send(b"x" * 100_000)
    assert not wire.transport.reads
    echo(wire.exchanges[0])
    wire.loop.turn()
    wire.send(b"x" * 100_000)
    assert not wire.transport.reads
    echo(wire.exchanges[1])
    wire.send(b"x" * (LIMIT_BYTES - 200_000))
    assert [len(body) for body in wire.bodies] == [8, LIMIT_BYTES + 5]


@pytest.mark.anyio
@pytest.mark.parametrize("kinds", ["".join(kinds) for kinds in itertools.product("am", repeat=3)])
async def test_metered_and_other_requests_are_answered_in_their_order(kinds: str) -> None:
    wire = Wire(echo)
    wire.send(b"".join(post(b"{}", CHAT if kind == "m" else "/else") for kind in kinds))
    await wire.until_asgi_ended()
    said = {"m": b"echo {}", "a": b"asgi POST /else"}
    assert wire.bodies == [said[kind] for kind in kinds]
    assert wire.transport.reads


@pytest.mark.anyio
async def test_a_metered_request_behind_another_has_its_own_headers() -> None:
    wire = Wire(echo).send(
        post(b"{}", "/else", "x-one: 1") + post(b"{}", CHAT, "x-two: 2") + post(b"{}", CHAT, "x-three: 3")
    )
    await wire.until_asgi_ended()
    assert [dict(exchange.headers).get(b"x-two") for exchange in wire.exchanges] == [b"2", None]
    assert [dict(exchange.headers).get(b"x-three") for exchange in wire.exchanges] == [None, b"3"]
    assert all(b"x-one" not in dict(exchange.headers) for exchange in wire.exchanges)


def test_thousands_of_requests_in_one_read_are_answered_one_after_another() -> None:
    # Who has no key is refused at once; each refusal must not be made inside that of the one before.
    first: list[Exchange] = []

    def refuse(exchange: Exchange) -> None:
        if first:
            say(exchange, b"no")
        first.append(exchange)

    count = 3_000
    wire = Wire(refuse).send(post(b"") * count)
    assert not wire.answers
    say(first[0], b"no")
    wire.loop.turn()
    assert wire.bodies == [b"no"] * count


def test_a_request_whose_client_left_before_its_turn_is_not_begun() -> None:
    wire = Wire().send(post(b"one") + post(b"two"))
    watcher = Watcher()
    wire.exchanges[0].watch(watcher)
    say(wire.exchanges[0], b"x")
    # Its turn has come, but the loop has the end of the connection first.
    wire.protocol.connection_lost(ConnectionResetError())
    wire.loop.turn()
    assert len(wire.exchanges) == 1 or wire.exchanges[1].disconnected


def test_nothing_is_begun_on_a_lost_connection() -> None:
    wire = Wire().send(post(b"one") + post(b"two"))
    wire.transport.close()
    wire.loop.turn()
    say(wire.exchanges[0], b"too late")
    wire.loop.turn()
    assert len(wire.exchanges) == 1
    assert not wire.written


# The client ----------------------------------------------------------------------------------------------------------


def test_the_client_is_gone_before_the_body() -> None:
    wire = Wire().send(post(b"", length=10), b"half ")
    got: list[bytes | None] = []
    wire.exchanges[0].read(got.append)
    wire.protocol.connection_lost(None)
    assert wire.exchanges[0].disconnected
    assert got == []


def test_the_client_is_gone_before_anybody_reads() -> None:
    wire = Wire().send(post(b"", CHAT, "expect: 100-continue", length=10))
    wire.transport.close()
    wire.loop.turn()
    wire.exchanges[0].read(lambda body: pytest.fail("there is no body"))
    assert not wire.written


def test_the_client_is_gone_while_it_waits() -> None:
    wire, watcher = Wire().send(post()), Watcher()
    [exchange] = wire.exchanges
    exchange.watch(watcher)
    wire.transport.close()
    wire.loop.turn()
    assert watcher.gone == 1
    say(exchange, b"nobody hears")
    assert not wire.written
    assert watcher.gone == 1


def test_the_client_is_gone_in_the_middle_of_its_answer() -> None:
    wire, watcher = Wire().send(post()), Watcher()
    [exchange] = wire.exchanges
    exchange.watch(watcher)
    exchange.open(200, STREAM, None)
    exchange.write(b"half")
    exchange.flush()
    written = wire.written
    exchange.write(b"more")
    wire.transport.close()
    wire.loop.turn()
    assert watcher.gone == 1
    exchange.end(b"last")
    exchange.flush()
    assert wire.written == written


def test_the_client_is_gone_after_its_answer() -> None:
    wire, watcher = Wire().send(post()), Watcher()
    [exchange] = wire.exchanges
    exchange.watch(watcher)
    say(exchange, b"all of it")
    wire.transport.close()
    wire.loop.turn()
    assert watcher.gone == 0


def test_the_client_of_the_first_is_told_though_more_requests_wait() -> None:
    wire, watcher = Wire().send(post(b"one") + post(b"two")), Watcher()
    wire.exchanges[0].watch(watcher)
    wire.transport.close()
    wire.loop.turn()
    assert watcher.gone == 1
    assert wire.exchanges[0].disconnected


def test_a_slow_client_is_told_of_and_keeps_the_order() -> None:
    wire, watcher = Wire().send(post()), Watcher()
    [exchange] = wire.exchanges
    exchange.watch(watcher)
    exchange.open(200, STREAM, None)
    exchange.write(b"one ")
    exchange.flush()
    assert not exchange.is_slow
    wire.protocol.pause_writing()
    assert exchange.is_slow
    exchange.write(b"two ")
    assert exchange.has_written
    exchange.flush()
    wire.protocol.resume_writing()
    assert not exchange.is_slow
    assert watcher.ready == 1
    exchange.end(b"three")
    exchange.flush()
    assert wire.bodies == [b"one two three"]


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_client_that_takes_nothing_of_a_whole_answer_is_cut_off(is_kept: bool) -> None:
    # Its call has ended, and to close the connection would wait until all is sent.
    wire = Wire(echo)
    wire.transport.unsent_bytes = 1_000_000
    wire.protocol.pause_writing()
    wire.send(post(b"{}", CHAT, "connection: " + ("keep-alive" if is_kept else "close")))
    assert wire.transport.is_closing() is not is_kept
    for _ in range(5):
        # Slowly is not never.
        wire.transport.unsent_bytes -= 1_000
        wire.loop.advance(STALL_SECONDS)
        assert not wire.transport.was_aborted
    wire.loop.advance(STALL_SECONDS + 1)
    assert wire.transport.was_aborted


def test_a_client_that_took_all_is_not_cut_off() -> None:
    wire = Wire(lambda exchange: exchange.open(200, STREAM, None)).send(post())
    for _ in range(3):
        wire.transport.unsent_bytes = 100_000
        wire.protocol.pause_writing()
        wire.loop.advance(STALL_SECONDS - 1)
        wire.protocol.resume_writing()
    wire.loop.advance(10 * STALL_SECONDS)
    assert not wire.transport.was_aborted


MOVES = ["send", "answer", "begin", "end", "lose", "shutdown", "pause", "resume", "time", "abort"]


@settings(max_examples=300)
@given(moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 3)), max_size=30))
def test_whatever_happens_answers_keep_their_order_and_end_once(moves: list[tuple[str, int]]) -> None:
    wire = Wire()
    requests = iter([post(b"%d" % number) for number in range(60)])
    watchers: list[Watcher] = []
    piece = b""

    def running() -> Exchange | None:
        return next((each for each in wire.exchanges if not each.response_complete), None)

    for move, number in moves:
        exchange = running()
        match move:
            case "send":
                piece += b"".join(itertools.islice(requests, number))
                cut = len(piece) if number != 1 else len(piece) // 2
                # A paused transport may still deliver what it has read, but no more than once.
                if wire.transport.reads:
                    wire.send(piece[:cut])
                    piece = piece[cut:]
            case "answer" if exchange is not None and not exchange.response_started:
                exchange.watch(watcher := Watcher())
                watchers.append(watcher)
                echo(exchange)
            case "begin" if exchange is not None and not exchange.response_started:
                exchange.open(200, STREAM, None)
                exchange.write(b"x" * number)
                exchange.flush()
            case "end" if exchange is not None and exchange.response_started:
                exchange.end(b"y" * number)
                exchange.flush()
            case "lose":
                wire.transport.close()
            case "abort" if exchange is not None:
                exchange.abort()
            case "shutdown":
                wire.protocol.shutdown()
            case "pause":
                wire.protocol.pause_writing()
            case "resume":
                wire.protocol.resume_writing()
            case "time":
                wire.loop.advance(number * 20)
        wire.loop.turn()
    assert all(watcher.gone <= 1 for watcher in watchers)
    complete = [each for each in wire.answers if each.is_complete]
    assert wire.answers[: len(complete)] == complete, "only the last may be half of one"
    echoes = [int(each.body.removeprefix(b"echo ")) for each in complete if each.body.startswith(b"echo ")]
    assert echoes == sorted(set(echoes))
    assert sum(not each.response_complete for each in wire.exchanges) <= 1, "one at a time"
    if wire.protocol.parser is None:
        assert all(each.response_complete or each.disconnected for each in wire.exchanges)


# Time ----------------------------------------------------------------------------------------------------------------


def test_a_head_must_arrive_in_time() -> None:
    wire = Wire()
    for piece in (b"POST", b" / HTTP/1.1\r\n", b"x-slow: ", *[b"x"] * (int(HEADER_SECONDS) - 3)):
        wire.send(piece)
        assert not wire.transport.is_closing()
        wire.loop.advance(1)
    wire.loop.advance(0.1)
    [answer] = wire.answers
    assert answer.status == 408
    assert wire.transport.is_closing()


@pytest.mark.parametrize("is_read", [False, True])
def test_a_body_must_arrive_in_time(is_read: bool) -> None:
    wire = Wire(echo if is_read else None).send(post(b"", length=10))
    wire.loop.advance(BODY_SECONDS - 1)
    wire.send(b"x")
    assert not wire.transport.is_closing()
    wire.loop.advance(1.1)
    [answer] = wire.answers
    assert answer.status == 408
    assert wire.exchanges[0].disconnected


def test_the_next_head_must_arrive_in_time_once_it_has_begun() -> None:
    wire = Wire(echo).send(post() + b"POST /v1")
    wire.send(b"/chat")
    wire.loop.advance(HEADER_SECONDS + 0.1)
    assert [answer.status for answer in wire.answers] == [200, 408]


def test_a_body_that_is_thrown_away_must_end_in_time() -> None:
    wire = Wire(lambda exchange: say(exchange, b"no")).send(post(b"", length=200_000))
    for _ in range(int(BODY_SECONDS)):
        wire.send(b"x")
        wire.loop.advance(1)
    wire.loop.advance(0.1)
    assert wire.transport.is_closing()
    assert wire.bodies == [b"no"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "more",
    [
        pytest.param([post(b"", length=10)[:20], b"/completions"], id="a head"),
        pytest.param([post(b"", length=10), b"half"], id="a body"),
        pytest.param([post(b"", path="/else", length=10), b"half"], id="another route's body"),
        pytest.param([post(b"", length=500_000), b"x" * 100_000], id="a body that we do not read on"),
    ],
)
async def test_no_timer_of_the_next_request_breaks_an_answer(more: list[bytes]) -> None:
    wire = Wire().send(post(), *more)
    [exchange] = wire.exchanges
    exchange.open(200, STREAM, None)
    exchange.write(b"a long ")
    exchange.flush()
    wire.loop.advance(100)
    exchange.end(b"answer")
    exchange.flush()
    wire.loop.turn()
    assert wire.bodies == [b"a long answer"]
    wire.loop.advance(max(HEADER_SECONDS, BODY_SECONDS) + 0.1)
    assert wire.transport.is_closing(), "the rest of the next request is waited for only so long"
    await wire.until_asgi_ended()


@pytest.mark.parametrize(
    "garbage", [pytest.param(b"\x00garbage\r\n\r\n", id="no HTTP"), pytest.param(b"x" * 100_000, id="a huge head")]
)
def test_what_is_no_request_is_not_answered_inside_another_answer(garbage: bytes) -> None:
    wire, watcher = Wire().send(post()), Watcher()
    [exchange] = wire.exchanges
    exchange.watch(watcher)
    exchange.open(200, STREAM, None)
    exchange.write(b"half")
    exchange.flush()
    written = wire.written
    wire.send(garbage)
    assert wire.transport.is_closing()
    assert watcher.gone == 1
    assert wire.written == written


def test_what_is_no_request_gets_no_answer_that_is_for_another() -> None:
    wire = Wire().send(post(), b"\x00garbage\r\n\r\n")
    assert wire.transport.is_closing()
    assert not wire.written, "it would be taken for the answer to the first"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"\x16\x03\x01 hello\r\n\r\n", 400, id="TLS"),
        pytest.param(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nx: " + b"y" * 40_000, 431, id="a large header"),
        pytest.param(b"POST " + CHAT.encode() + b" HTTP/9.9\r\n\r\n", 400, id="a version that is none"),
        pytest.param(post(b"").replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"), 400, id="two lengths"),
    ],
)
def test_what_is_no_request_is_refused(sent: bytes, status: int) -> None:
    wire = Wire(echo).send(sent)
    [answer] = wire.answers
    assert answer.status == status
    assert b'"error"' in answer.body
    assert wire.transport.is_closing()
    assert not wire.exchanges


def test_connections_above_the_most_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 0)
    assert Wire(echo).transport.was_aborted


# Shutdown ------------------------------------------------------------------------------------------------------------


def test_at_shutdown_idle_connections_are_closed() -> None:
    fresh, idle = Wire(echo), Wire(echo).send(post())
    for wire in (fresh, idle):
        wire.protocol.shutdown()
        assert wire.transport.is_closing()


def test_at_shutdown_a_running_exchange_ends() -> None:
    wire = Wire().send(post(b"words"))
    wire.protocol.shutdown()
    assert not wire.transport.is_closing()
    echo(wire.exchanges[0])
    [answer] = wire.answers
    assert (answer.body, answer.headers["connection"]) == (b"echo words", "close")
    assert wire.transport.is_closing()


def test_at_shutdown_a_stream_ends() -> None:
    wire = Wire().send(post())
    [exchange] = wire.exchanges
    exchange.open(200, STREAM, None)
    exchange.write(b"half")
    exchange.flush()
    wire.protocol.shutdown()
    exchange.end(b" whole")
    exchange.flush()
    assert wire.bodies == [b"half whole"]
    assert wire.transport.is_closing()
