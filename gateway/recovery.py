"""What a gateway does about its journal beside the calls: replay, correct, confirm, forget, mend a forgetful Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.keys import SHARDS
from billing.hot.store import HotStore
from billing.journal.frames import Record
from billing.journal.journal import Journal
from billing.journal.settles import read_open, replay_into
from billing.settlement import correct, recovered_calls
from billing.store.ledger import booked_calls, doubtful_calls
from billing.sweeper import end_all
from gateway.catalog import CatalogCache
from models.call import Charge, Checkpoint, Hold
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
    now: Callable[[], datetime]
    running: Callable[[], Collection[UUID]]
    """The calls that this process has now."""
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
        # After the replay: the charge of a call that had ended counts, not the last note of it.
        for path, noted in self.journal.left_open().items():
            await self._end_left(path, noted)
        for instance_id in tuple(self.journal.dead):
            await self._bury(instance_id)
            self.journal.buried(instance_id)

    async def _bury(self, instance_id: UUID) -> None:
        """End what a dead process still holds, mostly for calls that no backend was sent.

        A sweeper would, in half a minute; who has the lock of the dead knows it now.
        """
        for shard in range(SHARDS):
            found = await self.hot.holds_of(shard, str(instance_id))
            await end_all(self.hot, [(one.hold, one.checkpoint) for one in found], self.now())

    async def _end_left(self, path: Path, noted: Iterable[tuple[bytes, bytes]]) -> None:
        """End the calls that a dead process had at a backend, each at the last that was noted of it."""
        left: dict[UUID, tuple[Hold, Checkpoint]] = {}
        for payloads in noted:
            try:
                hold, point = read_open(*payloads)
            except ValueError as error:
                _log.error("hold_unreadable", reason=str(error))
            else:
                left[hold.request.origin.call_id] = (hold, point)
        booked = await self._booked(left.keys()) if left else frozenset()
        open_calls = [one for call_id, one in left.items() if call_id not in booked]
        ended = await end_all(self.hot, open_calls, self.now())
        if ended:
            _log.warning("calls_recovered", count=len(ended))
        self.journal.drop_open(path)

    def _redis(self) -> tuple[dict[int, int], int]:
        """What changes with a Redis that has forgotten: the epochs where it was blank, and our connection in any case.

        A server that lost a second to a power cut, or a replica that took over, shows the same epochs as before.
        """
        return dict(self.catalog.epochs), self.hot.openings

    async def _mend(self) -> None:
        """Charges that were only in a Redis that forgot them are settled again; all others have ended already."""
        await self._inherit()
        # Those on their way first, or one might come to the disk after that was read.
        unwritten = self.journal.unwritten()
        records = await asyncio.to_thread(lambda: list(self.journal.written()))
        await self._replay([*records, *unwritten], "journal_mended")
        await self._release_lost()

    async def _release_lost(self) -> None:
        """Give back what is held again for calls of ours that have ended: Redis has lost their ends."""
        if not self.hot.instance:
            # Nobody can tell whose a hold without an instance is.
            return
        for shard in range(SHARDS):
            # The holds first: what is held for a call that begins meanwhile is not among them.
            found = await self.hot.holds_of(shard, self.hot.instance)
            running = self.running()
            for one in found:
                if one.hold.request.origin.call_id not in running:
                    await self.hot.void(one.hold, abandoned=True)

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
            async with self.engine.connect() as connection:
                doubtful = await doubtful_calls(connection, some)
            self.journal.forget(frozenset(some) - doubtful.missing - doubtful.recovered)
            recovered |= doubtful.recovered
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
