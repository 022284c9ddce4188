"""The hot store: the verbs of Redis, one Lua script each, in the nouns of `models`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from billing.hot.connection import TIMEOUT_MS, Argument, HotConnection, Script, resolve
from billing.hot.entries import (
    decode_checkpoint,
    decode_hold,
    encode_charge,
    encode_checkpoint,
    encode_hold,
    encode_request,
)
from billing.hot.keys import SHARD_KEYS, SHARDS, OrganizationKeys, names_of
from models.call import BucketState, Charge, Checkpoint, Hold, HoldRefusal, HoldRequest, RateBucket, RefusedHold
from models.errors import BrokenPromise, TollgateError, Unavailable
from models.money import LARGEST_BALANCE_UNITS, Units

_HOLD: Final = Script.of("buckets", "hold")
_SETTLE: Final = Script.of("amounts", "buckets", "release", "settle")
_VOID: Final = Script.of("amounts", "buckets", "release", "void")
_RECOVER: Final = Script.of("unless_alive", "amounts", "buckets", "release", "settle")
_ABANDON: Final = Script.of("unless_alive", "amounts", "buckets", "release", "void")
_PROJECT: Final = Script.of("amounts", "project")
_INSTALL: Final = Script.of("install")
_CHECKPOINT: Final = Script.of("buckets", "checkpoint")
_SILENT: Final = Script.of("buckets", "silent")
_FORGET: Final = Script.of("forget")

ENDED_CALL_SECONDS: Final = 3_600
"""How long the end of a call is remembered in Redis; after that Postgres knows the call by its id."""

INSTALL_CHUNK: Final = 500
"""Organizations written by one run of `install`, so that no script holds Redis for more than some milliseconds."""

CHECKPOINT_CHUNK: Final = 500
"""Calls whose checkpoints one run of `checkpoint` writes, for the same reason."""

QUIET_BEAT_MS: Final = 5_000
"""Time between signs of life in a shard in which an instance has no open call."""

START: Final = "0-0"
"""The position before the first entry of a stream."""


@dataclass(frozen=True, slots=True)
class HotBalance:
    """What Redis knows of an organization's money, in ledger units; `settled` is the running total of the epoch."""

    balance: int
    held: int
    credit_limit: int
    settled: int
    version: int

    @property
    def available(self) -> int:
        """What the next hold may take; below zero where late charges or a lowered limit overdrew it."""
        return self.balance - self.held + self.credit_limit


@dataclass(frozen=True, slots=True)
class NewBalance:
    """A balance as a rebuild installs it: with nothing held and nothing settled."""

    organization_id: UUID
    posted: int
    credit_limit: int
    version: int


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A hold that is not settled yet; `placed_at_ms` is in milliseconds since 1970 by the clock of Redis.

    `instance` is the process that placed it, empty where that gave no name.
    """

    hold: Hold
    placed_at_ms: int
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Silence:
    """The instances of a shard that died, with their last sign of life, and organizations whose holds may be theirs."""

    instances: Mapping[str, str]
    organization_ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An open hold of an instance that died, with its last checkpoint where it lived long enough to have one."""

    hold: Hold
    checkpoint: Checkpoint | None
    instance: str


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """A settled charge on its way to Postgres.

    `charge` is the JSON as it came, so that one that cannot be read can be kept. `settled` is the organization's
    running total with this entry, or None where Redis was blank. `late` marks a charge whose hold was gone.
    """

    id: str
    charge: bytes
    settled: int | None
    late: bool


async def make_hot_store(url: str, timeout_ms: int = TIMEOUT_MS, instance: str = "") -> HotStore:
    """A store over a new connection to `url`; it is returned even where Redis is down, and its verbs then fail.

    `instance` names this process for ever, such as a new UUID: whoever gives one calls `checkpoint` once a second, and
    its holds are swept when it stops. Holds without an instance are never swept.
    """
    return HotStore(url, await HotConnection.connect(url), timeout_ms, instance)


