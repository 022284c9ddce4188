"""The hot store: the verbs of Redis, one Lua script each, in the nouns of `models`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from billing.hot.connection import TIMEOUT_MS, Argument, HotConnection, Script
from billing.hot.entries import decode_hold, encode_charge, encode_hold
from billing.hot.keys import SHARD_KEYS
from models.call import BucketState, Charge, Hold, HoldRefusal, HoldRequest, RateBucket, RefusedHold
from models.errors import BrokenPromise
from models.money import LARGEST_BALANCE_UNITS, Units

_HOLD: Final = Script.of("buckets", "hold")
_SETTLE: Final = Script.of("amounts", "buckets", "release", "settle")
_VOID: Final = Script.of("amounts", "buckets", "release", "void")
_PROJECT: Final = Script.of("amounts", "project")
_INSTALL: Final = Script.of("install")

ENDED_CALL_SECONDS: Final = 3_600
"""How long the end of a call is remembered in Redis; after that Postgres knows the call by its id."""

INSTALL_CHUNK: Final = 500
"""Organizations written by one run of `install`, so that no script holds Redis for more than some milliseconds."""

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
    """A hold that is not settled yet; `placed_at_ms` is in milliseconds since 1970 by the clock of Redis."""

    hold: Hold
    placed_at_ms: int


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


async def make_hot_store(url: str, timeout_ms: int = TIMEOUT_MS) -> HotStore:
    """A store over a new connection to `url`; it is returned even where Redis is down, and its verbs then fail."""
    return HotStore(url, await HotConnection.connect(url), timeout_ms)


class HotStore:
    """Every verb raises `Unavailable` where Redis cannot answer in time; all of them may be repeated."""

    def __init__(self, url: str, connection: HotConnection, timeout_ms: int = TIMEOUT_MS) -> None:
        self._url = url
        self._connection = connection
        self._timeout_ms = timeout_ms
        # Blocks in Redis for long, so it is apart from the one that calls wait for, and opened by the worker only.
        self._waiting: HotConnection | None = None
        self._wait_lock = asyncio.Lock()

    # The life of a call ----------------------------------------------------------------------------------------------

    async def hold(self, request: HoldRequest, epoch: int) -> Hold | RefusedHold:
        """Take a hold, or say what forbids it; the same request again gets the same answer.

        A `retry_after_ms` of 0 on a rate refusal means that no wait helps: the call costs more than a full bucket.
        Raises `BrokenPromise` for a call id that has ended, or that holds something else.
        """
        assert 0 <= request.amount <= LARGEST_BALANCE_UNITS, f"a hold of {request.amount} units"
        origin = request.origin
        keys, call, organization = SHARD_KEYS[origin.shard], str(origin.call_id), str(origin.organization_id)
        arguments: list[Argument] = [
            keys.epoch,
            keys.organization + organization,
            keys.holds + organization,
            keys.done + call,
            keys.rates + organization,
            keys.in_flight + organization,
            epoch,
            call,
            request.amount,
            encode_hold(request),
            len(request.buckets),
        ]
        for bucket in request.buckets:
            arguments += (bucket.scope, bucket.per_minute, bucket.cost)
        for place in request.in_flight:
            arguments += (place.scope, place.limit)
        reply = await self._connection.run(_HOLD, 6, *arguments, timeout_ms=self._timeout_ms)
        match reply[0]:
            case b"placed":
                return Hold(request, _states(request.buckets, reply[1:]))
            case b"ended" | b"different" as status:
                raise BrokenPromise(f"call id {call} was used twice: {status.decode()}")
            case _:
                return _refusal(request, reply)

    async def settle(self, hold: Hold, charge: Charge) -> bool:
        """End the call of `hold` with `charge`; False where it had ended before and nothing changed."""
        origin = hold.request.origin
        assert charge.call_id == origin.call_id, "a charge ends the call it was made for"
        assert 0 <= charge.amount <= hold.request.amount, "a charge stays within its hold"
        call = str(origin.call_id)
        settled = await self._connection.run(
            _SETTLE,
            7,
            *_keys_of_call(origin.shard, call, str(origin.organization_id)),
            SHARD_KEYS[origin.shard].stream,
            call,
            charge.amount,
            encode_charge(charge),
            charge.input_tokens + charge.output_tokens,
            ENDED_CALL_SECONDS,
            timeout_ms=self._timeout_ms,
        )
        return bool(settled)

    async def void(self, hold: Hold) -> bool:
        """End the call of `hold` without a charge; False where there was no open hold to release."""
        origin = hold.request.origin
        call = str(origin.call_id)
        released = await self._connection.run(
            _VOID,
            6,
            *_keys_of_call(origin.shard, call, str(origin.organization_id)),
            call,
            ENDED_CALL_SECONDS,
            timeout_ms=self._timeout_ms,
        )
        return bool(released)

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
            names: list[Argument] = [keys.epoch, keys.stream]
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

    async def open_holds(self, shard: int, organization_id: UUID) -> tuple[OpenHold, ...]:
        """All holds of the organization that have not ended, oldest first."""
        row = await self._execute("HVALS", f"{SHARD_KEYS[shard].holds}{organization_id}")
        entries = sorted((decode_hold(value) for value in row), key=lambda entry: entry.placed_at_ms)
        return tuple(OpenHold(Hold(entry.request), entry.placed_at_ms) for entry in entries)

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

    async def trim(self, shard: int, position: str) -> None:
        """Remove the entries up to and with `position`, which are booked."""
        milliseconds, sequence = position.split("-")
        await self._execute("XTRIM", SHARD_KEYS[shard].stream, "MINID", f"{milliseconds}-{int(sequence) + 1}")

    # The server ------------------------------------------------------------------------------------------------------

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


def _per_organization(shard: int) -> tuple[str, str, str, str]:
    keys = SHARD_KEYS[shard]
    return keys.organization, keys.holds, keys.rates, keys.in_flight


def _keys_of_call(shard: int, call: str, organization: str) -> tuple[str, str, str, str, str, str]:
    keys = SHARD_KEYS[shard]
    return (
        keys.epoch,
        keys.organization + organization,
        keys.holds + organization,
        keys.done + call,
        keys.rates + organization,
        keys.in_flight + organization,
    )


def _states(buckets: Sequence[RateBucket], numbers: Sequence[int]) -> tuple[BucketState, ...]:
    """The states behind an answer; there are none where the buckets were not looked at."""
    pairs = zip(buckets, numbers[::2], numbers[1::2], strict=False)
    return tuple(BucketState(bucket.scope, bucket.per_minute, left, reset_ms) for bucket, left, reset_ms in pairs)


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
