"""One call in a simulated gateway: carries out what its machine says, as a driver does, and feeds it what happens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from billing.journal.settles import settle_record
from gateway.calls.commands import (
    CloseUpstream,
    Command,
    Connect,
    CountPrompt,
    CountTokens,
    PlaceHold,
    Release,
    SendBody,
    SendError,
    SendHead,
    Settle,
)
from gateway.calls.machine import Call, Phase
from gateway.calls.metering import OwnCount
from models.call import Hold, HoldRefusal, RefusedHold
from models.errors import BackendFailed, BackendTimedOut, TollgateError, Unavailable
from tests.simulation import tally
from tests.simulation.auditor import Story
from tests.simulation.backends import Step, Vice, What, answer

if TYPE_CHECKING:
    from tests.simulation.gateway import Gateway

SETTLE_PATIENCE_SECONDS: Final = 2.0
IDLE_SECONDS: Final = 30.0
_FAILED: Final = BackendFailed("The model's backend broke off.")
_SILENT: Final = BackendTimedOut("The model's backend did not answer in time.")


class SimulatedCall:
    """One call, its client and its backend."""

    def __init__(self, gateway: Gateway, call: Call, story: Story, epoch: int, number: int) -> None:
        self.call = call
        self.story = story
        self._gateway = gateway
        self._auditor = gateway.world.auditor
        self._random: Random = gateway.world.random
        self._epoch = epoch
        self._number = number
        self._commands: deque[Command] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._backend: asyncio.TimerHandle | None = None
        self._steps: deque[Step] = deque()
        self._is_unprotected = False

    def __hash__(self) -> int:
        # The gateway keeps its calls in a set, whose order must follow from the seed.
        return self._number

    async def run(self) -> None:
        """The whole call."""
        running = self._gateway.running
        running.drivers.add(self)
        self._let_client_leave()
        try:
            self.call.begin()
            await self._live()
            self._auditor.over(self.story)
        finally:
            self._leave_backend()
            running.ended(self)

    async def _live(self) -> None:
        while True:
            self._commands.extend(self.call.take())
            if self._commands:
                command = self._commands[0]
                await self._gateway.go_on()
                await _DOES[type(command)](self, command)
                self._commands.popleft()
            elif self.call.phase is Phase.ENDED:
                return
            else:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake

    def check_time(self, now: float) -> None:
        """Time limits are those of the backend's steps."""

    def drain(self) -> None:
        """The process stops."""
        self._auditor.note(self.story, "is drained")
        self.call.drain(Unavailable("This server is being restarted. Send the request again."))
        self._notify()

    # Client ----------------------------------------------------------------------------------------------------------

    def _let_client_leave(self) -> None:
        world = self._gateway.world
        if self._random.random() < world.weather.clients_gone:
            asyncio.get_running_loop().call_later(self._random.random() * 2, self._client_gone)

    def _client_gone(self) -> None:
        if self.call.phase is Phase.ENDED or self.story.is_orphan:
            return
        self._gateway.world.saw_client_leave()
        self._auditor.note(self.story, "client leaves", self.call.phase.name)
        self.call.client_gone()
        self._notify()

    def _notify(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _send(self, command: SendHead | SendBody | SendError) -> None:
        if isinstance(command, SendBody) and command.last:
            self._auditor.last_byte(self.story, is_unprotected=self._is_unprotected)
        if self._random.random() < 0.02:
            await asyncio.sleep(self._random.random())

    # Backend ---------------------------------------------------------------------------------------------------------

    async def _connect(self, command: Connect) -> None:
        if self.call.phase is not Phase.CONNECTING:
            return
        backend = command.deployment.backend
        self._auditor.connects(self.story, backend.kind)
        vice = None
        if self._random.random() < self._gateway.world.weather.backends_bad:
            vice = self._random.choice(list(Vice))
            self._gateway.world.saw_backend_misbehave(vice)
            self._auditor.note(self.story, "backend is bad", vice.value)
        self._steps = deque(answer(self._random, backend.kind, self.call.request, vice))
        self._next_step()

    async def _close_backend(self, _command: CloseUpstream) -> None:
        self._leave_backend()

    def _leave_backend(self) -> None:
        if self._backend is not None:
            self._backend.cancel()
            self._backend = None
        self._steps.clear()

    def _next_step(self) -> None:
        self._backend = None
        if self._steps:
            seconds = self._steps[0].seconds
            self._backend = asyncio.get_running_loop().call_later(seconds, self._take_step)

    def _take_step(self) -> None:
        gateway = self._gateway
        if gateway.is_frozen:
            # What comes waits in the sockets.
            self._backend = asyncio.get_running_loop().call_later(gateway.frozen_seconds, self._take_step)
            return
        step = self._steps.popleft()
        self._feed(step)
        # A machine that is not answered to any more has closed the connection, or will.
        if self.call.phase in (Phase.CONNECTING, Phase.ANSWERING):
            self._next_step()
        self._notify()

    def _feed(self, step: Step) -> None:
        call, story = self.call, self.story
        match step.what:
            case What.SENT:
                story.is_sent = True
                call.upstream_sent()
            case What.HEAD:
                story.status = step.status
                call.upstream_head(step.status, step.data)
            case What.BYTES:
                if call.phase is Phase.ANSWERING:
                    self._auditor.sees(story, step.facts)
                call.upstream_bytes(step.data)
            case What.END:
                if call.phase is Phase.ANSWERING:
                    self._auditor.sees(story, step.facts)
                call.upstream_end()
            case What.BREAK:
                call.upstream_failed(_FAILED)
            case What.SILENCE:
                self._steps.appendleft(Step(What.BREAK, IDLE_SECONDS))

    # Counting --------------------------------------------------------------------------------------------------------

    async def _count_prompt(self, _command: CountPrompt) -> None:
        self.call.prompt_counted(self._gateway.words_of_prompt(self.call.request))

    async def _count(self, command: CountTokens) -> None:
        words = sum(len(text.split()) for text in command.texts)
        prompt = self._gateway.words_of_prompt(command.request)
        is_exact = command.model.tokenizer is not None
        self.story.own = tally.OwnCount(prompt, self.story.tally.words, False, is_exact)
        await asyncio.sleep(self._random.random() * 0.02)
        self.call.counted(OwnCount(prompt, words, False, is_exact))

    # Ledger ----------------------------------------------------------------------------------------------------------

    async def _place_hold(self, command: PlaceHold) -> None:
        if command.request.amount != self.story.hold.amount:
            self._auditor.tightened(self.story, command.request)
        try:
            answered = await self._gateway.hot.hold(command.request, self._epoch)
        except TollgateError as error:
            self._auditor.note(self.story, "hold fails", error.message)
            self.call.hold_failed(error)
            self._gateway.world.send_customers_away()
            return
        if isinstance(answered, Hold):
            self._auditor.held(self.story)
        self.call.hold_answered(answered)
        if isinstance(answered, RefusedHold) and self.call.phase is Phase.ENDED:
            self._auditor.refused(self.story, answered.reason.value)
            if answered.reason is HoldRefusal.NO_EPOCH:
                self._gateway.world.send_customers_away()

    async def _settle(self, command: Settle) -> None:
        hold, charge, running = command.hold, command.charge, self._gateway.running
        self._auditor.settles(self.story, charge)
        is_journaled = await self._journal(command)
        try:
            await self._gateway.hot.settle(hold, charge)
        except Unavailable:
            task = running.detach(self._settle_at_last(command))
            if not is_journaled:
                await asyncio.wait({task}, timeout=SETTLE_PATIENCE_SECONDS)
                self._is_unprotected = not task.done()
        else:
            self._auditor.durable(self.story, redis=True)
        self.call.settled()

    async def _settle_at_last(self, command: Settle) -> None:
        await self._gateway.running.settle(command.hold, command.charge)
        self._auditor.durable(self.story, redis=True)

    async def _journal(self, command: Settle) -> bool:
        try:
            await self._gateway.journal.append(settle_record(command.hold, command.charge))
        except Unavailable:
            return False
        self._auditor.durable(self.story, journal=True)
        return True

    async def _release(self, command: Release) -> None:
        self._auditor.releases(self.story, command.void.reason)
        try:
            await self._gateway.hot.void(command.void.hold)
        except Unavailable:
            self._gateway.running.detach(self._gateway.running.release(command.void))


_DOES: Final[dict[type[Any], Callable[[SimulatedCall, Any], Awaitable[None]]]] = {
    CloseUpstream: SimulatedCall._close_backend,
    Connect: SimulatedCall._connect,
    CountPrompt: SimulatedCall._count_prompt,
    CountTokens: SimulatedCall._count,
    PlaceHold: SimulatedCall._place_hold,
    Release: SimulatedCall._release,
    SendBody: SimulatedCall._send,
    SendError: SimulatedCall._send,
    SendHead: SimulatedCall._send,
    Settle: SimulatedCall._settle,
}
"""How each command is carried out."""
