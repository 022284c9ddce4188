"""The waiting room: who gets a slot, who waits, who is turned away and by whose doing."""

from __future__ import annotations

from uuid import UUID

import pytest

from gateway.waiting import Bounds, Reason, Shed, Slot, Ticket, Waiting, WaitingRoom
from tests.unit.overload.nouns import ONE, THREE, TWO, A, B, C, D, backend, room_of, seated, ticket, waits


def shed(room: WaitingRoom, wanted: Ticket, now: float = 0.0) -> Shed:
    answer = room.ask(wanted, now)
    assert isinstance(answer, Shed)
    assert answer.ticket is wanted
    return answer


def owners(slots: tuple[Slot, ...]) -> list[Ticket]:
    return [slot.ticket for slot in slots]


def test_a_free_slot_is_given_at_once_at_the_best_backend() -> None:
    room = room_of({ONE: 1, TWO: 1})
    assert seated(room, ticket(A, TWO, ONE, tokens=7)).backend == TWO
    assert seated(room, ticket(A, TWO, ONE, tokens=5)).backend == ONE
    assert [(room.in_flight(each), room.tokens(each)) for each in (ONE, TWO, THREE)] == [(1, 5), (1, 7), (0, 0)]


def test_a_backend_without_limit_always_has_room() -> None:
    room = room_of({ONE: None})
    for _ in range(500):
        seated(room, ticket())
    assert room.in_flight(ONE) == room.running_calls == 500


def test_an_end_gives_its_slot_to_one_who_waits() -> None:
    room = room_of({ONE: 1})
    first, second = ticket(), ticket(B)
    slot = seated(room, first)
    assert waits(room, second) == Waiting(until=2.0)
    [given] = room.release(slot, 1.0)
    assert (given.ticket, given.backend, given.since) == (second, ONE, 1.0)
    assert room.release(given, 2.0) == ()
    assert (room.running_calls, room.waiting_calls, room.tokens(ONE)) == (0, 0, 0)


def test_a_slot_is_released_once() -> None:
    room = room_of({ONE: 1})
    slot = seated(room, ticket())
    room.release(slot, 1.0)
    with pytest.raises(AssertionError):
        room.release(slot, 1.0)


def test_whoever_can_go_to_two_backends_takes_the_first_slot_of_either() -> None:
    room = room_of({ONE: 1, TWO: 1})
    one, two = seated(room, ticket(A, ONE)), seated(room, ticket(A, TWO))
    both = ticket(B, ONE, TWO)
    waits(room, both)
    assert (room.waiting(ONE), room.waiting(TWO), room.waiting_calls) == (1, 1, 1)
    assert owners(room.release(two, 1.0)) == [both]
    assert (room.waiting(ONE), room.waiting(TWO), room.waiting_calls) == (0, 0, 0)
    assert room.release(one, 1.0) == ()


def test_two_backends_have_places_for_both() -> None:
    room = room_of({ONE: 2, TWO: 1})
    for _ in range(3):
        seated(room, ticket(A, ONE, TWO))
    for organization in (A, B, C):
        waits(room, ticket(organization, ONE, TWO))
    assert shed(room, ticket(D, ONE, TWO)).reason is Reason.FULL


def test_the_process_has_a_limit_of_its_own() -> None:
    room = room_of({ONE: 5, TWO: None}, Bounds(max_running=2))
    one, _ = seated(room, ticket(A, ONE)), seated(room, ticket(A, TWO))
    later = [ticket(B, TWO), ticket(C, ONE)]
    for each in later:
        waits(room, each)
    # The slot became free at ONE, but what was scarce is the process: the first in turn gets it, at TWO.
    assert owners(room.release(one, 1.0)) == later[:1]


def test_the_process_passes_over_those_whose_backend_is_full() -> None:
    room = room_of({ONE: 1, TWO: 5}, Bounds(max_running=2))
    seated(room, ticket(A, ONE))
    two = seated(room, ticket(A, TWO))
    stuck, free = ticket(B, ONE), ticket(B, TWO)
    waits(room, stuck)
    waits(room, free)
    assert owners(room.release(two, 1.0)) == [free]


def test_a_flood_delays_another_organization_by_one_turn() -> None:
    room = room_of({ONE: 1}, Bounds(max_waiting_per_backend=1_001, max_waiting=2_000, quantum_tokens=5_000))
    slot = seated(room, ticket())
    for _ in range(1_000):
        waits(room, ticket(A, tokens=1_000))
    other = ticket(B, tokens=100_000)
    waits(room, other)
    served_before = 0
    while slot.ticket is not other:
        [slot] = room.release(slot, 1.0)
        served_before += 1
    assert served_before - 1 == 5


