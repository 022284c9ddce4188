"""One call in a simulated gateway: the real driver, with the auditor looking at all that it carries out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from billing.tokens.counter import Count
from gateway.calls import driver
from gateway.calls.commands import Connect, CountTokens, PlaceHold, Release, SendBody, SendError, Settle
from gateway.calls.driver import Driver
from gateway.calls.machine import Phase
from gateway.calls.settling import Settling
from models.call import Hold, HoldRefusal, RefusedHold
from models.errors import TollgateError
from tests.simulation import tally
from tests.simulation.auditor import Story
from tests.simulation.client import SimulatedClient

if TYPE_CHECKING:
    from tests.simulation.gateway import Gateway


class SimulatedCall(Driver):
    """A call, its client and what the auditor knows of it."""

    gateway: Gateway
    story: Story
    client: SimulatedClient
    number: int

    def __hash__(self) -> int:
        # The gateway keeps its calls in a set, whose order must follow from the seed.
        return self.number

    def begin(self) -> None:
        """Let it live, and its client leave at some time."""
        world = self.gateway.world
        if world.random.random() < world.weather.clients_gone:
            self.client.leave(world.random.random() * 2)
        super().begin()

    def check_time(self, now: float) -> None:
        """Look at time limits, where the process gets any time."""
        if not self.gateway.is_frozen:
            super().check_time(now)

    def drain(self) -> None:
        """The process stops."""
        self.gateway.world.auditor.note(self.story, "is drained")
        super().drain()

    def client_gone(self) -> None:
        """The client has left."""
        if not self._has_ended:
            self.gateway.world.saw_client_leave()
            self.gateway.world.auditor.note(self.story, "client leaves", self.call.phase.name)
        super().client_gone()

    def upstream_lost(self, error: TollgateError, is_stale: bool) -> None:
        """The backend's connection broke."""
        super().upstream_lost(error, is_stale)
        if is_stale and self.call.phase is Phase.CONNECTING and (point := self.call.checkpoint()) is not None:
            # Until it is sent again no backend has it, and whoever ends it now must not charge for it.
            self.gateway.world.auditor.claims(self.story, is_accepted=point.accepted)

    def hold_answered(self, answer: Hold | RefusedHold | TollgateError) -> None:
        """Redis has answered; the machine does not know yet."""
        auditor = self.gateway.world.auditor
        if isinstance(answer, Hold):
            auditor.held(self.story)
        elif isinstance(answer, RefusedHold):
            auditor.note(self.story, "hold is refused", answer.reason.value)
            if answer.reason is HoldRefusal.NO_EPOCH:
                self.gateway.world.send_customers_away()
        else:
            auditor.note(self.story, "hold fails", answer.message)
            self.gateway.world.send_customers_away()

    def _begin_settling(self, settling: Settling) -> None:
        if not self.gateway.is_dead:
            super()._begin_settling(settling)

    def _end(self) -> None:
        if not self._has_ended:
            self.gateway.over(self)
        super()._end()

    # What it is about to do ------------------------------------------------------------------------------------------

    def _places_hold(self, command: PlaceHold) -> None:
        self.gateway.world.auditor.asks(self.story)
        if command.request.amount != self.story.hold.amount:
            self.gateway.world.auditor.tightened(self.story, command.request)

    def _connects(self, command: Connect) -> None:
        if self.call.phase is Phase.CONNECTING:
            self.gateway.world.auditor.connects(self.story, command.deployment.backend.kind)

    def _counts(self, command: CountTokens) -> None:
        body = command.request.body
        said = [message["content"] for message in body.get("messages", ())]
        is_exact = command.model.tokenizer is not None
        told = self.story.tally
        self.story.own = tally.OwnCount(
            sum(len(text.split()) for text in (*said, body.get("input", ""))),
            told.words,
            is_prompt_exact=is_exact and "input" in body,
            # Of no text there is nothing to be wrong about.
            is_completion_exact=is_exact or told.words == 0,
        )

    def _settles(self, command: Settle) -> None:
        self.gateway.world.auditor.settles(self.story, command.charge)

    def _releases(self, command: Release) -> None:
        self.gateway.world.auditor.releases(self.story, command.void.reason)

    def _sends(self, command: SendBody | SendError) -> None:
        if isinstance(command, SendError) or command.last:
            self.gateway.world.auditor.last_byte(self.story)


_BEFORE: Final[dict[type[Any], Callable[[SimulatedCall, Any], None]]] = {
    Connect: SimulatedCall._connects,
    CountTokens: SimulatedCall._counts,
    PlaceHold: SimulatedCall._places_hold,
    Release: SimulatedCall._releases,
    SendBody: SimulatedCall._sends,
    SendError: SimulatedCall._sends,
    Settle: SimulatedCall._settles,
}
"""What is told to the auditor before a command is carried out."""


def watched() -> dict[type[Any], Callable[[Driver, Any], None]]:
    """How a driver carries out each command while the auditor looks on."""
    return {kind: _watched(do, _BEFORE.get(kind)) for kind, do in driver._DOES.items()}


def _watched(
    do: Callable[[Driver, Any], None], before: Callable[[SimulatedCall, Any], None] | None
) -> Callable[[Driver, Any], None]:
    def carry_out(one: Driver, command: Any) -> None:
        call = cast("SimulatedCall", one)
        if call.gateway.is_dead:
            # Nothing comes of what a killed process was about to do.
            call._is_waiting = True
            return
        if before is not None:
            before(call, command)
        do(call, command)

    return carry_out


class Words:
    """In the place of the tokenizers: a word is a token."""

    async def count(self, spec: str | None, text: str) -> Count:
        """Words of a text, which is exact where the model has a tokenizer."""
        return Count(len(text.split()), exact=spec is not None)
