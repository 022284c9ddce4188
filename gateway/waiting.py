"""The waiting room: which call gets a slot of a backend, which waits for one, and which is turned away. Pure.

A call asks before its hold is taken, and keeps its `Slot` until its backend is done with it. No call waits while a slot
that it could use is free: so one that finds a slot free overtakes nobody, and an end gives its slot to one other call.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

from gateway.turns import Turns
from models.catalog import Backend

SOONEST_RETRY_SECONDS = 1.0
LATEST_RETRY_SECONDS = 30.0

_UNLIMITED = sys.maxsize
_SMOOTHING = 1 / 8
"""Weight of the newest service time in the average (as in TCP's estimate of the round trip)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much runs and waits in one process.

    `max_waiting_per_backend` None means as many as the backend has slots. `quantum_tokens` is what an organization is
    served in one turn.
    """

    max_running: int = 1_024
    max_waiting: int = 1_024
    max_waiting_per_backend: int | None = None
    patience_seconds: float = 2.0
    quantum_tokens: int = 8_192


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A call that wants a slot: `tokens` is what its hold will cover, `backends` where it can go, best first."""

    organization: UUID
    tokens: int
    backends: tuple[UUID, ...]


class Slot:
    """A place at a backend, from `WaitingRoom.ask` until `WaitingRoom.release`."""

    __slots__ = ("_desk", "is_held", "since", "ticket")

    def __init__(self, ticket: Ticket, desk: _Desk, now: float) -> None:
        self.ticket = ticket
        self.since = now
        self.is_held = True
        self._desk = desk

    @property
    def backend(self) -> UUID:
        """The backend that the call may be sent to."""
        return self._desk.backend


class Reason(StrEnum):
    """Why a call was turned away."""

    FULL = "full"
    """As many wait as may."""
    CROWDED_OUT = "crowded_out"
    """Another organization had fewer calls waiting, and needed the place."""
    TIMED_OUT = "timed_out"
    """No slot became free in time."""
    GONE = "gone"
    """None of its backends is there any more."""


@dataclass(frozen=True, slots=True)
class Shed:
    """A call that is turned away before anything was held for it.

    `is_own_doing`: its organization fills the slots or the places itself (429); if not, we have too few (503).
    """

    ticket: Ticket
    reason: Reason
    is_own_doing: bool
    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """The call waits, at most `until`; `instead_of` was turned away for it."""

    until: float
    instead_of: Shed | None = None


Answer: TypeAlias = Slot | Waiting | Shed


@dataclass(frozen=True, slots=True)
class Rearranged:
    """What a change of the backends did to those who waited."""

    slots: tuple[Slot, ...]
    shed: tuple[Shed, ...]


class _Places:
    """A bounded number of places to wait, and whose they are."""

    __slots__ = ("_of", "limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._of: dict[UUID, OrderedDict[Ticket, None]] = {}

    @property
    def are_full(self) -> bool:
        return self.taken >= self.limit

    def take(self, ticket: Ticket) -> None:
        self._of.setdefault(ticket.organization, OrderedDict())[ticket] = None
        self.taken += 1

    def leave(self, ticket: Ticket) -> None:
        own = self._of[ticket.organization]
        del own[ticket]
        if not own:
            del self._of[ticket.organization]
        self.taken -= 1

    def of(self, organization: UUID) -> int:
        return len(self._of.get(organization, ()))

    def most(self) -> int:
        return max(map(len, self._of.values()), default=0)

    def newest_of_most(self) -> Ticket:
        """The newest ticket of the organization that has most."""
        largest: OrderedDict[Ticket, None] = max(self._of.values(), key=len)
        return next(reversed(largest))


class _Desk:
    """A backend as the waiting room sees it."""

    __slots__ = ("backend", "in_flight", "limit", "line", "places", "running", "service_seconds", "tokens")

    def __init__(self, backend: UUID, quantum_tokens: int) -> None:
        self.backend = backend
        self.limit = 0
        self.in_flight = 0
        self.tokens = 0
        self.running: dict[UUID, int] = {}
        self.service_seconds = 0.0
        self.places = _Places(0)
        """Those who wait and are counted here; a call that can go elsewhere, too, takes a place at one desk only."""
        self.line: Turns[Ticket] = Turns(quantum_tokens)
        """All who would take a slot here."""

    @property
    def is_gone(self) -> bool:
        return not self.limit

    def has_room(self) -> bool:
        return self.in_flight < self.limit

    def enter(self, ticket: Ticket) -> None:
        organization = ticket.organization
        self.in_flight += 1
        self.tokens += ticket.tokens
        self.running[organization] = self.running.get(organization, 0) + 1

    def leave(self, ticket: Ticket, seconds: float) -> None:
        organization = ticket.organization
        self.in_flight -= 1
        self.tokens -= ticket.tokens
        others = self.running[organization] - 1
        if others:
            self.running[organization] = others
        else:
            del self.running[organization]
        self.service_seconds += (seconds - self.service_seconds) * (_SMOOTHING if self.service_seconds else 1)

    def is_filled_by(self, organization: UUID) -> bool:
        """Whether an organization runs at least its share of the slots."""
        return self.running.get(organization, 0) * len(self.running) >= self.limit


@dataclass(frozen=True, slots=True)
class _Wait:
    """How a ticket waits: in the lines of `desks`, with a place at `home`."""

    desks: tuple[_Desk, ...]
    home: _Desk
    until: float


class WaitingRoom:
    """Slots and places of all backends of a process. Times are seconds of one monotonic clock."""

    __slots__ = ("_bounds", "_desks", "_line", "_places", "_running", "_waits")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._running = 0
        self._desks: dict[UUID, _Desk] = {}
        # Oldest first: all have the same patience, so the first is also the first to lose it.
        self._waits: OrderedDict[Ticket, _Wait] = OrderedDict()
        self._places = _Places(bounds.max_waiting)
        self._line: Turns[Ticket] = Turns(bounds.quantum_tokens)
        """All who wait, for when it is the process that has no slot."""

    # Calls -----------------------------------------------------------------------------------------------------------

    def ask(self, ticket: Ticket, now: float) -> Answer:
        """A slot if one is free, else a place to wait, else neither."""
        if self._running < self._bounds.max_running:
            for backend in ticket.backends:
                desk = self._desks.get(backend)
                if desk is not None and desk.in_flight < desk.limit:
                    return self._seat(ticket, desk, now)
        return self._admit(ticket, now)

    def release(self, slot: Slot, now: float) -> tuple[Slot, ...]:
        """The backend is done with a call; answers the call that got a slot by it, if any."""
        assert slot.is_held, "a slot is released once"
        slot.is_held = False
        desk = slot._desk
        desk.leave(slot.ticket, now - slot.since)
        was_full = self._running >= self._bounds.max_running
        self._running -= 1
        if not self._waits:
            return ()
        # Where the process was full, others than those in this backend's line may have waited for it.
        successor = self._next_anywhere(now) if was_full else self._next_at(desk, now)
        return () if successor is None else (successor,)

    def move(self, slot: Slot, backend: UUID, now: float) -> tuple[Slot, ...]:
        """The call goes on at another backend, which must have room; answers who got the slot that it left, if any."""
        left, entered = slot._desk, self._desks[backend]
        if left is entered:
            return ()
        assert slot.is_held, "a call moves before its slot is released"
        assert entered.has_room(), "a call moves only to where there is room"
        left.leave(slot.ticket, now - slot.since)
        entered.enter(slot.ticket)
        slot._desk, slot.since = entered, now
        if self._running >= self._bounds.max_running:
            return ()
        successor = self._next_at(left, now)
        return () if successor is None else (successor,)

    def leave(self, ticket: Ticket) -> bool:
        """The client of a waiting call has left; False if the call does not wait (any more)."""
        if ticket not in self._waits:
            return False
        self._forget(ticket)
        return True

    def expire(self, now: float) -> tuple[Shed, ...]:
        """Turn away those who have waited for as long as they may."""
        shed = []
        while self._waits:
            ticket, wait = next(iter(self._waits.items()))
            if wait.until > now:
                break
            self._forget(ticket)
            is_own_doing = all(desk.is_filled_by(ticket.organization) for desk in wait.desks)
            shed.append(Shed(ticket, Reason.TIMED_OUT, is_own_doing, self._retry_after(wait.desks)))
        return tuple(shed)

    # Backends --------------------------------------------------------------------------------------------------------

    def know(self, backends: Iterable[Backend], now: float) -> Rearranged:
        """Take the backends on sale, with their limits. Calls that run, and calls that wait, stay also where there are
        now more than a lowered limit; calls whose every backend is gone are turned away."""
        limits = {each.id: each.max_in_flight for each in backends}
        for backend in limits.keys() - self._desks.keys():
            self._desks[backend] = _Desk(backend, self._bounds.quantum_tokens)
        for backend, desk in self._desks.items():
            limit = limits.get(backend, 0)
            desk.limit = _UNLIMITED if limit is None else limit
            desk.places.limit = self._places_at(desk)
        shed = tuple(self._turn_away_from_gone())
        slots = tuple(self._fill(now))
        # A desk that is gone is kept while calls run there: were it made anew meanwhile, they would not be counted.
        self._desks = {
            each: desk for each, desk in self._desks.items() if desk.in_flight or len(desk.line) or not desk.is_gone
        }
        return Rearranged(slots, shed)

    def has_room(self, backend: UUID) -> bool:
        """Whether a backend has a free slot."""
        desk = self._desks.get(backend)
        return desk is not None and desk.has_room()

    def tokens(self, backend: UUID) -> int:
        """Tokens reserved by the calls that run at a backend: its outstanding work."""
        desk = self._desks.get(backend)
        return 0 if desk is None else desk.tokens

    def in_flight(self, backend: UUID) -> int:
        """Calls that run at a backend."""
        desk = self._desks.get(backend)
        return 0 if desk is None else desk.in_flight

    def waiting(self, backend: UUID) -> int:
        """Calls that would take a slot of a backend; one that could also go elsewhere is counted at each."""
        desk = self._desks.get(backend)
        return 0 if desk is None else len(desk.line)

    @property
    def running_calls(self) -> int:
        """Calls that have a slot, in the whole process."""
        return self._running

    @property
    def waiting_calls(self) -> int:
        """Calls that wait, in the whole process."""
        return len(self._waits)

    @property
    def expires_at(self) -> float | None:
        """When `expire` has something to do next; None while nobody waits."""
        return next(iter(self._waits.values())).until if self._waits else None

    # Slots -----------------------------------------------------------------------------------------------------------

    def _seat(self, ticket: Ticket, desk: _Desk, now: float) -> Slot:
        desk.enter(ticket)
        self._running += 1
        return Slot(ticket, desk, now)

    def _next_at(self, desk: _Desk, now: float) -> Slot | None:
        ticket = desk.line.serve() if desk.has_room() else None
        if ticket is None:
            return None
        self._forget(ticket, desk.line)
        return self._seat(ticket, desk, now)

    def _next_anywhere(self, now: float) -> Slot | None:
        waits = self._waits
        ticket = self._line.serve(lambda each: any(desk.has_room() for desk in waits[each].desks))
        if ticket is None:
            return None
        wait = self._forget(ticket, self._line)
        return self._seat(ticket, next(desk for desk in wait.desks if desk.has_room()), now)

    def _fill(self, now: float) -> Iterator[Slot]:
        while self._running < self._bounds.max_running:
            slot = self._next_anywhere(now)
            if slot is None:
                return
            yield slot

    # Places ----------------------------------------------------------------------------------------------------------

    def _admit(self, ticket: Ticket, now: float) -> Waiting | Shed:
        assert ticket not in self._waits, "a call waits once"
        desks = tuple(
            desk
            for backend in dict.fromkeys(ticket.backends)
            if (desk := self._desks.get(backend)) is not None and not desk.is_gone
        )
        if not desks:
            return Shed(ticket, Reason.GONE, False, SOONEST_RETRY_SECONDS)
        home = next((desk for desk in desks if not desk.places.are_full), None)
        until = now + self._bounds.patience_seconds
        if home is not None and not self._places.are_full:
            return self._wait(ticket, _Wait(desks, home, until))
        full = [self._places] if home is not None else [desk.places for desk in desks]
        # How many more the largest organization has there than this one.
        ahead = [places.most() - places.of(ticket.organization) for places in full]
        # From two on, the largest still has as many as this one after a place has changed hands: it cannot change back.
        if max(ahead) < 2:
            has_others = any(places.of(ticket.organization) for places in full)
            is_own_doing = has_others or all(desk.is_filled_by(ticket.organization) for desk in desks)
            return Shed(ticket, Reason.FULL, is_own_doing, self._retry_after(desks))
        # The newest, since the others have waited for longer and are sooner served.
        newest = full[ahead.index(max(ahead))].newest_of_most()
        left = self._forget(newest)
        instead_of = Shed(newest, Reason.CROWDED_OUT, True, self._retry_after(left.desks))
        return self._wait(ticket, _Wait(desks, home or left.home, until), instead_of)

    def _wait(self, ticket: Ticket, wait: _Wait, instead_of: Shed | None = None) -> Waiting:
        self._waits[ticket] = wait
        self._places.take(ticket)
        wait.home.places.take(ticket)
        for line in (self._line, *(desk.line for desk in wait.desks)):
            line.add(ticket.organization, ticket, ticket.tokens)
        return Waiting(wait.until, instead_of)

    def _forget(self, ticket: Ticket, served_by: Turns[Ticket] | None = None) -> _Wait:
        wait = self._waits.pop(ticket)
        self._places.leave(ticket)
        wait.home.places.leave(ticket)
        for line in (self._line, *(desk.line for desk in wait.desks)):
            if line is not served_by:
                line.remove(ticket.organization, ticket)
        return wait

    def _turn_away_from_gone(self) -> Iterator[Shed]:
        for ticket, wait in tuple(self._waits.items()):
            if all(desk.is_gone for desk in wait.desks):
                self._forget(ticket)
                yield Shed(ticket, Reason.GONE, False, SOONEST_RETRY_SECONDS)

    def _places_at(self, desk: _Desk) -> int:
        most = self._bounds.max_waiting_per_backend
        # As much again as runs: whoever comes last then waits for about one answer.
        return desk.limit if most is None else most

    def _retry_after(self, desks: tuple[_Desk, ...]) -> float:
        """When those who wait now will have been served, as far as the service times of late can tell."""
        estimates = [
            (desk.places.taken + 1) * desk.service_seconds / min(desk.limit, self._bounds.max_running)
            for desk in desks
            if not desk.is_gone
        ]
        return min(max(min(estimates, default=0.0), SOONEST_RETRY_SECONDS), LATEST_RETRY_SECONDS)
