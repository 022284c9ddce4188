"""The waiting room against a naive model of it, in any order of events."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.waiting import Bounds, Reason, Shed, Slot, Ticket, Waiting, WaitingRoom
from tests.unit.overload.nouns import ONE, THREE, TWO, A, B, C, D, backend

BACKENDS = (ONE, TWO, THREE)
LIMITS = st.one_of(st.none(), st.integers(1, 3))
CHOICES = st.lists(st.sampled_from(BACKENDS), min_size=1, max_size=3, unique=True).map(tuple)
TOKENS = st.integers(1, 3_000)


class AnyOrder(RuleBasedStateMachine):
    """Lists and loops instead of queues and counters."""

    @initialize(
        max_running=st.integers(1, 6),
        max_waiting=st.integers(0, 6),
        per_backend=st.one_of(st.none(), st.integers(0, 4)),
        limits=st.tuples(LIMITS, LIMITS, LIMITS),
    )
    def begin(
        self, max_running: int, max_waiting: int, per_backend: int | None, limits: tuple[int | None, ...]
    ) -> None:
        self.bounds = Bounds(max_running, max_waiting, per_backend, patience_seconds=2.0, quantum_tokens=500)
        self.room = WaitingRoom(self.bounds)
        self.now = 100.0
        self.limits: dict[UUID, int | None] = {}
        self.held: list[Slot] = []
        # In the order of their asking, each with the backend at which its place is counted, and its latest time.
        self.waiting: dict[Ticket, tuple[UUID, float]] = {}
        self.lines: dict[Ticket, list[UUID]] = {}
        self.ended: set[Ticket] = set()
        self.know(limits)

    # What the model knows --------------------------------------------------------------------------------------------

    def in_flight(self, at: UUID) -> int:
        return sum(slot.backend == at for slot in self.held)

    def has_room(self, at: UUID) -> bool:
        limit = self.limits.get(at, 0)
        return limit is None or self.in_flight(at) < limit

    def free(self, ticket: Ticket) -> list[UUID]:
        """Where a call could run now."""
        if len(self.held) >= self.bounds.max_running:
            return []
        return [each for each in self.lines.get(ticket, ticket.backends) if self.has_room(each)]

    def has_place(self, at: UUID) -> bool:
        most = self.limits[at] if self.bounds.max_waiting_per_backend is None else self.bounds.max_waiting_per_backend
        return most is None or sum(home == at for home, _ in self.waiting.values()) < most

    # What it is told -------------------------------------------------------------------------------------------------

    def given(self, slot: Slot) -> None:
        """A call that waited has a slot."""
        ticket = slot.ticket
        assert slot.backend in self.free(ticket)
        assert ticket in self.waiting, "only those who wait, and only once"
        earlier = list(self.waiting)[: list(self.waiting).index(ticket)]
        for other in earlier:
            assert other.organization != ticket.organization or not self.free(other), "in order in an organization"
        del self.waiting[ticket]
        self.held.append(slot)

    def turned_away(self, shed: Shed) -> None:
        """A call that waited is turned away."""
        assert shed.ticket in self.waiting
        assert 1.0 <= shed.retry_after_seconds <= 30.0
        del self.waiting[shed.ticket]
        self.ended.add(shed.ticket)

    # Events ----------------------------------------------------------------------------------------------------------

    @rule(seconds=st.floats(0, 1))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(organization=st.sampled_from([A, A, A, B, C, D]), backends=CHOICES, tokens=TOKENS)
    def ask(self, organization: UUID, backends: tuple[UUID, ...], tokens: int) -> None:
        # A catalog that changed in between may have left the call with a backend that the room does not know.
        ticket = Ticket(organization, tokens, backends)
        answer = self.room.ask(ticket, self.now)
        known = [each for each in backends if each in self.limits]
        match answer:
            case Slot():
                assert answer.ticket is ticket
                assert self.free(ticket)[:1] == [answer.backend], "at the best that is free"
                self.held.append(answer)
            case Waiting():
                assert not self.free(ticket), "nobody waits who need not"
                self.wait(ticket, answer, known)
            case Shed():
                assert answer.ticket is ticket
                assert not self.free(ticket)
                assert 1.0 <= answer.retry_after_seconds <= 30.0
                assert answer.reason is (Reason.FULL if known else Reason.GONE)
                if known:
                    self.check_full(ticket, answer, known)

    def wait(self, ticket: Ticket, answer: Waiting, known: list[UUID]) -> None:
        assert answer.until == self.now + self.bounds.patience_seconds
        home = next((each for each in known if self.has_place(each)), None)
        if answer.instead_of is None:
            assert home is not None
            assert len(self.waiting) < self.bounds.max_waiting
        else:
            shed = answer.instead_of
            assert (shed.reason, shed.is_own_doing) == (Reason.CROWDED_OUT, True)
            assert home is None or len(self.waiting) == self.bounds.max_waiting, "only for want of a place"
            homes = BACKENDS if home is not None else tuple(known)
            crowd = self.crowd(homes)
            assert crowd[shed.ticket.organization] >= crowd[ticket.organization] + 2
            # With several full backends it is the one where the difference is largest.
            if home is not None or len(known) == 1:
                assert crowd[shed.ticket.organization] == max(crowd.values())
            home = home or self.waiting[shed.ticket][0]
            later = list(self.waiting)[list(self.waiting).index(shed.ticket) + 1 :]
            assert not [
                each
                for each in later
                if each.organization == shed.ticket.organization
                and (homes is BACKENDS or self.waiting[each][0] == home)
            ], "the newest goes"
            self.turned_away(shed)
        assert home in known
        self.lines[ticket] = known
        self.waiting[ticket] = (home, answer.until)

    def check_full(self, ticket: Ticket, answer: Shed, known: list[UUID]) -> None:
        home = next((each for each in known if self.has_place(each)), None)
        assert home is None or len(self.waiting) >= self.bounds.max_waiting, "turned away only when full"
        for crowd in [self.crowd(BACKENDS)] if home is not None else [self.crowd((each,)) for each in known]:
            assert max(crowd.values(), default=0) <= crowd[ticket.organization] + 1, "a flood keeps nobody out"
        if not answer.is_own_doing:
            assert not self.crowd(BACKENDS if home is not None else tuple(known))[ticket.organization]
        if ticket.organization not in {slot.ticket.organization for slot in self.held}:
            others = self.crowd(BACKENDS if home is not None else tuple(known))
            assert answer.is_own_doing is bool(others[ticket.organization]), "who has nothing here did nothing"

    def crowd(self, homes: tuple[UUID, ...]) -> Counter[UUID]:
        return Counter(each.organization for each, (home, _) in self.waiting.items() if home in homes)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.ended.add(slot.ticket)
        for given in self.room.release(slot, self.now):
            self.given(given)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), backend_id=st.sampled_from(BACKENDS))
    def move(self, data: st.DataObject, backend_id: UUID) -> None:
        slot = data.draw(st.sampled_from(self.held))
        assert self.room.has_room(backend_id) is self.has_room(backend_id)
        if self.has_room(backend_id):
            given = self.room.move(slot, backend_id, self.now)
            assert slot.backend == backend_id
            for each in given:
                self.given(each)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(list(self.waiting)))
        assert self.room.leave(ticket)
        del self.waiting[ticket]
        self.ended.add(ticket)

    @rule()
    def leave_without_waiting(self) -> None:
        for ticket in [*(slot.ticket for slot in self.held), *self.ended]:
            assert not self.room.leave(ticket)

    @rule()
    def expire(self) -> None:
        due = [ticket for ticket, (_, until) in self.waiting.items() if until <= self.now]
        shed = self.room.expire(self.now)
        assert [each.ticket for each in shed] == due, "all whose time is over, and nobody else"
        running = {slot.ticket.organization for slot in self.held}
        for each in shed:
            assert each.reason is Reason.TIMED_OUT
            if each.is_own_doing and any(at in self.limits for at in self.lines[each.ticket]):
                assert each.ticket.organization in running
            self.turned_away(each)

    @rule(limits=st.tuples(*[st.one_of(LIMITS, st.just(0))] * 3))
    def know(self, limits: tuple[int | None, ...]) -> None:
        """Limits change; 0 is a backend that is gone."""
        self.limits = {id: limit for id, limit in zip(BACKENDS, limits, strict=True) if limit != 0}
        changed = self.room.know([backend(id, limit) for id, limit in self.limits.items()], self.now)
        gone = [ticket for ticket in self.waiting if not set(self.lines[ticket]) & self.limits.keys()]
        assert [each.ticket for each in changed.shed if each.reason is Reason.GONE] == gone
        assert len(changed.shed) == len(gone)
        for shed in changed.shed:
            self.turned_away(shed)
        for slot in changed.slots:
            self.given(slot)

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def counts_are_right(self) -> None:
        assert self.room.running_calls == len(self.held) <= self.bounds.max_running
        assert self.room.waiting_calls == len(self.waiting) <= self.bounds.max_waiting
        assert self.room.expires_at == min((until for _, until in self.waiting.values()), default=None)
        for each in BACKENDS:
            assert self.room.in_flight(each) == self.in_flight(each)
            assert self.room.tokens(each) == sum(slot.ticket.tokens for slot in self.held if slot.backend == each)
            assert self.room.has_room(each) is self.has_room(each)

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        assert not [ticket for ticket in self.waiting if self.free(ticket)]

    def teardown(self) -> None:
        """Nothing is lost: when all have ended and all time is over, the room is empty."""
        if not hasattr(self, "room"):
            return
        while self.held:
            slot = self.held.pop()
            self.ended.add(slot.ticket)
            for given in self.room.release(slot, self.now):
                self.given(given)
        self.now += self.bounds.patience_seconds
        self.expire()
        self.counts_are_right()
        assert not self.waiting


TestAnyOrder = AnyOrder.TestCase
