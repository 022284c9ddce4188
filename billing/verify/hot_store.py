"""Redis beside the book, while calls move both: a look compares only what must agree however they are moved.

An organization's row in Redis is read at once, and the version in it names the row of the book from which its balance
was projected; every entry of the stream has the running total of its organization. So where both stores show one
version, or a total is not on the stream, a difference is wrong whatever happened between the two readings. Any other
difference may be a store on its way to the other: it is wrong where it is the same at every look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.entries import decode_charge
from billing.hot.store import HotBalance, HotStore, OpenHold, StreamEntry
from billing.projection import shown as shown_balance
from billing.store.balances import Balance, balances_of_shard
from billing.store.shards import epochs, positions
from billing.verify.book import EXPLAINED
from billing.verify.report import Claim, Finding, Tally

IN_TIME_SECONDS: Final = 60
"""A call is booked within this time of its end, or of its gateway's death (P1)."""

HOT_STORE: Final = Claim(
    "hot_store",
    "P5",
    "Redis shows every shard's epoch, and every organization with the book's balance less what is not booked yet, the"
    " book's credit limit, and the sum of its open holds.",
    "organizations",
)
HOT_STREAM: Final = Claim(
    "hot_stream",
    "P1",
    "What was settled since the last booking waits in its shard's stream, to the last unit, and not for longer than"
    f" {IN_TIME_SECONDS} seconds unless the stream is being booked.",
    "organizations",
)
HOT_OVERDRAFTS: Final = Claim(
    "hot_overdrafts",
    "P3",
    "No organization's balance less its holds is below its credit limit, but for late calls, corrections and credit"
    " taken back.",
    "organizations",
)
HOLD_OWNERS: Final = Claim(
    "hold_owners", "P1", f"No hold outlives its gateway by more than {IN_TIME_SECONDS} seconds.", "open holds"
)
CLAIMS: Final = (HOT_STORE, HOT_STREAM, HOT_OVERDRAFTS, HOLD_OWNERS)

PAUSES_SECONDS: Final = (0.1, 0.3, 0.9, 2.7)
"""Between looks at what may only be on its way."""

_ORGANIZATIONS_AT_ONCE: Final = 100
_ENTRIES_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Doubt:
    """What a look found wrong; `state` stays the same while nothing moves, None where it is wrong for certain."""

    claim: Claim
    finding: Finding
    state: object = None

    @property
    def key(self) -> tuple[str, str]:
        """What is doubted, whatever the numbers are."""
        return self.claim.name, self.finding.subject


@dataclass(slots=True)
class Look:
    """One look at a shard: what was compared, and what seemed wrong."""

    organizations: int = 0
    holds: int = 0
    doubts: list[Doubt] = field(default_factory=list)


@dataclass(slots=True)
class Chain:
    """The running totals of one organization on the stream, from `start` to `end` without a gap; `late` is the money of
    its calls that had no hold any more."""

    start: int
    end: int
    late: int = 0


