"""Reconciliation: what the ledger charged for a backend's calls against that backend's own counters.

Both only grow, so what is compared are their increases since the last reconciliation. Calls move them at different
moments; a difference counts when it lasts over several looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.entries import decode_charge
from billing.hot.store import HotStore
from billing.store.balances import balances_of_shard
from billing.store.reconciliations import booked_since
from billing.store.shards import epochs, positions
from models.call import Charge
from models.catalog import Backend
from models.ids import first_uuid7
from models.reconciliation import Base, Comparison, Counters, LedgerSums, Measure, Reconciliation, Verdict
from models.usage import UsageSource

ReadCounters: TypeAlias = Callable[[Backend], Awaitable[Counters]]
"""Asks a backend for its counters; raises `CountersUnreadable`."""

LONGEST_CALL: Final = timedelta(days=1)
"""Charges of calls begun before the last reconciliation by more than this are not looked at again: a book of years
would have to be read each time. No call runs that long, and no gateway keeps one unsettled that long."""

_BUSY_BASE: Final = "Calls ran when it was first looked at, so it is begun anew: what comes from now on is compared."

_ATTEMPTS: Final = 6
_PAUSE_SECONDS: Final = 0.2
_BACKENDS_AT_ONCE: Final = 4
_AT_ONCE: Final = 100
_ENTRIES_AT_ONCE: Final = 2_000


class CountersUnreadable(Exception):
    """A backend's counters cannot be had; the message is a sentence that says why."""


def compare(base: Base | None, counters: Counters, ledger: LedgerSums) -> Comparison:
    """The verdict on a backend whose calls the ledger sums to `ledger`, counted as the base counted."""
    if base is None:
        return Comparison(Verdict.BASELINE)
    before = base.counters
    if counters.input < before.input or counters.output < before.output:
        # Counters start at zero with the process. What it counted between the base and its end is lost.
        return Comparison(Verdict.RESTARTED)
    metered = LedgerSums(counters.input - before.input, counters.output - before.output)
    charged = ledger - base.ledger
    is_equal = (
        abs(metered.input - charged.input) <= before.input_rounding + counters.input_rounding
        and abs(metered.output - charged.output) <= before.output_rounding + counters.output_rounding
    )
    return Comparison(Verdict.EQUAL if is_equal else Verdict.DIFFERS, metered, charged)


def sum_charges(charges: Sequence[Charge], backend: str, counted_from: datetime) -> LedgerSums:
    """Sums over the charges of a backend's calls that began at `counted_from` or later."""
    sums, first = LedgerSums(), first_uuid7(counted_from)
    for charge in charges:
        if charge.deployment == backend and charge.call_id >= first:
            is_estimated = charge.usage_source is not UsageSource.BACKEND
            sums += LedgerSums(charge.input_tokens, charge.output_tokens, int(is_estimated))
    return sums


@dataclass(frozen=True, slots=True)
class Reconciler:
    """What a reconciliation looks at: the book, the charges on their way to it, and the backends."""

    engine: AsyncEngine
    hot: HotStore
    read: ReadCounters

    async def reconcile(self, backends: Sequence[tuple[Backend, Base | None]], now: datetime) -> list[Reconciliation]:
        """Compare each backend with its base; raises SQLAlchemy's errors and `Unavailable`. Nothing is written."""
        few = asyncio.Semaphore(_BACKENDS_AT_ONCE)

        async def one(backend: Backend, base: Base | None) -> Reconciliation:
            async with few:
                return await self._reconcile(backend, base, now)

        return list(await asyncio.gather(*(one(backend, base) for backend, base in backends)))

    async def _reconcile(self, backend: Backend, base: Base | None, now: datetime) -> Reconciliation:
        since = None if base is None else base.at
        counted_from = now - LONGEST_CALL
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS)
            try:
                measure = await self._measure(backend, base, counted_from)
            except CountersUnreadable as error:
                unread = Comparison(Verdict.UNREACHABLE)
                return Reconciliation(backend.name, now, since, counted_from, unread, reason=str(error))
            comparison = compare(base, measure.counters, measure.since_base)
            # A base taken while calls run would show them as a difference at the next reconciliation.
            is_settled = measure.is_steady and comparison.verdict is not Verdict.DIFFERS
            if is_settled or comparison.verdict is Verdict.EQUAL:
                break
        reason = None
        if comparison.verdict is Verdict.DIFFERS and base is not None and base.calls_in_flight and measure.is_steady:
            # What those calls had used by then is on one side only, and nobody knows how much that was.
            comparison, reason = Comparison(Verdict.BASELINE), _BUSY_BASE
        return Reconciliation(backend.name, now, since, counted_from, comparison, measure, reason)

    async def _measure(self, backend: Backend, base: Base | None, counted_from: datetime) -> Measure:
        """One look. The ledger is read between two readings of the counters, to know whether they stood still."""
        in_flight = await self._calls_in_flight()
        before = await self.read(backend)
        starts = (counted_from if base is None else base.counted_from, counted_from)
        since_base, since_next = await self._ledger(backend.name, starts)
        after = await self.read(backend)
        in_flight = max(in_flight, await self._calls_in_flight())
        return Measure(after, since_base, since_next, in_flight, is_steady=before == after and in_flight == 0)

    async def _ledger(self, backend: str, starts: Sequence[datetime]) -> list[LedgerSums]:
        """Sums since each of `starts`, of charges booked and of charges on the stream, each charge once.

        The streams are read first: what a worker books meanwhile is then in the book, and left out by its position.
        """
        streams = await self._streams()
        async with self.engine.connect() as plain:
            connection = await plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            await connection.execute(text("set local statement_timeout = '20s'"))
            booked = await positions(connection)
            sums = [await booked_since(connection, backend, start) for start in starts]
        unbooked = {
            charge.call_id: charge
            for shard, entries in streams.items()
            for entry, charge in entries
            if _order(entry) > _order(booked[shard])
        }
        waiting = tuple(unbooked.values())
        return [found + sum_charges(waiting, backend, start) for found, start in zip(sums, starts, strict=True)]

    async def _streams(self) -> dict[int, list[tuple[str, Charge]]]:
        """The charges on the stream of each shard, each with the id of its entry."""
        async with self.engine.connect() as connection:
            booked = await positions(connection)
        found: dict[int, list[tuple[str, Charge]]] = {}
        for shard, position in booked.items():
            found[shard] = []
            while entries := await self.hot.read(shard, position, _ENTRIES_AT_ONCE):
                for entry in entries:
                    try:
                        found[shard].append((entry.id, decode_charge(entry.charge)))
                    except ValueError:
                        continue  # The worker keeps it apart, and `verify` reports it.
                position = entries[-1].id
        return found

    async def _calls_in_flight(self) -> int:
        """Holds that are open now, at whichever backend their calls are."""
        async with self.engine.connect() as connection:
            places = [
                (balance.shard, balance.organization_id)
                for shard in await epochs(connection)
                for balance in await balances_of_shard(connection, shard)
            ]
        count = 0
        for at in range(0, len(places), _AT_ONCE):
            some = await asyncio.gather(*(self.hot.open_holds(*place) for place in places[at : at + _AT_ONCE]))
            count += sum(len(holds) for holds in some)
        return count


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, sequence = entry_id.split("-")
    return int(milliseconds), int(sequence)
