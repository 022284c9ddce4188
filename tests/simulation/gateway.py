"""A simulated gateway: one process with its calls, journal, checkpoints and recovery; it may be frozen and killed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from billing.admission import hold_request
from billing.hot.store import HotStore
from gateway.backends import DIALECTS
from gateway.calls.machine import Attempt, Call
from gateway.calls.running import Running
from gateway.catalog import CatalogCache
from gateway.recovery import Recovery
from models.account import Principal
from models.call import CallOrigin, CallRequest
from models.ids import uuid7
from tests.simulation.calls import SimulatedCall
from tests.simulation.disk import Disk

if TYPE_CHECKING:
    from tests.simulation.world import World

CATALOG_SECONDS = 4.0


class Gateway:
    """One process on a machine; the next one on that machine finds what is on its disk."""

    def __init__(self, world: World, disk: Disk, name: str) -> None:
        self.world = world
        self.disk = disk
        self.name = name
        self.is_open = True
        self.frozen_seconds = 0.0
        self._thaw: asyncio.Event | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: dict[asyncio.Task[Any], SimulatedCall] = {}
        self.journal, instance_id = disk.journal(world.clock.now())
        line = world.line(self)
        self.hot = HotStore("", cast("Any", line), instance=str(instance_id))
        engine = cast("Any", world.book)
        self.catalog = CatalogCache(engine, CATALOG_SECONDS, monotonic=asyncio.get_running_loop().time)
        parts = cast("Any", None)
        self.running = Running(parts, self.hot, parts, parts, self.journal)
        self._recovery = Recovery(self.journal, self.hot, engine, self.catalog, self.running.call_ids)
        for work in (
            self._look_at_catalog(),
            self._recovery.run(self._stop),
            self.running.keep_checkpoints(self._stop),
        ):
            self._start(work)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._calls.pop(task, None)
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
        return len(self._calls)

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
        hold = hold_request(request, origin, principal, model, rates)
        deployments = list(model.deployments)
        world.random.shuffle(deployments)
        attempts = [
            Attempt(one, DIALECTS[one.backend.kind].body(request, model, one))
            for one in deployments
            if request.n <= DIALECTS[one.backend.kind].max_choices
        ]
        if not attempts:
            return False
        call = Call(request, hold, model, attempts, world.clock.now, is_audited=number % 16 == 0)
        story = world.auditor.began(request, hold, model, self.name, self.disk.name)
        simulated = SimulatedCall(self, call, story, epoch, number)
        self._calls[self._start(simulated.run())] = simulated
        return True

    def words_of_prompt(self, request: CallRequest) -> int:
        """Our own count of a prompt."""
        return len(str(request.body.get("input", "")).split()) + request.n

    # Its end ---------------------------------------------------------------------------------------------------------

    async def kill(self, *, disk_lost: bool = False) -> None:
        """End at once, wherever its calls are."""
        self.is_open = False
        self.world.auditor.orphaned(self.name)
        await self._cancel()
        self.disk.crash(self.journal)
        if disk_lost:
            self.world.auditor.lost_disk(self.disk.name)
            self.disk.lose()

    async def drain(self, seconds: float) -> None:
        """End as after SIGTERM: no new calls, the running ones get some seconds, then what they have is charged."""
        self.is_open = False
        await self.running.drain(seconds)
        self.world.auditor.orphaned(self.name)
        await self._cancel()
        await self.disk.close(self.journal)

    async def _cancel(self) -> None:
        self._stop.set()
        tasks = [*self._tasks, *self.running.unsettled]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
