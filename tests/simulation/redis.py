"""A real Redis under simulated time, and the lines on which programs reach it: these lose, delay and repeat commands.

Commands leave in one packet with those of other programs, and a reply is waited for only when its moment has come. So
the order in which Redis runs them follows from the seed, and many share a system call.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol, cast

import hiredis

from billing.hot import store
from billing.hot.connection import TIMEOUT_MS, Argument, Script, Then
from models.errors import Unavailable
from tests.simulation.book import in_transaction, transaction_waits
from tests.simulation.clock import SimulatedClock
from tests.simulation.faults import Fault, Faults, Weather

_SHIM: Final = resources.files(__package__).joinpath("clock.lua").read_text("utf-8")
_SCRIPTS: Final[dict[str, Script]] = {
    "hold": store._HOLD,
    "settle": store._SETTLE,
    "void": store._VOID,
    "recover": store._RECOVER,
    "abandon": store._ABANDON,
    "project": store._PROJECT,
    "install": store._INSTALL,
    "checkpoint": store._CHECKPOINT,
    "silent": store._SILENT,
    "forget": store._FORGET,
}
_VERBS: Final = {script.sha1: verb for verb, script in _SCRIPTS.items()}
_REPEATED: Final = frozenset({"hold", "settle", "void", "recover", "abandon", "project"})
_EXPIRE: Final = """
local gone = redis.call('ZRANGEBYSCORE', 'simulated:expiry', '-inf', ARGV[1])
for i = 1, #gone, 500 do
  redis.call('DEL', unpack(gone, i, math.min(i + 499, #gone)))
end
redis.call('ZREMRANGEBYSCORE', 'simulated:expiry', '-inf', ARGV[1])
return #gone
"""
_MORE: Final = object()
_LARGEST_PACKET: Final = 256 * 1024

Observer = Callable[[str, Sequence[Argument], Sequence[Argument]], Callable[[Any], None] | None]
"""Told of every script that a program sends, by verb, keys and arguments. What it gives is called with each reply, in
the order in which Redis runs the scripts."""


class Slot:
    """The place of one reply."""

    __slots__ = ("heard", "is_filled", "is_heard", "reply")

    def __init__(self, heard: Callable[[Any], None] | None) -> None:
        self.heard = heard
        self.is_filled = False
        self.is_heard = False
        self.reply: Any = None


class Redis:
    """The server: one connection for all, so that commands run in the order in which they were sent."""

    def __init__(self, path: Path, password: str, clock: SimulatedClock, observer: Observer) -> None:
        self.clock = clock
        self.is_away = False
        self.generation = 0
        """Grows when the server is another one: what still waited in the sockets of the last one is lost."""
        self.clock_ahead_us = 0
        self.observer = observer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._waiting: deque[Slot] = deque()
        self._unheard: deque[Slot] = deque()
        self.ask("AUTH", password)
        self._names = {verb: self._load(_SHIM + script.source) for verb, script in _SCRIPTS.items()}
        self._expire = self._load(_EXPIRE)

    def _load(self, source: str) -> str:
        name: str = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self.ask("SCRIPT", "LOAD", source)
        return name

    def run(
        self, verb: str, key_count: int, arguments: Sequence[Argument], heard: Callable[[Any], None] | None
    ) -> Slot:
        """Let Redis run a script now."""
        now = str(self.clock.unix_us(self.clock_ahead_us))
        return self.send(heard, "EVALSHA", self._names[verb], key_count, *arguments, now)

    def send(self, heard: Callable[[Any], None] | None, *arguments: Argument) -> Slot:
        """Let Redis run a command now; `heard` is called with its reply in the order of commands."""
        packed: bytes = hiredis.pack_command(cast("Any", arguments))
        self._out.append(packed)
        self._out_bytes += len(packed)
        slot = Slot(heard)
        self._waiting.append(slot)
        self._unheard.append(slot)
        if self._out_bytes > _LARGEST_PACKET:
            self._flush()
        return slot

    def reply(self, slot: Slot) -> Any:
        """The reply in a slot; errors of scripts and commands are faults of ours and are raised."""
        if not slot.is_filled:
            self._flush()
            while not slot.is_filled:
                self._receive()
        # Up to this one and no further: how much came with it depends on the speed of the machine.
        while not slot.is_heard:
            self._hear(self._unheard.popleft())
        if isinstance(slot.reply, hiredis.ReplyError):
            raise slot.reply
        return slot.reply

    def has_refused(self, slot: Slot) -> bool:
        """Whether it was a hold that was not placed. That one does not come again: no connection sends a hold twice."""
        reply = self.reply(slot)
        return isinstance(reply, list) and reply[0] != b"placed"

    def ask(self, *arguments: Argument) -> Any:
        """Run a command and wait for its reply, outside of all simulated time."""
        return self.reply(self.send(None, *arguments))

    def catch_up(self) -> None:
        """Read all replies, so that whoever observes is up to date."""
        if self._unheard:
            self.reply(self._unheard[-1])

    def expire(self) -> None:
        """Delete what is past its simulated time."""
        self.send(None, "EVALSHA", self._expire, 0, self.clock.unix_us(self.clock_ahead_us))

    # What happens to it ----------------------------------------------------------------------------------------------

    def become_blank(self, clock_ahead_us: int) -> None:
        """A new server without data, whose clock may differ."""
        self.catch_up()
        self.ask("FLUSHALL")
        self.generation += 1
        self.clock_ahead_us = clock_ahead_us

    def snapshot(self) -> list[tuple[bytes, bytes]]:
        """All that it knows now."""
        self.catch_up()
        keys: list[bytes] = sorted(self.ask("KEYS", "*"))
        slots = [self.send(None, "DUMP", key) for key in keys]
        return [(key, self.reply(slot)) for key, slot in zip(keys, slots, strict=True)]

    def become(self, snapshot: list[tuple[bytes, bytes]]) -> None:
        """A server that knows what was known at the time of `snapshot`, as after a power cut or a failover."""
        self.catch_up()
        self.ask("FLUSHALL")
        for key, value in snapshot:
            self.send(None, "RESTORE", key, 0, value)
        self.catch_up()
        self.generation += 1

    def close(self) -> None:
        """Leave it empty; nobody observes any more."""
        for slot in self._unheard:
            slot.heard = None
        self.ask("FLUSHALL")
        self._socket.close()

    def _flush(self) -> None:
        if self._out:
            packed, self._out, self._out_bytes = b"".join(self._out), [], 0
            self._socket.sendall(packed)

    def _receive(self) -> None:
        received = self._socket.recv(1 << 18)
        if not received:
            raise ConnectionError("Redis has ended")
        self._reader.feed(received)
        while (reply := self._reader.gets()) is not _MORE:
            slot = self._waiting.popleft()
            slot.reply, slot.is_filled = reply, True

    def _hear(self, slot: Slot) -> None:
        slot.is_heard = True
        if slot.heard is not None and not isinstance(slot.reply, hiredis.ReplyError):
            slot.heard(slot.reply)


class Program(Protocol):
    """Who is at the end of a line."""

    async def go_on(self) -> None:
        """Return when the program runs; it may be frozen. Raises where it is killed at this step."""


class Line:
    """A program's connection to Redis, in the place of `HotConnection`."""

    def __init__(
        self, redis: Redis, program: Program, random: Random, weather: Callable[[], Weather], faults: Faults
    ) -> None:
        self._redis = redis
        self._program = program
        self._random = random
        self._weather = weather
        self._faults = faults
        self._started: set[asyncio.Task[None]] = set()

    def start(
        self,
        script: Script,
        key_count: int,
        arguments: Sequence[Argument],
        timeout_ms: int,
        then: Callable[[Any], None],
    ) -> None:
        """Run a script; `then` is handed what comes of it."""
        task = asyncio.get_running_loop().create_task(self._tell(script, key_count, arguments, timeout_ms, then))
        self._started.add(task)
        task.add_done_callback(self._ended)

    async def _tell(
        self, script: Script, key_count: int, arguments: Sequence[Argument], timeout_ms: int, then: Then
    ) -> None:
        try:
            reply = await self.run(script, key_count, *arguments, timeout_ms=timeout_ms)
        except hiredis.ReplyError:
            raise
        except Exception as error:
            reply = error
        then(reply)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._started.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever waits would wait for ever; here the event loop hears of it, and the run ends.
            raise error

    def cut(self) -> None:
        """The program is no more: nobody is told anything."""
        for task in self._started:
            task.cancel()

    async def run(self, script: Script, key_count: int, *arguments: Argument, timeout_ms: int = TIMEOUT_MS) -> Any:
        """Run a script, unless the weather forbids it."""
        verb, redis = _VERBS[script.sha1], self._redis
        heard = redis.observer(verb, arguments[:key_count], arguments[key_count:])
        return await self._ask(lambda: redis.run(verb, key_count, arguments, heard), timeout_ms, verb in _REPEATED)

    async def execute(self, *arguments: Argument, timeout_ms: int = TIMEOUT_MS) -> Any:
        """Run a command, unless the weather forbids it."""
        if arguments == ("TIME",):
            return [b"%d" % part for part in divmod(self._redis.clock.unix_us(self._redis.clock_ahead_us), 1_000_000)]
        reply = await self._ask(lambda: self._redis.send(None, *arguments), timeout_ms, False)
        # Hashes and sets have the order of their server's own seed.
        return sorted(reply) if arguments[0] in ("HVALS", "SMEMBERS") else reply

    @property
    def openings(self) -> int:
        """How often the program had to connect: to each server once."""
        return self._redis.generation

    async def close(self) -> None:
        """Nothing is left open."""

    async def _ask(self, do: Callable[[], Slot], timeout_ms: int, is_repeated: bool) -> Any:
        if not in_transaction():
            return await self._told(do, timeout_ms / 1_000, is_repeated)
        with transaction_waits():
            return await self._told(do, timeout_ms / 1_000, is_repeated)

    async def _told(self, do: Callable[[], Slot], timeout_seconds: float, is_repeated: bool) -> Any:
        random, redis, weather = self._random, self._redis, self._weather()
        await self._program.go_on()
        if random.random() < 0.3:
            await asyncio.sleep(random.random() * 0.05)
        if redis.is_away:
            await asyncio.sleep(random.choice((0.001, timeout_seconds)))
            raise Unavailable("Redis is away")
        fate = random.random()
        if (fate := fate - weather.requests_lost) < 0:
            self._faults[Fault.REQUEST_LOST] += 1
            await self._give_up(random.random() * timeout_seconds)
        if (fate := fate - weather.late) < 0:
            self._faults[Fault.LATE] += 1
            self._later(do, timeout_seconds + random.random() * 10)
            await self._give_up(timeout_seconds)
        slot = do()
        if is_repeated and random.random() < weather.twice:
            self._faults[Fault.TWICE] += 1
            self._later(lambda: redis.has_refused(slot) or do(), random.random() * 20)
        if (fate := fate - weather.replies_lost) < 0:
            self._faults[Fault.REPLY_LOST] += 1
            await self._give_up(random.random() * timeout_seconds)
        await asyncio.sleep(random.random() * 0.1)
        await self._program.go_on()
        return redis.reply(slot)

    async def _give_up(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        raise Unavailable("Redis did not answer")

    def _later(self, do: Callable[[], object], seconds: float) -> None:
        generation = self._redis.generation

        def arrive() -> None:
            if self._redis.generation == generation:
                do()

        asyncio.get_running_loop().call_later(seconds, arrive)