class HotStoreCheck:
    """Looks at every shard, and again at those in doubt."""

    def __init__(self, engine: AsyncEngine, hot: HotStore) -> None:
        self._engine = engine
        self._hot = hot
        self.tallies = {claim.name: Tally(claim) for claim in CLAIMS}
        self._states: dict[tuple[str, str], list[Doubt]] = {}
        self._in_doubt: set[int] = set()

    async def shards(self) -> list[int]:
        """All shards."""
        async with self._engine.connect() as connection:
            return sorted(await epochs(connection))

    async def first_look(self, shard: int) -> None:
        """Compare a shard."""
        look = await self._look(shard)
        for claim in (HOT_STORE, HOT_STREAM, HOT_OVERDRAFTS):
            self.tallies[claim.name].add(look.organizations)
        self.tallies[HOLD_OWNERS.name].add(look.holds)
        for doubt in look.doubts:
            if doubt.state is None:
                self._report(doubt)
            else:
                self._states[doubt.key] = [doubt]
                self._in_doubt.add(shard)

    async def look_again(self) -> None:
        """Look at what is in doubt until it is gone; what is the same at every look is reported."""
        for pause in PAUSES_SECONDS:
            if not self._states:
                return
            await asyncio.sleep(pause)
            seen: dict[tuple[str, str], Doubt] = {}
            for shard in sorted(self._in_doubt):
                seen |= {doubt.key: doubt for doubt in (await self._look(shard)).doubts}
            for key in list(self._states):
                if key not in seen:
                    del self._states[key]
                elif seen[key].state is None:
                    self._report(seen[key])
                    del self._states[key]
                else:
                    self._states[key].append(seen[key])
        for doubts in self._states.values():
            if len({doubt.state for doubt in doubts}) == 1:
                self._report(doubts[-1])

    def _report(self, doubt: Doubt) -> None:
        self.tallies[doubt.claim.name].add(0, 1, [doubt.finding])

    # One look --------------------------------------------------------------------------------------------------------

    async def _look(self, shard: int) -> Look:
        """Redis first, its stream next, the book last: what a worker moves meanwhile is then seen twice, never missed.

        Entries are read from a position before, so those that wait by the last reading of the book are among them.
        """
        before = await self._book(shard)
        members = [balance.organization_id for balance in before.balances]
        epoch = await self._hot.epoch(shard)
        rows, holds, unreadable = await self._rows(shard, members)
        owners = await self._left_behind(shard, holds)
        chains = await self._chains(shard, before.position)
        book = await self._book(shard)
        waiting = await self._hot.read(shard, book.position, 1)
        if not epoch == await self._hot.epoch(shard) == book.epoch:
            # Being rebuilt, or about to be: nothing else in it is believed meanwhile.
            finding = Finding(f"shard {shard}", f"epoch {book.epoch}", f"epoch {epoch}")
            return Look(len(members), len(holds), [Doubt(HOT_STORE, finding, (epoch, book.epoch))])
        doubts = [*owners, *unreadable, *_left_waiting(shard, waiting, await self._hot.clock_ms())]
        held: dict[UUID, int] = {}
        for hold in holds:
            request = hold.hold.request
            held[request.origin.organization_id] = held.get(request.origin.organization_id, 0) + request.amount
        for balance in book.balances:
            owner = balance.organization_id
            if owner in rows:
                doubts += _balance_doubts(rows[owner], balance, held.get(owner, 0))
                doubts += _stream_doubts(rows[owner], balance, chains.get(owner))
        doubts += await self._overdrafts(rows, chains)
        return Look(len(members), len(holds), doubts)

    async def _book(self, shard: int) -> Book:
        async with self._engine.connect() as plain:
            connection = await plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            balances = await balances_of_shard(connection, shard)
            return Book((await epochs(connection))[shard], (await positions(connection))[shard], balances)

    async def _rows(
        self, shard: int, members: Sequence[UUID]
    ) -> tuple[dict[UUID, HotBalance | None], list[OpenHold], list[Doubt]]:
        """The rows of organizations and their open holds, and what is wrong with holds that cannot be read."""
        rows: dict[UUID, HotBalance | None] = {}
        holds: list[OpenHold] = []
        unreadable: list[Doubt] = []

        async def one(owner: UUID) -> None:
            # Both commands leave in one write, and Redis answers what it has read before it turns to others.
            row, mine = await asyncio.gather(
                self._hot.balance(shard, owner), self._hot.open_holds(shard, owner), return_exceptions=True
            )
            if isinstance(mine, ValueError):
                finding = Finding(f"organization {owner}", "open holds that can be read", str(mine))
                unreadable.append(Doubt(HOT_STORE, finding))
                return
            for answer in (row, mine):
                if isinstance(answer, BaseException):
                    raise answer
            assert row is None or isinstance(row, HotBalance)
            assert isinstance(mine, tuple)
            rows[owner] = row
            holds.extend(mine)

        for at in range(0, len(members), _ORGANIZATIONS_AT_ONCE):
            await asyncio.gather(*(one(owner) for owner in members[at : at + _ORGANIZATIONS_AT_ONCE]))
        return rows, holds, unreadable

    async def _left_behind(self, shard: int, holds: Sequence[OpenHold]) -> list[Doubt]:
        if not holds:
            return []
        # Read after the holds, so that none of them is younger than what is known of its gateway.
        signs, now_ms = await self._hot.signs_of_life(shard), await self._hot.clock_ms()
        return [doubt for hold in holds if (doubt := _left_behind(hold, signs, now_ms))]

    async def _chains(self, shard: int, position: str) -> dict[UUID, Chain]:
        """The running totals on the stream after `position`, read page by page: it may be long where no worker runs."""
        chains: dict[UUID, Chain] = {}
        while entries := await self._hot.read(shard, position, _ENTRIES_AT_ONCE):
            for entry in entries:
                _link(chains, entry)
            position = entries[-1].id
        return chains

    async def _overdrafts(
        self, rows: Mapping[UUID, HotBalance | None], chains: Mapping[UUID, Chain]
    ) -> Iterable[Doubt]:
        below = {owner: row for owner, row in rows.items() if row is not None and row.available < 0}
        if not below:
            return []
        query = text(f"{EXPLAINED} where organization.id = any(cast(:owners as uuid[]))")
        async with self._engine.connect() as connection:
            explained = {row.organization_id: row for row in await connection.execute(query, {"owners": list(below)})}
        doubts = []
        for owner, row in below.items():
            reason = explained[owner]
            late = chains[owner].late if owner in chains else 0
            allowed = int(reason.late) + int(reason.taken_back) + late
            if not reason.has_new_limit and row.available < -allowed:
                least = -row.credit_limit - allowed
                finding = Finding(
                    f"organization {owner}", f"at least {least}", f"balance {row.balance} less {row.held} held"
                )
                # A late call that comes twice is debited twice until it is booked, and then given back.
                doubts.append(Doubt(HOT_OVERDRAFTS, finding, "below"))
        return doubts