class HotStore:
    """Every verb raises `Unavailable` where Redis cannot answer in time; all of them may be repeated."""

    def __init__(self, url: str, connection: HotConnection, timeout_ms: int = TIMEOUT_MS, instance: str = "") -> None:
        self._url = url
        self._connection = connection
        self._timeout_ms = timeout_ms
        self._instance = instance
        self._beaten_at_ms: dict[int, int] = {}
        # Blocks in Redis for long, so it is apart from the one that calls wait for, and opened by the worker only.
        self._waiting: HotConnection | None = None
        self._wait_lock = asyncio.Lock()

    @property
    def instance(self) -> str:
        """The name of this process; empty where it gave none."""
        return self._instance

    # The life of a call ----------------------------------------------------------------------------------------------

    async def hold(self, request: HoldRequest, epoch: int) -> Hold | RefusedHold:
        """Take a hold, or say what forbids it; the same request again gets the same answer.

        A `retry_after_ms` of 0 on a rate refusal means that no wait helps: the call costs more than a full bucket.
        Raises `BrokenPromise` for a call id that has ended, or that holds something else.
        """
        answer: asyncio.Future[Hold | RefusedHold] = asyncio.get_running_loop().create_future()
        self.start_hold(request, epoch, partial(resolve, answer))
        return await answer

    def start_hold(
        self, request: HoldRequest, epoch: int, then: Callable[[Hold | RefusedHold | TollgateError], None]
    ) -> None:
        """`hold` without waiting: `then` is handed the answer, or the error that `hold` would raise."""
        assert 0 <= request.amount <= LARGEST_BALANCE_UNITS, f"a hold of {request.amount} units"
        origin = request.origin
        names, call = names_of(origin), str(origin.call_id)
        encoded = encode_request(request)
        arguments: list[Argument] = [
            names.epoch,
            names.organization,
            names.holds,
            names.done + call,
            names.rates,
            names.in_flight,
            names.open,
            names.instances,
            names.spent,
            epoch,
            call,
            request.amount,
            encode_hold(request, self._instance, encoded),
            names.id,
            self._instance,
            len(request.buckets),
            len(request.in_flight),
        ]
        for bucket in request.buckets:
            arguments += (bucket.scope, bucket.per_minute, bucket.cost, bucket.minutes)
        for place in request.in_flight:
            arguments += (place.scope, place.limit)
        for limit in request.spend:
            arguments += (limit.scope, limit.limit)
        self._connection.start(
            _HOLD, 9, arguments, self._timeout_ms, lambda reply: then(_answer(request, reply, encoded))
        )

    async def settle(self, hold: Hold, charge: Charge) -> bool:
        """End the call of `hold` with `charge`; False where it had ended before and nothing changed.

        A call that was given up for dead and voided can still be settled: it has no charge yet.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.start_settle(hold, charge, partial(resolve, answer))
        return bool(await answer)

    def start_settle(
        self, hold: Hold, charge: Charge, then: Callable[[int | Unavailable], None], encoded: bytes = b""
    ) -> None:
        """`settle` without waiting: `then` is handed 1 or 0, or the error that `settle` would raise.

        `encoded` is the charge as `encode_charge` gives it, where it is at hand.
        """
        self._connection.start(_SETTLE, 10, _to_settle(hold, charge, encoded), self._timeout_ms, then)

    async def void(self, hold: Hold, *, abandoned: bool = False) -> bool:
        """End the call of `hold` without a charge; False where there was no open hold to release.

        `abandoned` says that its gateway seems dead; should it be alive, its settle still counts.
        """
        return bool(await self._run(_VOID, 9, *_to_void(hold, "abandoned" if abandoned else "void")))

    # Calls whose gateway dies ----------------------------------------------------------------------------------------

    async def recover(self, hold: Hold, charge: Charge, instance: str, last_sign: str) -> bool:
        """`settle`, unless the instance that has the hold has shown a sign of life since `last_sign`: then False."""
        arguments = _to_settle(hold, charge, b"")
        arguments.insert(10, SHARD_KEYS[hold.request.origin.shard].instances)
        return bool(await self._run(_RECOVER, 11, *arguments, instance, last_sign))

    async def abandon(self, hold: Hold, instance: str, last_sign: str) -> bool:
        """`void` of a call that seems abandoned, unless there was a sign of life as with `recover`: then False."""
        arguments = _to_void(hold, "abandoned")
        arguments.insert(9, SHARD_KEYS[hold.request.origin.shard].instances)
        return bool(await self._run(_ABANDON, 10, *arguments, instance, last_sign))

    async def checkpoint(self, points: Sequence[Checkpoint]) -> None:
        """Keep how far the open calls of this instance have come, and show that it is alive; called once a second.

        One write for all of them. Checkpoints of calls without an open hold are dropped; a call whose numbers have not
        changed may be left out. Where one shard fails the others are still written, and `Unavailable` is raised.
        """
        assert self._instance, "only a store with an instance can be missed"
        now_ms = int(asyncio.get_running_loop().time() * 1_000)
        by_shard: dict[int, list[Checkpoint]] = {}
        for shard in range(SHARDS):
            if now_ms - self._beaten_at_ms.get(shard, -QUIET_BEAT_MS) >= QUIET_BEAT_MS:
                by_shard[shard] = []
        for point in points:
            by_shard.setdefault(point.origin.shard, []).append(point)
        writes = []
        for shard, mine in by_shard.items():
            for at in range(0, max(1, len(mine)), CHECKPOINT_CHUNK):
                writes.append((shard, self._checkpoint_chunk(shard, mine[at : at + CHECKPOINT_CHUNK])))
        results = await asyncio.gather(*(write for _, write in writes), return_exceptions=True)
        for (shard, _), result in zip(writes, results, strict=True):
            if not isinstance(result, BaseException):
                self._beaten_at_ms[shard] = now_ms
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def beat(self) -> None:
        """Show that this instance is alive, where it has no calls to keep."""
        await self.checkpoint(())

    async def silence(self, shard: int, *, suspect_ms: int, dead_ms: int) -> Silence | None:
        """The instances of the shard that died, by the clock of Redis; None, in one cheap command, where all are alive.

        Dead is who was silent for `suspect_ms`, and stayed so for `dead_ms` after somebody first asked here.
        """
        keys = SHARD_KEYS[shard]
        reply = await self._run(_SILENT, 3, keys.instances, keys.suspects, keys.open, suspect_ms, dead_ms)
        if not reply:
            return None
        dead, organizations = reply
        signs = {name.decode(): sign.decode() for name, sign in zip(dead[::2], dead[1::2], strict=True)}
        return Silence(signs, tuple(UUID(name.decode()) for name in organizations))

    async def abandoned(
        self, shard: int, organization_id: UUID, instances: Collection[str]
    ) -> tuple[list[Abandoned], list[ValueError]]:
        """The open holds of an organization that these instances left, and what is wrong with those not readable."""
        keys = SHARD_KEYS[shard]
        # The holds first: a call that ends in between is then found without its checkpoint at worst, and has ended.
        holds = await self._execute("HVALS", f"{keys.holds}{organization_id}")
        row = await self._execute("HGETALL", f"{keys.checkpoints}{organization_id}")
        checkpoints = dict(zip(row[::2], row[1::2], strict=True))
        found: list[Abandoned] = []
        unreadable: list[ValueError] = []
        for payload in holds:
            try:
                entry = decode_hold(payload)
                if entry.instance in instances:
                    origin = entry.request.origin
                    point = checkpoints.get(str(origin.call_id).encode())
                    kept = None if point is None else decode_checkpoint(origin, point)
                    found.append(Abandoned(Hold(entry.request), kept, entry.instance))
            except ValueError as error:
                unreadable.append(error)
        return found, unreadable

    async def holds_of(self, shard: int, instance: str) -> list[Abandoned]:
        """The open holds of an instance in a shard, each with its checkpoint."""
        found: list[Abandoned] = []
        for name in await self._execute("SMEMBERS", SHARD_KEYS[shard].open):
            some, _ = await self.abandoned(shard, UUID(name.decode()), (instance,))
            found += some
        return found

    async def forget(self, shard: int, instance: str, last_sign: str) -> bool:
        """Watch an instance no longer that died and holds nothing; False where it has shown a sign of life since."""
        keys = SHARD_KEYS[shard]
        return bool(await self._run(_FORGET, 2, keys.instances, keys.suspects, instance, last_sign))

    async def signs_of_life(self, shard: int) -> dict[str, int]:
        """When each instance last showed that it is alive, in milliseconds since 1970 by the clock of Redis."""
        row = await self._execute("ZRANGE", SHARD_KEYS[shard].instances, 0, -1, "WITHSCORES")
        return {name.decode(): int(sign) for name, sign in zip(row[::2], row[1::2], strict=True)}

    async def _checkpoint_chunk(self, shard: int, points: Sequence[Checkpoint]) -> None:
        keys = SHARD_KEYS[shard]
        by_organization: dict[UUID, list[Checkpoint]] = {}
        for point in points:
            by_organization.setdefault(point.origin.organization_id, []).append(point)
        names: list[Argument] = [keys.instances]
        values: list[Argument] = [self._instance]
        for organization_id, mine in by_organization.items():
            names += (f"{keys.holds}{organization_id}", f"{keys.checkpoints}{organization_id}")
            values.append(len(mine))
            for point in mine:
                values += (str(point.origin.call_id), encode_checkpoint(point))
        await self._run(_CHECKPOINT, len(names), *names, *values)

    # Balances, as Postgres knows them --------------------------------------------------------------------------------

    async def project(
        self,
        shard: int,
        organization_id: UUID,
        *,
        posted: int,
        booked_total: int,
        credit_limit: int,
        version: int,
        epoch: int,
    ) -> bool:
        """Set the balance to `posted − (settled − booked_total)`, in ledger units; returns whether it was applied.

        Nothing is applied under another epoch, or where a version as new is there. Where Postgres has booked more
        than was settled here, Redis lost writes: the shard's epoch is removed, so that it is rebuilt.
        """
        assert abs(posted) <= LARGEST_BALANCE_UNITS, f"a balance of {posted} units"
        keys = SHARD_KEYS[shard]
        applied = await self._run(
            _PROJECT,
            2,
            keys.epoch,
            f"{keys.organization}{organization_id}",
            epoch,
            posted,
            booked_total,
            credit_limit,
            version,
        )
        return bool(applied)

    async def install(
        self, shard: int, epoch: int, expected_last_stream_id: str, balances: Sequence[NewBalance]
    ) -> bool:
        """Replace the balances of a shard and open it under `epoch`, in a rebuild.

        `expected_last_stream_id` is the last entry that is booked. False where the stream holds another one after it:
        then the shard refuses holds, and the caller books what is new and installs again. `balances` are those of
        all the shard's organizations.
        """
        keys = SHARD_KEYS[shard]
        chunks = [balances[at : at + INSTALL_CHUNK] for at in range(0, len(balances), INSTALL_CHUNK)] or [()]
        for number, chunk in enumerate(chunks, start=1):
            names: list[Argument] = [keys.epoch, keys.stream, keys.open]
            values: list[Argument] = [expected_last_stream_id, epoch if number == len(chunks) else ""]
            for balance in chunk:
                assert abs(balance.posted) <= LARGEST_BALANCE_UNITS, f"a balance of {balance.posted} units"
                organization = str(balance.organization_id)
                names += (prefix + organization for prefix in _per_organization(shard))
                values += (balance.posted, balance.credit_limit, balance.version)
            if not await self._run(_INSTALL, len(names), *names, *values):
                return False
        return True

    async def balance(self, shard: int, organization_id: UUID) -> HotBalance | None:
        """The organization's money in Redis; None where it was never projected."""
        key = f"{SHARD_KEYS[shard].organization}{organization_id}"
        row = await self._execute("HMGET", key, "balance", "held", "credit_limit", "settled", "version")
        return None if row[4] is None else HotBalance(*(int(value) for value in row))

    async def count_spent(self, shard: int, organization_id: UUID, booked: Mapping[str, int], month: str) -> int:
        """Begin the counts of spend limits that are not counted yet, each at what is booked; how many began.

        From then on holds and settles count by themselves. Counts of months before `month` (YYYY-MM) are dropped.
        """
        key = f"{SHARD_KEYS[shard].spent}{organization_id}"
        begun = [await self._execute("HSETNX", key, scope, spent) for scope, spent in booked.items()]
        known: list[bytes] = await self._execute("HKEYS", key)
        if past := [scope for scope in known if scope.decode().rpartition(":")[2] < month]:
            await self._execute("HDEL", key, *past)
        return sum(begun)

    async def spent(self, shard: int, organization_id: UUID) -> dict[str, int]:
        """What is counted for spend limits, by scope and month: what was spent and what is held."""
        row = await self._execute("HGETALL", f"{SHARD_KEYS[shard].spent}{organization_id}")
        return {scope.decode(): int(spent) for scope, spent in zip(row[::2], row[1::2], strict=True)}

    async def open_holds(self, shard: int, organization_id: UUID) -> tuple[OpenHold, ...]:
        """All holds of the organization that have not ended, oldest first."""
        row = await self._execute("HVALS", f"{SHARD_KEYS[shard].holds}{organization_id}")
        entries = sorted((decode_hold(value) for value in row), key=lambda entry: entry.placed_at_ms)
        return tuple(OpenHold(Hold(entry.request), entry.placed_at_ms, entry.instance) for entry in entries)

    async def epoch(self, shard: int) -> int | None:
        """The epoch of the shard's balances; None for a blank Redis, in which nothing is served."""
        value = await self._execute("GET", SHARD_KEYS[shard].epoch)
        return None if value is None else int(value)

    # The stream ------------------------------------------------------------------------------------------------------

    async def read(self, shard: int, after: str, count: int) -> list[StreamEntry]:
        """Up to `count` entries after position `after`.

        Under a missing epoch read from `START`: a new Redis may number entries below an old position.
        """
        stream = SHARD_KEYS[shard].stream
        entries = await self._execute("XRANGE", stream, f"({after}", "+", "COUNT", count)
        return [_entry(name, fields) for name, fields in entries]

    async def wait(self, after: Mapping[int, str], timeout_ms: int) -> bool:
        """Wait until a shard has an entry after its position; False where `timeout_ms` passed without one.

        One wait at a time: others queue. On a Redis Cluster the shards of one wait must live on one node.
        """
        async with self._wait_lock:
            if self._waiting is None:
                self._waiting = await HotConnection.connect(self._url)
            command: list[Argument] = ["XREAD", "COUNT", 1, "BLOCK", max(1, timeout_ms), "STREAMS"]
            command += (SHARD_KEYS[shard].stream for shard in after)
            command += after.values()
            try:
                found = await self._waiting.execute(*command, timeout_ms=timeout_ms + self._timeout_ms)
            except asyncio.CancelledError:
                # Redis goes on blocking this connection, so the next wait needs another.
                self._waiting.drop("a wait was cancelled")
                raise
        return found is not None

    async def length(self, shard: int) -> int:
        """How many entries of the shard's stream are not booked yet, or not yet trimmed."""
        return int(await self._execute("XLEN", SHARD_KEYS[shard].stream))

    async def trim(self, shard: int, position: str) -> None:
        """Remove the entries up to and with `position`, which are booked."""
        milliseconds, sequence = position.split("-")
        await self._execute("XTRIM", SHARD_KEYS[shard].stream, "MINID", f"{milliseconds}-{int(sequence) + 1}")

    # The server ------------------------------------------------------------------------------------------------------

    @property
    def openings(self) -> int:
        """How often the connection was opened: after one more, Redis may have lost what it acknowledged before."""
        return self._connection.openings

    async def ping(self) -> None:
        """Raise `Unavailable` where Redis does not answer."""
        await self._execute("PING")

    async def clock_ms(self) -> int:
        """Milliseconds since 1970 by the clock of Redis, to which the age of a hold is compared."""
        seconds, microseconds = await self._execute("TIME")
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    async def close(self) -> None:
        """Close both connections; what waits on them fails."""
        await self._connection.close()
        if self._waiting is not None:
            await self._waiting.close()

    async def _execute(self, *arguments: Argument) -> Any:
        return await self._connection.execute(*arguments, timeout_ms=self._timeout_ms)

    async def _run(self, script: Script, key_count: int, *arguments: Argument) -> Any:
        return await self._connection.run(script, key_count, *arguments, timeout_ms=self._timeout_ms)