# Turned away ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "waiting", "asks", "reason", "is_own_doing"),
    [
        pytest.param([A, A], [A, A], A, Reason.FULL, True, id="who fills all slots and all places did it themselves"),
        pytest.param([A, A], [B, C], A, Reason.FULL, True, id="who fills the slots did it, whoever waits"),
        pytest.param([A, A], [B, C], D, Reason.FULL, False, id="who has nothing here did not"),
        pytest.param([A, A], [B, C], B, Reason.FULL, True, id="who has a place already waits as much as others"),
        pytest.param([A, B], [C, D], A, Reason.FULL, True, id="who runs its share of the slots did it"),
    ],
)
def test_a_full_room_turns_away(
    running: list[UUID], waiting: list[UUID], asks: UUID, reason: Reason, is_own_doing: bool
) -> None:
    room = room_of({ONE: 2})
    for organization in running:
        seated(room, ticket(organization))
    for organization in waiting:
        waits(room, ticket(organization))
    answer = shed(room, ticket(asks))
    assert (answer.reason, answer.is_own_doing) == (reason, is_own_doing)


def test_the_newest_call_of_a_flood_makes_place_for_another_organization() -> None:
    room = room_of({ONE: 4})
    for _ in range(4):
        seated(room, ticket())
    flood = [ticket() for _ in range(4)]
    for each in flood:
        waits(room, each)
    turned_away = [waits(room, ticket(B)).instead_of for _ in range(2)]
    assert [each and (each.ticket, each.reason, each.is_own_doing) for each in turned_away] == [
        (flood[3], Reason.CROWDED_OUT, True),
        (flood[2], Reason.CROWDED_OUT, True),
    ]
    assert shed(room, ticket(B)).reason is Reason.FULL, "two each: no place changes hands for nothing"
    assert shed(room, ticket(A)).reason is Reason.FULL


def test_a_full_process_turns_away_where_most_wait() -> None:
    room = room_of({ONE: 1, TWO: 5}, Bounds(max_running=1, max_waiting=3))
    seated(room, ticket())
    flood = [ticket(A, TWO) for _ in range(3)]
    for each in flood:
        waits(room, each)
    instead_of = waits(room, ticket(B)).instead_of
    assert instead_of is not None
    assert instead_of.ticket is flood[2]
    assert room.waiting_calls == 3


def test_who_takes_the_place_of_another_is_counted_where_it_waits() -> None:
    room = room_of({ONE: 1, TWO: 5}, Bounds(max_running=1, max_waiting=3))
    seated(room, ticket())
    for _ in range(3):
        waits(room, ticket(A, TWO))
    assert waits(room, ticket(B, ONE)).instead_of is not None
    assert shed(room, ticket(C, ONE)).reason is Reason.FULL, "the one place at this backend is taken"


def test_a_room_without_places_turns_away_at_once() -> None:
    room = room_of({ONE: 1}, Bounds(max_waiting_per_backend=0))
    seated(room, ticket())
    assert shed(room, ticket(B)).reason is Reason.FULL


def test_those_who_wait_too_long_are_turned_away_oldest_first() -> None:
    room = room_of({ONE: 3})
    for _ in range(3):
        seated(room, ticket())
    assert room.expires_at is None
    own, other, later = ticket(A), ticket(B), ticket(B)
    waits(room, own, 10.0)
    waits(room, other, 10.5)
    waits(room, later, 11.0)
    assert room.expires_at == 12.0
    assert room.expire(11.9) == ()
    assert [(each.ticket, each.reason, each.is_own_doing) for each in room.expire(12.5)] == [
        (own, Reason.TIMED_OUT, True),
        (other, Reason.TIMED_OUT, False),
    ]
    assert room.expires_at == 13.0


def test_those_who_have_ended_share_no_slots_and_leave_nothing_behind() -> None:
    room = room_of({ONE: 4}, Bounds(max_running=2))
    for organization in (B, C):
        room.release(seated(room, ticket(organization)), 1.0)
    for _ in range(2):
        seated(room, ticket(A))
    waits(room, ticket(A))
    [answer] = room.expire(2.0)
    assert not answer.is_own_doing, "it runs two of four slots, alone; what is too small is the process"


def test_a_client_that_leaves_gives_its_place_back() -> None:
    room = room_of({ONE: 1})
    slot = seated(room, ticket())
    left, stays = ticket(B), ticket(C)
    waits(room, left)
    assert room.leave(left)
    assert not room.leave(left)
    waits(room, stays)
    assert owners(room.release(slot, 1.0)) == [stays]
    assert not room.leave(stays), "it has a slot, which is to be released"


@pytest.mark.parametrize(
    ("service_seconds", "retry_after"),
    [
        pytest.param(0.01, 1.0, id="never less than a second"),
        pytest.param(4.0, 6.0, id="three in two slots of four seconds each"),
        pytest.param(600.0, 30.0, id="never more than half a minute"),
    ],
)
def test_retry_after_is_when_the_places_will_be_free(service_seconds: float, retry_after: float) -> None:
    room = room_of({ONE: 2})
    room.release(seated(room, ticket(), 0.0), service_seconds)
    for organization in (A, A):
        seated(room, ticket(organization))
    for organization in (A, B):
        waits(room, ticket(organization))
    assert shed(room, ticket(C)).retry_after_seconds == pytest.approx(retry_after)


