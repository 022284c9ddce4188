"""A simulated gateway: one process with its calls, journal, checkpoints and recovery; it may be frozen and killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from pydantic import SecretStr

from billing.admission import hold_request
from billing.hot.store import HotStore
from billing.journal.batches import JournalUnavailable, Then
from billing.journal.frames import Record
from billing.journal.journal import Journal
from gateway.calls.capacity import Capacity, Place
from gateway.calls.choice import choose
from gateway.calls.running import Running, RunningCall
from gateway.catalog import CatalogCache
from gateway.recovery import Recovery
from gateway.settings import Settings
from models.account import Principal
from models.call import CallOrigin, CallRequest, Charge, Hold, HoldRequest, RefusedHold
from models.errors import InvalidRequest, TollgateError, Unavailable
from models.ids import uuid7
from tests.simulation.calls import SimulatedCall, Words
from tests.simulation.client import SimulatedClient
from tests.simulation.disk import Disk
from tests.simulation.upstream import SimulatedUpstreams

if TYPE_CHECKING:
    from tests.simulation.world import World

CATALOG_SECONDS = 4.0
_NAMES: Final[dict[str, Any]] = {
    "database_url": SecretStr("none"),
    "redis_url": SecretStr("none"),
    "key_pepper": SecretStr("none" * 8),
}
_SETTINGS: Final = Settings(audit_share=1 / 16, **_NAMES)


class Gateway:
    """One process on a machine; the next one on that machine finds what is on its disk."""

    def __init__(self, world: World, disk: Disk, name: str) -> None:
        self.world = world
        self.disk = disk
        self.name = name
        self.is_open = True
        self.is_dead = False
        self.frozen_seconds = 0.0
        self._thaw: asyncio.Event | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.calls: dict[UUID, SimulatedCall] = {}
        self.journal, instance_id = disk.journal(world.clock.now())
        self._line = world.line(self)
        self.hot = WatchedHot(self, self._line, str(instance_id))
        engine = cast("Any", world.book)
        self.catalog = CatalogCache(engine, CATALOG_SECONDS, monotonic=asyncio.get_running_loop().time)
        self.running = WatchedRunning(
            _SETTINGS,
            self.hot,
            SimulatedUpstreams(self),
            Capacity(_SETTINGS),
            cast("Any", Words()),
            cast("Any", WatchedJournal(self, self.journal)),
        )
        self._recovery = Recovery(self.journal, self.hot, engine, self.catalog, world.clock.now, self.running.call_ids)
        for work in (
            self._look_at_catalog(),
            self._recovery.run(self._stop),
            self.running.keep_checkpoints(self._stop),
            self.running.watch(self._stop),
        ):
            self._start(work)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.fail(error)

    async def _look_at_catalog(self) -> None:
        while not self._stop.is_set():
            await self.go_on()
            await self.catalog.refresh(force=True)
            await asyncio.sleep(CATALOG_SECONDS)

    # Being frozen ----------------------------------------------------------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """Whether the process does not get any time."""
        return self._thaw is not None

    async def go_on(self) -> None:
        """Return when the process runs."""
        if self._thaw is not None:
            await self._thaw.wait()

    async def freeze(self, seconds: float) -> None:
        """Stop the process for a while, as a machine that sleeps does."""
        if self._thaw is not None:
            return
        self._thaw, self.frozen_seconds = asyncio.Event(), seconds
        try:
            await asyncio.sleep(seconds)
        finally:
            self._thaw.set()
            self._thaw = None

    # Calls -----------------------------------------------------------------------------------------------------------

    @property
    def takes_calls(self) -> bool:
        """Whether it is ready, as `/readyz` would say."""
        return self.is_open and not self.is_frozen and self.catalog.loaded and self.journal.is_healthy

    @property
    def open_calls(self) -> int:
        """Calls that have not ended."""
        return len(self.calls)

    def take(self, request: CallRequest, principal: Principal, number: int) -> bool:
        """Admit a call, as intake does; False where the model is not sold or the epoch is not known."""
        world, catalog = self.world, self.catalog.current
        now = world.clock.now()
        model = catalog.models.get(request.model)
        epoch = self.catalog.epochs.get(principal.shard)
        rates = catalog.rates(principal.price_book, principal.currency, request.model, now)
        if model is None or epoch is None or rates is None:
            return False
        origin = CallOrigin(
            call_id=uuid7(now),
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            api_key_id=principal.api_key_id,
            shard=principal.shard,
            currency=principal.currency,
            endpoint=request.endpoint,
            model=model.id,
            streamed=request.stream,
            created_at=now,
        )
        try:
            choice = choose(catalog, model, rates, principal, request, now)
        except InvalidRequest:
            return False
        hold = hold_request(request, origin, principal, model, rates)
        capacity = self.running.capacity
        capacity.know(catalog)
        tokens = hold.input_bound + hold.output_bound
        place = Place(capacity, choice, principal.organization_id, tokens, jitter=world.random.random())
        client = SimulatedClient(self)
        is_audited = world.random.random() < _SETTINGS.audit_share
        call = SimulatedCall(
            self.running, request, hold, model, place, cast("Any", client), epoch=epoch, now=world.clock.now,
            is_audited=is_audited,
        )  # fmt: skip
        call.gateway, call.client, call.number = self, client, number
        call.story = world.auditor.began(request, hold, model, self.name, self.disk.name)
        call.story.has_notes = self.journal.open_calls is not None
        self.calls[origin.call_id] = call
        call.begin()
        return True

    @property
    def taken_places(self) -> int:
        """Slots that are taken, and calls that wait for one."""
        room, known = self.running.capacity.room, self.catalog.current.models.values()
        backends = {each.backend.id for model in known for each in model.deployments}
        return sum(room.in_flight(each) + room.waiting(each) for each in backends)

    def over(self, call: SimulatedCall) -> None:
        """A call has ended and its client is served."""
        del self.calls[call.call.hold_request.origin.call_id]
        self.world.auditor.over(call.story, call.call.error)

    # Its end ---------------------------------------------------------------------------------------------------------

    async def kill(self, *, loses_memory: bool = False, disk_lost: bool = False) -> None:
        """End at once, wherever its calls are; alone, or with the memory or the disk of its machine."""
        self.is_open = False
        self.world.auditor.orphaned(self.name, was_frozen=self.frozen_seconds > 0)
        self.disk.freeze_notes(self.journal)
        await self._cut()
        self.disk.crash(self.journal)
        if loses_memory:
            self.world.auditor.lost_memory(self.disk.name)
            self.disk.lose_notes()
        if disk_lost:
            self.world.auditor.lost_disk(self.disk.name)
            self.disk.lose()

    async def drain(self, seconds: float) -> None:
        """End as after SIGTERM: no new calls, the running ones get some seconds, then what they have is charged."""
        self.is_open = False
        await self.running.drain(seconds)
        self.world.auditor.orphaned(self.name, was_frozen=self.frozen_seconds > 0)
        await self.disk.close(self.journal)
        await self._cut()

    async def _cut(self) -> None:
        """The process is no more: nothing that was under way in it goes on."""
        self.is_dead = True
        self._stop.set()
        self._line.cut()
        tasks = [*self._tasks, *self.running.unsettled]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class WatchedHot(HotStore):
    """A gateway's hot store, of which the auditor hears when it is answered."""

    def __init__(self, gateway: Gateway, line: object, instance: str) -> None:
        super().__init__("", cast("Any", line), instance=instance)
        self._gateway = gateway

    def start_hold(
        self, request: HoldRequest, epoch: int, then: Callable[[Hold | RefusedHold | TollgateError], None]
    ) -> None:
        """Take a hold."""
        call = self._gateway.calls[request.origin.call_id]

        def answered(answer: Hold | RefusedHold | TollgateError) -> None:
            call.hold_answered(answer)
            then(answer)

        super().start_hold(request, epoch, answered)

    def start_settle(
        self, hold: Hold, charge: Charge, then: Callable[[int | Unavailable], None], encoded: bytes = b""
    ) -> None:
        """End a call with its charge."""
        auditor = self._gateway.world.auditor
        story = auditor.story_of(charge.call_id)
        self._gateway.world.last_settled[charge.organization_id] = (hold, charge)

        def answered(answer: int | Unavailable) -> None:
            if isinstance(answer, Unavailable):
                auditor.settle_failed(story)
            else:
                auditor.durable(story, redis=True)
            then(answer)

        super().start_settle(hold, charge, answered, encoded)