def _per_organization(shard: int) -> tuple[str, ...]:
    keys = SHARD_KEYS[shard]
    return keys.organization, keys.holds, keys.rates, keys.in_flight, keys.checkpoints, keys.spent


def _to_settle(hold: Hold, charge: Charge, encoded: bytes) -> list[Argument]:
    origin = hold.request.origin
    assert charge.call_id == origin.call_id, "a charge ends the call it was made for"
    assert 0 <= charge.amount <= hold.request.amount, "a charge stays within its hold"
    names, call = names_of(origin), str(origin.call_id)
    return [
        *_keys_of_call(names, call),
        names.stream,
        call,
        names.id,
        ENDED_CALL_SECONDS,
        charge.amount,
        encoded or encode_charge(charge),
        charge.input_tokens + charge.output_tokens,
        *(limit.scope for limit in hold.request.spend),
    ]


def _to_void(hold: Hold, ending: str) -> list[Argument]:
    origin = hold.request.origin
    names, call = names_of(origin), str(origin.call_id)
    return [*_keys_of_call(names, call), call, names.id, ENDED_CALL_SECONDS, ending]


def _keys_of_call(names: OrganizationKeys, call: str) -> tuple[str, ...]:
    return (
        names.epoch,
        names.organization,
        names.holds,
        names.done + call,
        names.rates,
        names.in_flight,
        names.open,
        names.checkpoints,
        names.spent,
    )


