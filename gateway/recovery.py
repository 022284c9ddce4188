"""What a gateway does about its journal beside the calls: replay, correct, confirm, forget, mend a forgetful Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.store import HotStore
from billing.journal.frames import Record
from billing.journal.journal import Journal
from billing.journal.settles import replay_into
from billing.settlement import correct, recovered_calls
from billing.store.ledger import booked_calls
from gateway.catalog import CatalogCache
from models.call import Charge
from models.errors import Conflict, NotFound, Unavailable

CONFIRM_SECONDS = 1.0
RETRY_SECONDS = 0.5
_AT_ONCE = 5_000
_WEATHER = (Unavailable, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

_log = structlog.get_logger("tollgate.journal")


@dataclass(slots=True)
class Recovery:
    """The journal's owner. `run` goes on for the life of the process; a part that is away is waited for."""

    journal: Journal
    hot: HotStore
    engine: AsyncEngine
    catalog: CatalogCache
    running: Callable[[], Collection[UUID]] = tuple
    """The calls that run in this process."""
    _aside: set[UUID] = field(default_factory=set)
    """Recovered calls that could not be compared: they wait in their segments for a person, or the next process."""

    async def run(self, stop: asyncio.Event) -> None:
        """Replay the journals of dead processes, then confirm and forget; replay all when Redis may have forgotten.

        What a sweeper had charged and a journal knows better is corrected before it is forgotten.
        """
        known = self._redis()
        await self._until_done(self._inherit, stop)
        while not stop.is_set():
            with contextlib.suppress(*_WEATHER):
                await self._confirm()
            if (seen := self._redis()) != known:
                await self._until_done(self._mend, stop)
                known = seen
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONFIRM_SECONDS):
                    await stop.wait()

    async def _until_done(self, work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await work()
            except _WEATHER as error:
                _log.warning("journal_waits", reason=type(error).__name__, retry_seconds=RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _inherit(self) -> None:
        await self._replay(self.journal.replay(), "journal_replayed")

    def _redis(self) -> tuple[dict[int, int], int]:
        """What changes with a Redis that has forgotten: the epochs where it was blank, and our connection in any case.

        A server that lost a second to a power cut, or a replica that took over, shows the same epochs as before.
        """
        return dict(self.catalog.epochs), self.hot.openings

    async def _mend(self) -> None:
        """Charges that were only in a Redis that forgot them are settled again; all others have ended already."""
        await self._inherit()
        records = await asyncio.to_thread(lambda: list(self.journal.written()))
        await self._replay(records, "journal_mended")
        await self._end_left_holds()

    async def _end_left_holds(self) -> None:
        """Holds of calls that have ended here came back with a Redis that forgot their end: no sweeper would see them.

        Looked for first and compared then, so that no call is taken for ended that has just begun. As abandoned: the
        settle of one that is still on its way must count.
        """
        holds = await self.hot.own_holds()
        running = frozenset(self.running())
        for hold in holds:
            if hold.request.origin.call_id not in running:
                await self.hot.void(hold, abandoned=True)

    async def _replay(self, records: Iterable[Record], event: str) -> None:
        replayed = await replay_into(self.hot, records, self._booked, self._recovered)
        self.journal.forget(replayed.booked)
        await self._correct(replayed.recovered)
        if replayed.settled or replayed.unreadable:
            _log.warning(
                event, charges=len(replayed.settled), booked=len(replayed.booked), dead=len(replayed.unreadable)
            )

    async def _confirm(self) -> None:
        recovered: set[UUID] = set()
        for some in _pieces(self.journal.unconfirmed() - self._aside):
            booked = await self._booked(some)
            swept = await self._recovered(booked) if booked else booked
            self.journal.forget(booked - swept)
            recovered |= swept
        if recovered:
            await self._compare(recovered)

    async def _compare(self, recovered: Collection[UUID]) -> None:
        """Find what our journal says of calls that a sweeper charged: this is rare, so the disk is read once more.

        Those of a segment that is still written come here when it is full, or to the process that finds it.
        """
        records = await asyncio.to_thread(
            lambda: [record for record in self.journal.written() if record.call_id in recovered]
        )
        await self._replay(records, "journal_replayed")
        if not self.journal.unconfirmed().isdisjoint(recovered):
            await self._inherit()
        # Or they would be read in vain every second.
        self._aside |= self.journal.unconfirmed() & frozenset(recovered)

    async def _correct(self, journaled: Iterable[Charge]) -> None:
        for charge in journaled:
            try:
                correction = await correct(self.engine, self.hot, charge)
            except (Conflict, NotFound) as error:
                _log.error("journal_contradicts_book", call_id=charge.call_id, reason=error.message)
                continue
            if correction is not None:
                _log.warning("charge_corrected", call_id=charge.call_id, correction=correction.call_id)
            self.journal.forget([charge.call_id])

    async def _recovered(self, calls: Collection[UUID]) -> frozenset[UUID]:
        async with self.engine.connect() as connection:
            return await recovered_calls(connection, calls)

    async def _booked(self, calls: Collection[UUID]) -> frozenset[UUID]:
        async with self.engine.connect() as connection:
            return await booked_calls(connection, calls)


def _pieces(calls: Collection[UUID]) -> Iterator[list[UUID]]:
    waiting = list(calls)
    for at in range(0, len(waiting), _AT_ONCE):
        yield waiting[at : at + _AT_ONCE]