@dataclass(frozen=True, slots=True)
class Book:
    """A shard as Postgres knows it at one moment."""

    epoch: int
    position: str
    balances: Sequence[Balance]


def _balance_doubts(row: HotBalance | None, balance: Balance, held: int) -> Iterator[Doubt]:
    subject = f"organization {balance.organization_id}"
    if row is None:
        yield Doubt(HOT_STORE, Finding(subject, "a balance in Redis", "none"), "none")
        return
    if row.version != balance.version:
        finding = Finding(subject, f"version {balance.version} of its balance", f"version {row.version} in Redis")
        yield Doubt(HOT_STORE, finding, row.version)
    else:
        expected = shown_balance(balance.posted) - (row.settled - balance.booked_total)
        if row.balance != expected:
            yield Doubt(HOT_STORE, Finding(subject, f"balance {expected}", f"balance {row.balance} in Redis"))
        if row.credit_limit != balance.credit_limit:
            limits = f"credit limit {balance.credit_limit}", f"credit limit {row.credit_limit} in Redis"
            yield Doubt(HOT_STORE, Finding(subject, *limits))
    if row.held != held:
        yield Doubt(HOT_STORE, Finding(f"holds of {subject}", f"{held} held", f"{row.held} in Redis"), row.held - held)


def _stream_doubts(row: HotBalance | None, balance: Balance, chain: Chain | None) -> Iterator[Doubt]:
    if row is None or row.settled == balance.booked_total:
        return
    subject = f"organization {balance.organization_id}"
    if row.settled < balance.booked_total:
        # Booked after the row was read; where the row stands still, Redis has lost what the book has.
        finding = Finding(subject, f"at least {balance.booked_total} settled", f"{row.settled} in Redis")
        yield Doubt(HOT_STREAM, finding, row.settled)
    elif chain is None or chain.start > balance.booked_total or chain.end < row.settled:
        on_stream = "none" if chain is None else f"totals {chain.start} to {chain.end}"
        totals = f"entries with totals {balance.booked_total} to {row.settled}"
        yield Doubt(HOT_STREAM, Finding(subject, totals, f"{on_stream} on the stream"))


def _left_waiting(shard: int, waiting: Sequence[StreamEntry], now_ms: int) -> Iterator[Doubt]:
    """The oldest entry that is not booked, where it waits for long: it is wrong where none is booked meanwhile."""
    for entry in waiting:
        seconds = (now_ms - int(entry.id.partition("-")[0])) // 1_000
        if seconds > IN_TIME_SECONDS:
            found = f"entry {entry.id} waits for {seconds} seconds; does a worker run?"
            yield Doubt(HOT_STREAM, Finding(f"stream of shard {shard}", "entries being booked", found), entry.id)


def _left_behind(hold: OpenHold, signs: Mapping[str, int], now_ms: int) -> Doubt | None:
    """What is wrong with an open hold whose gateway is dead; one without an instance has nobody who could be."""
    if not hold.instance:
        return None
    silent_seconds = (now_ms - signs.get(hold.instance, hold.placed_at_ms)) // 1_000
    if silent_seconds <= IN_TIME_SECONDS:
        return None
    origin = hold.hold.request.origin
    found = f"{hold.hold.request.amount} held for the gateway {hold.instance}, silent for {silent_seconds} seconds"
    subject = f"call {origin.call_id} of organization {origin.organization_id}"
    return Doubt(HOLD_OWNERS, Finding(subject, "an end within a minute of its gateway's", found))


def _link(chains: dict[UUID, Chain], entry: StreamEntry) -> None:
    """Add an entry to its organization's totals. After a gap they begin anew: what is missing is booked, or lost."""
    if entry.settled is None:
        return
    try:
        charge = decode_charge(entry.charge)
    except ValueError:
        return  # The worker sets it aside; its total is then missing here.
    start = entry.settled - charge.amount
    chain = chains.get(charge.organization_id)
    if chain is None:
        chain = chains[charge.organization_id] = Chain(start, start)
    elif chain.end != start:
        chain.start = start
    chain.end = entry.settled
    if entry.late:
        chain.late += charge.amount