def _states(buckets: Sequence[RateBucket], numbers: Sequence[int]) -> tuple[BucketState, ...]:
    """The states behind an answer; there are none where the buckets were not looked at."""
    pairs = zip(buckets, numbers[::2], numbers[1::2], strict=False)
    return tuple(BucketState(bucket.scope, bucket.per_minute, left, reset_ms) for bucket, left, reset_ms in pairs)


def _answer(request: HoldRequest, reply: Any, encoded: bytes) -> Hold | RefusedHold | TollgateError:
    """What the script `hold` has said, as the call path knows it."""
    if isinstance(reply, TollgateError):
        return reply
    match reply[0]:
        case b"placed":
            return Hold(request, _states(request.buckets, reply[1:]), encoded)
        case b"ended" | b"different" as status:
            return BrokenPromise(f"call id {request.origin.call_id} was used twice: {status.decode()}")
        case _:
            return _refusal(request, reply)


def _refusal(request: HoldRequest, reply: Sequence[Any]) -> RefusedHold:
    reason, scope, retry_after_ms, balance, held, credit_limit, *numbers = reply
    return RefusedHold(
        HoldRefusal(reason.decode()),
        scope=scope.decode(),
        retry_after_ms=retry_after_ms,
        available=Units(int(balance) - int(held) + int(credit_limit)),
        buckets=_states(request.buckets, numbers),
    )


def _entry(name: bytes, fields: Sequence[bytes]) -> StreamEntry:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    settled = values.get(b"settled")
    return StreamEntry(
        id=name.decode(),
        # An entry without a charge is poisoned, and the worker keeps such entries apart instead of stopping.
        charge=values.get(b"charge", b""),
        settled=int(settled) if settled is not None and settled.isdigit() else None,
        late=b"late" in values,
    )