def test_service_times_are_those_of_late() -> None:
    room = room_of({ONE: 1}, Bounds(max_waiting_per_backend=0))
    for seconds in [20.0] + [2.0] * 50:
        room.release(seated(room, ticket(), 0.0), seconds)
    seated(room, ticket())
    assert shed(room, ticket(B)).retry_after_seconds == pytest.approx(2.0, abs=0.1)


def test_after_a_retry_the_service_time_is_that_of_the_second_backend() -> None:
    room = room_of({ONE: 1, TWO: 1}, Bounds(max_waiting_per_backend=0))
    slot = seated(room, ticket(A, ONE), 0.0)
    room.move(slot, TWO, 100.0)
    room.release(slot, 103.0)
    seated(room, ticket(A, TWO), 103.0)
    assert shed(room, ticket(B, TWO), 103.0).retry_after_seconds == 3.0


# Retries -------------------------------------------------------------------------------------------------------------


def test_a_retry_moves_to_another_backend_and_leaves_its_slot() -> None:
    room = room_of({ONE: 1, TWO: 1})
    slot, next_one = seated(room, ticket(A, ONE)), ticket(B, ONE)
    waits(room, next_one)
    assert room.has_room(TWO)
    assert owners(room.move(slot, TWO, 1.0)) == [next_one]
    assert slot.backend == TWO
    assert not room.has_room(TWO)
    assert (room.running_calls, room.in_flight(ONE), room.in_flight(TWO)) == (2, 1, 1)
    room.release(slot, 2.0)
    assert room.has_room(TWO)


def test_a_retry_gives_its_slot_to_nobody_while_the_process_is_full() -> None:
    room = room_of({ONE: 1, TWO: 1}, Bounds(max_running=1))
    slot, next_one = seated(room, ticket(A, ONE)), ticket(B, ONE)
    waits(room, next_one)
    assert room.move(slot, TWO, 1.0) == ()
    assert owners(room.release(slot, 2.0)) == [next_one]


def test_a_retry_never_exceeds_a_limit() -> None:
    room = room_of({ONE: 1, TWO: 1})
    slot, _ = seated(room, ticket(A, ONE)), seated(room, ticket(A, TWO))
    with pytest.raises(AssertionError):
        room.move(slot, TWO, 1.0)


def test_a_retry_at_the_same_backend_keeps_its_slot() -> None:
    room = room_of({ONE: 1})
    slot = seated(room, ticket())
    assert room.move(slot, ONE, 1.0) == ()
    assert room.in_flight(ONE) == 1


# Backends change -----------------------------------------------------------------------------------------------------


def test_a_raised_limit_lets_in_those_who_wait() -> None:
    room = room_of({ONE: 1}, Bounds(max_waiting_per_backend=5))
    seated(room, ticket())
    later = [ticket(B), ticket(C), ticket(D)]
    for each in later:
        waits(room, each)
    changed = room.know([backend(ONE, 3)], 1.0)
    assert (owners(changed.slots), changed.shed) == (later[:2], ())


def test_a_lowered_limit_holds_from_the_next_call_on() -> None:
    room = room_of({ONE: 3})
    slots = [seated(room, ticket()) for _ in range(3)]
    waiting = ticket(B)
    waits(room, waiting)
    assert room.know([backend(ONE, 1)], 1.0).slots == ()
    assert room.release(slots[0], 1.0) == room.release(slots[1], 1.0) == ()
    assert owners(room.release(slots[2], 1.0)) == [waiting]


def test_who_waits_for_a_backend_that_is_gone_is_told_at_once() -> None:
    room = room_of({ONE: 1, TWO: 1})
    one, two = seated(room, ticket(A, ONE)), seated(room, ticket(A, TWO))
    stuck, elsewhere = ticket(B, ONE), ticket(B, ONE, TWO)
    waits(room, stuck)
    waits(room, elsewhere)
    changed = room.know([backend(TWO, 1)], 1.0)
    assert [(each.ticket, each.reason, each.is_own_doing) for each in changed.shed] == [(stuck, Reason.GONE, False)]
    assert room.release(one, 1.0) == ()
    assert owners(room.release(two, 1.0)) == [elsewhere]
    assert shed(room, ticket(B, ONE)).reason is Reason.GONE


def test_a_backend_that_comes_back_takes_those_who_still_wait_for_it() -> None:
    room = room_of({ONE: 1, TWO: 1})
    one, _ = seated(room, ticket(A, ONE)), seated(room, ticket(A, TWO))
    both = ticket(B, ONE, TWO)
    waits(room, both)
    room.know([backend(TWO, 1)], 1.0)
    room.release(one, 1.0)
    room.know([backend(TWO, 1)], 1.0)
    assert owners(room.know([backend(ONE, 1), backend(TWO, 1)], 1.5).slots) == [both]


def test_a_backend_that_comes_back_still_counts_its_calls() -> None:
    room = room_of({ONE: 1})
    slot = seated(room, ticket())
    room.know([], 1.0)
    room.know([backend(ONE, 1)], 2.0)
    assert not room.has_room(ONE)
    room.release(slot, 3.0)
    assert room.has_room(ONE)