class WatchedRunning(Running):
    """A gateway's calls: the auditor hears when one of them is noted beside the journal."""

    def note(self, driver: RunningCall, *, is_sent: bool = False) -> None:
        """Note a call, where the process gets any time for it."""
        call = cast("SimulatedCall", driver)
        gateway = call.gateway
        if gateway.is_frozen:
            return
        super().note(driver, is_sent=is_sent)
        if gateway.journal.open_calls is not None and (point := call.call.checkpoint()) is not None:
            gateway.world.auditor.notes(call.story, is_accepted=point.accepted)


class WatchedJournal:
    """A gateway's journal as its calls see it: the auditor hears what is on disk."""

    def __init__(self, gateway: Gateway, journal: Journal) -> None:
        self._gateway = gateway
        self._journal = journal
        self.open_calls = journal.open_calls

    def start(self, record: Record, then: Then, *, in_flight: int = 0) -> None:
        """Write a record."""
        self._journal.start(record, partial(self._written, record.call_id, then), in_flight=in_flight)

    def _written(self, call_id: UUID, then: Then, error: JournalUnavailable | None) -> None:
        if self._gateway.is_dead:
            return
        auditor = self._gateway.world.auditor
        story = auditor.calls[str(call_id)]
        if error is None:
            auditor.durable(story, journal=True)
        else:
            auditor.journal_failed(story)
        then(error)
