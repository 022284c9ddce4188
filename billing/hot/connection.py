"""The call path's own connection to Redis: the commands of one turn of the event loop leave in one write.

A general client spends 60 to 100 µs of CPU on a command that is sent alone. Here a command is packed and appended, and
its reply is handed to a function in the order of sending; many calls at once share each system call. Futures are for
those who can afford a turn of the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any, Final, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import hiredis

from models.errors import Unavailable

Argument = bytes | str | int
"""What a command is made of."""

Then = Callable[[Any], None]
"""Is handed a reply (bytes, int, list or None) or the `Unavailable` that came instead of one; must not raise."""

TIMEOUT_MS: Final = 1_500
CONNECT_TIMEOUT_MS: Final = 1_000
TICK_MS: Final = 20
FIRST_BACKOFF_MS: Final = 50
LAST_BACKOFF_MS: Final = 1_000
RETRY_AFTER_MS: Final = 1_000

_MORE: Final = object()
_INSIDE_SCRIPT: Final = re.compile(r".*user_script: ?\d+: -?", re.DOTALL)
"""What Redis puts in front of an error that arose inside a script."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 that Redis knows it by."""

    source: str
    sha1: str

    @classmethod
    def of(cls, *names: str) -> Script:
        """The `.lua` files of this room with these names, one after the other."""
        room = resources.files(__package__)
        source = "\n".join(room.joinpath(f"{name}.lua").read_text("utf-8") for name in names)
        # Not a secret: the name under which Redis files the script.
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is and who we are there, as read from a URL."""

    path: str | None
    host: str
    port: int
    tls: bool
    database: int
    user: str | None
    password: str | None = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """The parts of redis://, rediss:// or unix://; raises `ValueError` for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(f"the URL of Redis starts with redis://, rediss:// or unix://, not {parts.scheme!r}")
        unix = parts.scheme == "unix"
        if unix and not parts.path:
            raise ValueError("a unix:// URL names the path of a socket")
        return cls(
            path=unquote(parts.path) if unix else None,
            host=parts.hostname or "localhost",
            port=parts.port or 6379,
            tls=parts.scheme == "rediss",
            database=_database(parts, unix),
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )

    def introduction(self) -> list[tuple[Argument, ...]]:
        """The first commands on a connection; the PING fails while Redis still loads its data."""
        commands: list[tuple[Argument, ...]] = []
        if self.password is not None:
            commands.append(("AUTH", self.user, self.password) if self.user else ("AUTH", self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("PING",))
        return commands


def _database(parts: SplitResult, unix: bool) -> int:
    text = parse_qs(parts.query).get("db", [""])[0] or ("" if unix else parts.path.strip("/"))
    if text and not text.isdecimal():
        raise ValueError(f"the database of Redis is a number, not {text!r}")
    return int(text or 0)


class _Wire(asyncio.Protocol):
    """One socket from its opening to its loss. All commands that it still owes an answer fail when it is lost."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._out: list[bytes] = []
        # Who waits, with the tick at which the reply is overdue. One timer serves them all, a timer each would cost
        # more CPU than the command.
        self._pending: deque[tuple[Then, int]] = deque()
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.closed = False
        self.loss = "the connection was closed"
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def send(self, arguments: tuple[Argument, ...], timeout_ms: int, then: Then) -> None:
        """Queue one command for this turn of the loop; `then` is handed what comes back."""
        if self.closed:
            raise _unavailable(self.loss)
        packed: bytes = hiredis.pack_command(cast("Any", arguments))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._pending.append((then, self._tick + timeout_ms // TICK_MS + 1))
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_MS / 1_000, self._check)

    def drop(self, reason: str) -> None:
        """Close the socket now; what is unanswered fails with `reason`."""
        if self.closed:
            return
        self.closed, self.loss = True, reason
        if self._transport is not None:
            self._transport.abort()
        self._fail()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, received: bytes) -> None:
        reader, pending = self._reader, self._pending
        try:
            reader.feed(received)
            while (reply := reader.gets()) is not _MORE:
                if not pending:
                    return self.drop("Redis sent an answer to nothing")
                then = pending.popleft()[0]
                if isinstance(reply, hiredis.ReplyError):
                    self._refuse(then, str(reply))
                else:
                    then(reply)
        except hiredis.ProtocolError as error:
            self.drop(f"Redis broke its protocol: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed and error is not None:
            self.loss = f"the connection was lost: {error}"
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._fail()
        self.lost.set_result(None)

    def _refuse(self, then: Then, text: str) -> None:
        if text.startswith("NOSCRIPT"):
            return then(_ScriptUnknown(text))
        cause = _INSIDE_SCRIPT.sub("", text)
        then(_unavailable(cause))
        if cause.startswith("READONLY"):
            # This server is no longer the primary; its name may lead to the new one.
            self.drop("Redis became a replica")

    def _flush(self) -> None:
        packed, self._out = b"".join(self._out), []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed)

    def _check(self) -> None:
        self._tick += 1
        self._timer = None
        if not self._pending:
            return
        if any(overdue <= self._tick for _, overdue in self._pending):
            # Its reply may still come and would be taken for the next one's: this socket cannot be used again.
            return self.drop("it did not answer in time")
        self._timer = self._loop.call_later(TICK_MS / 1_000, self._check)

    def _fail(self) -> None:
        pending, self._pending = self._pending, deque()
        for then, _ in pending:
            then(_unavailable(self.loss))


class HotConnection:
    """A connection that comes back by itself. While it is away every command fails at once with `Unavailable`.

    `Unavailable` after a command was sent says nothing about whether Redis ran it: repeat only what is idempotent.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._wire: _Wire | None = None
        self._absence = "not connected yet"
        self._tried = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.openings = 0
        """How often it was opened. One more may mean another server, or the same after a crash, which has forgotten."""

    @classmethod
    async def connect(cls, url: str) -> HotConnection:
        """A connection to `url`, returned after the first attempt whether it succeeded or not.

        A gateway must start while Redis is down; raises `ValueError` for a URL that can never work.
        """
        connection = cls(Address.parse(url))
        connection._keeping = asyncio.create_task(connection._keep(), name="hot connection")
        try:
            await connection._tried.wait()
        except asyncio.CancelledError:
            await connection.close()
            raise
        return connection

    @property
    def connected(self) -> bool:
        """Whether commands can be sent now."""
        return self._wire is not None and not self._wire.closed

    def execute(self, *arguments: Argument, timeout_ms: int = TIMEOUT_MS) -> asyncio.Future[Any]:
        """Send one command; the future has its reply (bytes, int, list or None).

        Raises `Unavailable` here while there is no connection, and from the future where Redis refuses or the
        connection is lost. A command that is not answered in `timeout_ms` (to the nearest 40 ms) costs the connection.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(arguments, timeout_ms, partial(resolve, future))
        return future

    async def run(self, script: Script, key_count: int, *arguments: Argument, timeout_ms: int = TIMEOUT_MS) -> Any:
        """Run a script, of which the first `key_count` arguments are keys; loads it where Redis does not know it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.start(script, key_count, arguments, timeout_ms, partial(resolve, future))
        return await future

    def start(self, script: Script, key_count: int, arguments: Sequence[Argument], timeout_ms: int, then: Then) -> None:
        """`run` without waiting: `then` is handed the reply or the error, in this turn of the loop or later."""

        def known(reply: Any) -> None:
            if type(reply) is not _ScriptUnknown:
                return then(reply)
            try:
                self._send(("EVAL", script.source, key_count, *arguments), timeout_ms, then)
            except Unavailable as error:
                then(error)

        try:
            self._send(("EVALSHA", script.sha1, key_count, *arguments), timeout_ms, known)
        except Unavailable as error:
            then(error)

    def _send(self, arguments: tuple[Argument, ...], timeout_ms: int, then: Then) -> None:
        wire = self._wire
        if wire is None:
            raise _unavailable(self._absence)
        wire.send(arguments, timeout_ms, then)

    def drop(self, reason: str) -> None:
        """Give up the present socket, failing what waits on it; a new one is opened after the backoff."""
        if self._wire is not None:
            self._wire.drop(reason)

    async def close(self) -> None:
        """Fail what waits and stay closed."""
        wire = self._wire
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if wire is not None:
            await asyncio.wait([wire.lost])

    async def _keep(self) -> None:
        backoff_ms = FIRST_BACKOFF_MS
        while True:
            try:
                wire = await self._open()
            except (OSError, Unavailable) as error:
                self._absence = str(error) or type(error).__name__
                self._tried.set()
            else:
                backoff_ms = FIRST_BACKOFF_MS
                await self._hold_open(wire)
            await asyncio.sleep(backoff_ms / 1_000)
            backoff_ms = min(2 * backoff_ms, LAST_BACKOFF_MS)

    async def _hold_open(self, wire: _Wire) -> None:
        self._wire = wire
        self.openings += 1
        self._tried.set()
        try:
            # Awaited through `wait`, so that a cancellation of this task does not cancel the future itself.
            await asyncio.wait([wire.lost])
        finally:
            wire.drop("the connection was closed by its owner")
            self._wire, self._absence = None, wire.loss

    async def _open(self) -> _Wire:
        wire = _Wire()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_MS / 1_000):
                await self._reach(lambda: wire)
                replies = []
                for command in self._address.introduction():
                    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                    wire.send(command, CONNECT_TIMEOUT_MS, partial(resolve, reply))
                    replies.append(reply)
                await asyncio.gather(*replies)
        except BaseException:
            wire.drop("the connection could not be opened")
            raise
        return wire

    async def _reach(self, protocol: Callable[[], _Wire]) -> None:
        loop, address = asyncio.get_running_loop(), self._address
        if address.path is not None:
            await loop.create_unix_connection(protocol, address.path)
        else:
            context = ssl.create_default_context() if address.tls else None
            await loop.create_connection(protocol, address.host, address.port, ssl=context)


class _ScriptUnknown(Unavailable):
    """Redis was restarted or flushed and does not know the script any more."""


def resolve(future: asyncio.Future[Any], answer: Any) -> None:
    """Give an answer to who awaits it; one that was cancelled has cancelled its future with it."""
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(f"the ledger cannot answer now, try again shortly (Redis: {reason})", RETRY_AFTER_MS)
