"""What one process remembers of keys: who a digest stands for, for a few seconds, and when it was last let in."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final, Generic, TypeAlias, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.store.keys import KnownKey
from gateway.clock import Clock
from models.errors import Unavailable

P = TypeVar("P")
Find: TypeAlias = Callable[[AsyncConnection, Collection[bytes], datetime], Awaitable[dict[bytes, KnownKey[P]]]]

STALE_SECONDS: Final = 600.0
"""While Postgres is away a key that was alive is believed for this long: an outage must not stop paid calls."""
UNKNOWN_SECONDS: Final = 10.0
"""How long an unknown key stays unknown. A key cannot be presented before it was made, so this delays nobody."""
OUTAGE_PAUSE_SECONDS: Final = 1.0
LOOKUP_TIMEOUT_SECONDS: Final = 1.0
"""Half of the time in which a call is refused at the latest: on a busy machine the rest takes its time, too."""
KNOWN_LIMIT: Final = 100_000
UNKNOWN_LIMIT: Final = 50_000
WAITING_LIMIT: Final = 4_096
BATCH_LIMIT: Final = 256

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry(Generic[P]):
    """A live key with the monotonic times up to which it is believed: without asking, and while nobody can be asked."""

    known: KnownKey[P]
    fresh_until: float
    stale_until: float


class KeyCache(Generic[P]):
    """Keys of one kind by their full digest.

    Digests that must be looked up gather while a look-up runs and go together in the next one, keys that were known
    before first: whatever the flood, there are at most `lookups` queries at a time, and a tenant waits for one of them.
    Unknown keys are remembered apart from known ones, so that a flood never pushes a tenant out.
    """

    def __init__(
        self,
        find: Find[P],
        engine: AsyncEngine,
        clock: Clock,
        monotonic: Callable[[], float],
        *,
        cache_seconds: float,
        lookups: int,
    ) -> None:
        self._find = find
        self._engine = engine
        self._clock = clock
        self._monotonic = monotonic
        self._cache_seconds = cache_seconds
        self._lookups = lookups
        self._entries: dict[bytes, _Entry[P]] = {}
        self._unknown: dict[bytes, float] = {}
        self._uses: dict[bytes, float] = {}
        self._answers: dict[bytes, asyncio.Future[P | Unavailable | None]] = {}
        self._waiting: dict[bytes, None] = {}
        self._waiting_known: dict[bytes, None] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._queries: set[asyncio.Task[dict[bytes, KnownKey[P]]]] = set()
        self._away_until = 0.0

    def fresh(self, digest: bytes) -> P | None:
        """Who a digest stands for, if that was seen within the cache time; never waits."""
        entry, now = self._entries.get(digest), self._monotonic()
        if entry is None or now >= entry.fresh_until:
            return None
        return self._let_in(entry.known, now)

    async def find(self, digest: bytes) -> P | None:
        """Who a digest stands for, or None; raises `Unavailable` where only Postgres could tell and it is away."""
        entry, now = self._entries.get(digest), self._monotonic()
        if entry is not None and now < entry.fresh_until:
            return self._let_in(entry.known, now)
        if self._unknown.get(digest, 0.0) > now:
            return None
        if now < self._away_until:
            answer = self._while_away(digest)
        else:
            # The answer is shared by all who wait for it, so none of them may cancel it.
            answer = await asyncio.shield(self._asked(digest, known=entry is not None))
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    def forget(self, digest: bytes) -> None:
        """Look the key up again at its next use."""
        self._entries.pop(digest, None)
        self._unknown.pop(digest, None)

    def take_uses(self) -> dict[bytes, float]:
        """The keys let in since this was last asked, each with the monotonic moment of its last use."""
        taken, self._uses = self._uses, {}
        return taken

    def give_back(self, uses: dict[bytes, float]) -> None:
        """Remember uses that could not be written down; those since then are later and stay."""
        self._uses = uses | self._uses
        _drop_oldest(self._uses, KNOWN_LIMIT)

    def _let_in(self, key: KnownKey[P], now: float) -> P | None:
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            return None
        # On the path of every call: a store into a dict, whose hash the stored digest remembers.
        self._uses[key.digest] = now
        return key.principal

    def _asked(self, digest: bytes, *, known: bool) -> asyncio.Future[P | Unavailable | None]:
        answer = self._answers.get(digest)
        if answer is not None:
            return answer
        if not known and len(self._waiting) >= WAITING_LIMIT:
            raise Unavailable("Too many keys are being checked now. Try again in a moment.")
        answer = self._answers[digest] = asyncio.get_running_loop().create_future()
        (self._waiting_known if known else self._waiting)[digest] = None
        # One that has ended stays in the set for a moment, and asks for nobody any more.
        if sum(not each.done() for each in self._running) < self._lookups:
            task = asyncio.create_task(self._look_up_waiting())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return answer

    async def _look_up_waiting(self) -> None:
        while batch := self._next_batch():
            asked_at = self._monotonic()
            try:
                found = await self._found(batch)
            except Exception as error:
                # Whatever went wrong, those who wait get an answer: a hung call would cost more than a refused one.
                _log.warning("key_lookup_failed", reason=type(error).__name__)
                self._away_until = self._monotonic() + OUTAGE_PAUSE_SECONDS
                answers = {digest: self._while_away(digest) for digest in batch}
            else:
                # The time of asking counts, not of the answer: a revocation in between must still be seen in time.
                answers = {digest: self._remember(digest, found.get(digest), asked_at) for digest in batch}
            for digest, answer in answers.items():
                self._answers.pop(digest).set_result(answer)

    async def _found(self, batch: Collection[bytes]) -> dict[bytes, KnownKey[P]]:
        query = asyncio.create_task(self._query(batch))
        self._queries.add(query)
        query.add_done_callback(self._queries.discard)
        # Left behind when late, not awaited: the driver takes 2 s more to close a connection that does not answer.
        await asyncio.wait([query], timeout=LOOKUP_TIMEOUT_SECONDS)
        if not query.done():
            query.cancel()
            raise TimeoutError
        return query.result()

    async def _query(self, batch: Collection[bytes]) -> dict[bytes, KnownKey[P]]:
        async with self._engine.connect() as connection:
            return await self._find(connection, batch, self._clock.now())

    def _next_batch(self) -> list[bytes]:
        batch = list(islice(self._waiting_known, BATCH_LIMIT))
        for digest in batch:
            del self._waiting_known[digest]
        others = list(islice(self._waiting, BATCH_LIMIT - len(batch)))
        for digest in others:
            del self._waiting[digest]
        return batch + others

    def _remember(self, digest: bytes, key: KnownKey[P] | None, asked_at: float) -> P | None:
        # Taken out first, so that the order of the dict is the order of the last look-up and the oldest goes first.
        self._entries.pop(digest, None)
        self._unknown.pop(digest, None)
        if key is None or not hmac.compare_digest(key.digest, digest):
            self._unknown[digest] = asked_at + UNKNOWN_SECONDS
            _drop_oldest(self._unknown, UNKNOWN_LIMIT)
            return None
        self._entries[digest] = _Entry(key, asked_at + self._cache_seconds, asked_at + STALE_SECONDS)
        _drop_oldest(self._entries, KNOWN_LIMIT)
        _drop_oldest(self._uses, KNOWN_LIMIT)
        return self._let_in(key, asked_at)

    def _while_away(self, digest: bytes) -> P | Unavailable | None:
        entry, now = self._entries.get(digest), self._monotonic()
        if entry is None or now >= entry.stale_until:
            return Unavailable("Keys cannot be checked now. Nothing was charged; try again in a moment.")
        entry.fresh_until = min(self._away_until, entry.stale_until)
        return self._let_in(entry.known, now)


V = TypeVar("V")


def _drop_oldest(entries: dict[bytes, V], limit: int) -> None:
    while len(entries) > limit:
        del entries[next(iter(entries))]
