"""What the backends can take: each call has a place at them, from before its hold until its backend is done with it.

The arithmetic is in `gateway/waiting.py`, `breaker.py`, `retries.py`, `lag.py` and `routing.py`; here it meets time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from gateway import telemetry
from gateway.breaker import Breakers, Passage
from gateway.calls.choice import MAX_ATTEMPTS, Choice
from gateway.health import HealthChecks
from gateway.lag import LoopLag
from gateway.retries import RetryBudget
from gateway.routing import pause_seconds, route
from gateway.settings import Settings
from gateway.waiting import Bounds, Shed, Slot, Ticket, Waiting, WaitingRoom
from models.catalog import Backend, Catalog, Deployment
from models.errors import RateLimited, TollgateError, Unavailable

_SOONEST_RETRY_MS: Final = 1_000


class Capacity:
    """Shared by all calls of a process."""

    def __init__(self, settings: Settings, health: HealthChecks | None = None) -> None:
        self.room = WaitingRoom(
            Bounds(
                max_running=settings.max_running_calls,
                max_waiting=settings.max_waiting_calls,
                max_waiting_per_backend=settings.max_waiting_per_backend,
                patience_seconds=settings.wait_seconds,
                quantum_tokens=settings.turn_tokens,
            )
        )
        self.breakers = Breakers()
        self.budget = RetryBudget(settings.retry_share)
        self.lag = LoopLag()
        self._loop = asyncio.get_running_loop()
        self._health = health
        self._catalog: Catalog | None = None
        self._out: Mapping[UUID, float] = {}
        self._waiting: dict[Ticket, Place] = {}
        self._timer: asyncio.TimerHandle | None = None

    def know(self, catalog: Catalog) -> None:
        """Take the backends and limits of a catalog; costs nothing for the one that is known."""
        if catalog is self._catalog:
            return
        known, self._catalog = self._catalog, catalog
        deployments, now = deployments_of(catalog), self._loop.time()
        changed = self.room.know({each.backend.id: each.backend for each in deployments}.values(), now)
        self.breakers.keep({each.id for each in deployments})
        if known is not None:
            # Not at the start of a process, when all are new.
            for added in {each.id for each in deployments} - {each.id for each in deployments_of(known)}:
                self.breakers.of(added).start_slowly(now)
        self.seat(changed.slots)
        self.turn_away(changed.shed)

    def suspend(self, out: Mapping[UUID, float]) -> None:
        """Let these deployments take no new calls, each until about its time; those that were out before come back."""
        for each in self._out.keys() - out.keys():
            self.breakers.of(each).resume(self._loop.time())
        for each, back_at in out.items():
            self.breakers.of(each).suspend(back_at)
        self._out = out

    def wait(self, ticket: Ticket, place: Place, answer: Waiting) -> None:
        """A call waits for a slot."""
        self._waiting[ticket] = place
        if answer.instead_of is not None:
            self.turn_away((answer.instead_of,))
        if self._timer is None:
            self._timer = self._loop.call_at(answer.until, self._expire)

    def leave(self, ticket: Ticket) -> None:
        """A waiting call does not wait any longer."""
        if self._waiting.pop(ticket, None) is not None:
            self.room.leave(ticket)

    def seat(self, slots: Iterable[Slot]) -> None:
        """Calls that waited have got a slot. In a turn of its own for each: one may lead to the next."""
        for slot in slots:
            self._loop.call_soon(self._waiting.pop(slot.ticket).seated, slot)

    def turn_away(self, shed: Iterable[Shed]) -> None:
        """Calls that waited are turned away."""
        for each in shed:
            self._loop.call_soon(self._waiting.pop(each.ticket).shed, each)

    def gauges(self) -> list[telemetry.BackendGauge]:
        """How things stand at each backend, for metrics."""
        if self._catalog is None:
            return []
        room, now = self.room, self._loop.time()
        by_backend: dict[UUID, tuple[Backend, list[telemetry.BreakerGauge]]] = {}
        for model in self._catalog.models.values():
            for each in model.deployments:
                state = self.breakers.of(each.id).state(now)
                _, breakers = by_backend.setdefault(each.backend.id, (each.backend, []))
                breakers.append(telemetry.BreakerGauge(model.id, str(state)))
        return [
            telemetry.BackendGauge(
                backend.name,
                room.in_flight(each),
                room.tokens(each),
                room.waiting(each),
                tuple(breakers),
                is_healthy=self._health is None or self._health.of(each).is_healthy,
            )
            for each, (backend, breakers) in by_backend.items()
        ]

    def _expire(self) -> None:
        self._timer = None
        self.turn_away(self.room.expire(self._loop.time()))
        if (until := self.room.expires_at) is not None:
            self._timer = self._loop.call_at(until, self._expire)


class Place:
    """One call's place: it may wait, then has a slot at a backend and the leave of a breaker, and gives both back."""

    __slots__ = (
        "_capacity",
        "_choice",
        "_chosen",
        "_jitter",
        "_organization",
        "_passage",
        "_since",
        "_slot",
        "_then",
        "_ticket",
        "_tokens",
        "_tried",
        "deployment",
    )

    def __init__(self, capacity: Capacity, choice: Choice, organization: UUID, tokens: int, jitter: float) -> None:
        """`jitter`, from 0 to 1, spreads the times at which those who are turned away come back."""
        self._capacity = capacity
        self._choice = choice
        self._chosen: tuple[Deployment, ...] = ()
        self._organization = organization
        self._tokens = tokens
        self._jitter = jitter
        self._since = 0.0
        self._then: Callable[[TollgateError | None], None] | None = None
        self._ticket: Ticket | None = None
        self._slot: Slot | None = None
        self._passage: Passage | None = None
        self._tried: list[UUID] = []
        self.deployment: Deployment

    # Entering --------------------------------------------------------------------------------------------------------

    def enter(self, then: Callable[[TollgateError | None], None]) -> None:
        """Get a slot, now or later: `then` is told None, and `deployment` is where to go, or why there is none."""
        capacity, now = self._capacity, self._capacity._loop.time()
        self._then, self._since = then, now
        self._chosen = chosen = self._route(now)
        if not chosen:
            self._refuse("breakers_open", self._failing(now))
            return
        self._ticket = ticket = Ticket(self._organization, self._tokens, tuple(each.backend.id for each in chosen))
        answer = capacity.room.ask(ticket, now)
        if isinstance(answer, Slot):
            self.seated(answer)
        elif isinstance(answer, Waiting):
            capacity.wait(ticket, self, answer)
        else:
            self.shed(answer)

    def seated(self, slot: Slot) -> None:
        """A slot is there."""
        capacity, now = self._capacity, self._capacity._loop.time()
        if self._then is None:
            # The client left while the news was on its way.
            capacity.seat(capacity.room.release(slot, now))
            return
        self._slot = slot
        here = [each for each in self._chosen if each.backend.id == slot.backend]
        chosen = self._admitted(here, now) or self._admitted(self._route(now), now)
        if chosen is None:
            self._give_back()
            self._refuse("breakers_open", self._failing(now))
            return
        self.deployment = chosen
        capacity.budget.called(now)
        telemetry.CALLS.waited(now - self._since)
        self._tell(None)

    def _route(self, now: float) -> tuple[Deployment, ...]:
        choice = self._choice
        found = self._ranked(choice.deployments, now)
        reserve = choice.reserve
        if reserve is not None and (not found or (reserve.when_full and not any(map(self._has_room, found)))):
            found += self._ranked(reserve.deployments, now)
        return found

    def _ranked(self, among: Sequence[Deployment], now: float) -> tuple[Deployment, ...]:
        capacity = self._capacity
        if self._tried:
            among = [each for each in among if each.id not in self._tried]
        return route(among, self._tokens, capacity.room, capacity.breakers, now, self._choice.prefix)

    def _admitted(self, chosen: Sequence[Deployment], now: float) -> Deployment | None:
        """The first of these that its breaker lets through and that has room, with the slot moved there."""
        capacity, slot = self._capacity, self._slot
        assert slot is not None, "a breaker is asked by who has a slot"
        for each in chosen:
            is_here = each.backend.id == slot.backend
            if not is_here and not capacity.room.has_room(each.backend.id):
                continue
            passage = capacity.breakers.of(each.id).admit(now)
            if passage is not None:
                self._passage = passage
                if not is_here:
                    capacity.seat(capacity.room.move(slot, each.backend.id, now))
                return each
        return None

    def shed(self, shed: Shed) -> None:
        """There is no slot, and no place to wait for one."""
        milliseconds = self._stretched(shed.retry_after_seconds)
        if shed.is_own_doing:
            error: TollgateError = RateLimited(
                "Your organization already has as many calls running or waiting as this model's backends can take. "
                f"Nothing was charged; try again in {milliseconds / 1_000:.1f} s.",
                milliseconds,
            )
        else:
            error = Unavailable("All backends of this model are busy. Nothing was charged; try again.", milliseconds)
        self._refuse(str(shed.reason), error)

    def _failing(self, now: float) -> Unavailable:
        pause = pause_seconds(self._choice.deployments, self._capacity.breakers, now)
        return Unavailable(
            "All backends of this model are failing. Nothing was charged; try again in a moment.",
            max(_SOONEST_RETRY_MS, self._stretched(pause)),
        )

    def _stretched(self, seconds: float) -> int:
        # By up to a quarter: or all who were turned away together come back together.
        return int(1_000 * seconds * (1 + self._jitter / 4))

    def _refuse(self, reason: str, error: TollgateError) -> None:
        if self._then is not None:
            telemetry.CALLS.shed(reason, 429 if isinstance(error, RateLimited) else 503)
            self._tell(error)

    def _tell(self, error: TollgateError | None) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(error)

    # At the backend --------------------------------------------------------------------------------------------------

    def retry(self) -> Deployment | None:
        """Where to try again after a failure before the first byte; None where nowhere, or not within the budget."""
        self.failed()
        capacity, now = self._capacity, self._capacity._loop.time()
        self._tried.append(self.deployment.id)
        slot = self._slot
        if slot is None:
            return None
        chosen = self._free_now(self._ranked(self._choice.deployments, now), slot)
        reserve = self._choice.reserve
        if reserve is not None and (not chosen or len(self._tried) >= MAX_ATTEMPTS - 1):
            # The last attempt is the fallback's, however many deployments of the model are left.
            chosen = self._free_now(self._ranked(reserve.deployments, now), slot) + chosen
        if not chosen:
            return None
        if not capacity.budget.take(now):
            telemetry.CALLS.retried(within_budget=False)
            return None
        deployment = self._admitted(chosen, now)
        if deployment is not None:
            telemetry.CALLS.retried(within_budget=True)
            self.deployment = deployment
        return deployment

    def _free_now(self, ranked: Iterable[Deployment], slot: Slot) -> list[Deployment]:
        # A retry never waits: its client has waited already, and it would push in before others.
        return [each for each in ranked if each.backend.id == slot.backend or self._has_room(each)]

    def _has_room(self, deployment: Deployment) -> bool:
        return self._capacity.room.has_room(deployment.backend.id)

    def failed(self) -> None:
        """The backend could not be reached, or answered with a 5xx, or not in time."""
        passage, self._passage = self._passage, None
        if passage is not None:
            passage.failed(self._capacity._loop.time())

    def succeeded(self) -> None:
        """The backend has begun a good answer."""
        passage, self._passage = self._passage, None
        if passage is not None:
            passage.succeeded(self._capacity._loop.time())

    def refused(self) -> None:
        """The backend did not want this request."""
        passage, self._passage = self._passage, None
        if passage is not None:
            passage.refused()

    @property
    def is_judged(self) -> bool:
        """Whether the present attempt has shown how the backend does."""
        return self._passage is None

    # Leaving ---------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The call needs no backend any more, whatever it had or waited for. Again is harmless."""
        self._then = None
        passage, self._passage = self._passage, None
        if passage is not None:
            passage.abandoned()
        if self._slot is not None:
            self._give_back()
        elif self._ticket is not None:
            self._capacity.leave(self._ticket)

    def _give_back(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            capacity = self._capacity
            capacity.seat(capacity.room.release(slot, capacity._loop.time()))


def deployments_of(catalog: Catalog) -> list[Deployment]:
    """All deployments on sale."""
    return [each for model in catalog.models.values() for each in model.deployments]
