"""Whose turn it is: no organization waits for longer than a round, and none gets more tokens than another for long."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from gateway.turns import MOST_TURNS_FOR_A_CALL, Turns

A, B, C = (UUID(int=number) for number in (1, 2, 3))
QUANTUM = 100
LARGEST = MOST_TURNS_FOR_A_CALL * QUANTUM


def turns_of(*calls: tuple[UUID, str, int]) -> Turns[str]:
    turns: Turns[str] = Turns(QUANTUM)
    for organization, call, tokens in calls:
        turns.add(organization, call, tokens)
    return turns


def served(turns: Turns[str]) -> str:
    names = []
    while (call := turns.serve()) is not None:
        names.append(call)
    return " ".join(names)


@pytest.mark.parametrize(
    ("calls", "order"),
    [
        pytest.param([(A, "a1", 10), (A, "a2", 10)], "a1 a2", id="one organization is served in order"),
        pytest.param(
            [(A, "a1", 100), (A, "a2", 100), (B, "b1", 100), (B, "b2", 100)],
            "a1 b1 a2 b2",
            id="calls of a quantum each take turns",
        ),
        pytest.param(
            [(A, "a1", 50), (A, "a2", 50), (A, "a3", 50), (B, "b1", 50), (B, "b2", 50)],
            "a1 a2 b1 b2 a3",
            id="a turn has as many small calls as fit",
        ),
        pytest.param(
            [(A, "a1", 10), (B, "b1", 3_000), (A, "a2", 10)], "a1 a2 b1", id="a huge first call is served in its turn"
        ),
        pytest.param(
            [(B, "b1", 300), (B, "b2", 300), *((A, f"a{n}", 100) for n in range(1, 6))],
            "b1 a1 a2 a3 b2 a4 a5",
            id="and pays for it with the next turns",
        ),
        pytest.param([(A, "a1", 0), (B, "b1", -5)], "a1 b1", id="a call without tokens costs one"),
    ],
)
def test_order(calls: list[tuple[UUID, str, int]], order: str) -> None:
    assert served(turns_of(*calls)) == order


def test_a_thousand_waiting_calls_delay_the_first_of_another_by_one_turn() -> None:
    turns = turns_of(*((A, f"a{number}", 10) for number in range(1_000)))
    turns.add(B, "b", 2_000)
    order = served(turns).split()
    assert order.index("b") == QUANTUM // 10


def test_one_huge_call_at_a_time_does_not_escape_its_debt() -> None:
    turns: Turns[int] = Turns(QUANTUM)
    tokens = Counter[UUID]()
    turns.add(A, 0, 1_000)
    for number in range(1, 5_000):
        turns.add(B, number, 10)
    for number in range(10_000, 11_000):
        call = turns.serve()
        assert call is not None
        if call == 0 or call >= 10_000:
            tokens[A] += 1_000
            turns.add(A, number, 1_000)
        else:
            tokens[B] += 10
    assert abs(tokens[A] - tokens[B]) <= 2 * QUANTUM + 1_000


def test_debts_are_forgiven_when_nobody_waits() -> None:
    turns = turns_of((A, "a1", 3_000))
    assert turns.serve() == "a1"
    for organization, call in ((A, "a2"), (B, "b1")):
        turns.add(organization, call, 10)
    assert served(turns) == "a2 b1"


def test_those_who_may_not_be_served_are_passed_over_and_keep_their_place() -> None:
    turns = turns_of((A, "a1", 10), (B, "b1", 10), (A, "a2", 10))
    assert turns.serve(lambda call: call == "a2") == "a2"
    assert turns.serve(lambda call: call == "c") is None
    assert len(turns) == 2
    assert served(turns) == "a1 b1"


@given(
    st.lists(st.integers(1, LARGEST), min_size=30, max_size=60),
    st.lists(st.integers(1, LARGEST), min_size=30, max_size=60),
    st.lists(st.tuples(st.sampled_from([C, UUID(int=4)]), st.integers(1, LARGEST)), max_size=20),
)
def test_those_who_keep_waiting_get_the_same_number_of_tokens(
    of_a: list[int], of_b: list[int], others: list[tuple[UUID, int]]
) -> None:
    turns: Turns[tuple[UUID, int, int]] = Turns(QUANTUM)
    left, tokens = {A: len(of_a), B: len(of_b)}, Counter[UUID]()
    for organization, costs in ((A, of_a), (B, of_b)):
        for number, cost in enumerate(costs):
            turns.add(organization, (organization, number, cost), cost)
    while min(left.values()):
        if others:
            organization, cost = others.pop()
            turns.add(organization, (organization, len(others), cost), cost)
        call = turns.serve()
        assert call is not None
        organization, _, cost = call
        tokens[organization] += cost
        left.update({organization: left[organization] - 1} if organization in left else {})
        assert abs(tokens[A] - tokens[B]) <= 2 * QUANTUM + max(*of_a, *of_b)


class AnyOrder(RuleBasedStateMachine):
    """Calls come, are served and leave in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns[int] = Turns(QUANTUM)
        self.waiting: dict[int, tuple[UUID, int]] = {}
        self.next = 0
        # For every call that found none of its organization and no debt: what others were served since.
        self.first: dict[int, Counter[UUID]] = {}
        self.owing: set[UUID] = set()

    @rule(organization=st.sampled_from([A, B, C]), tokens=st.one_of(st.integers(1, 150), st.integers(1, LARGEST)))
    def come(self, organization: UUID, tokens: int) -> None:
        self.next += 1
        is_first = organization not in self.owing and all(own != organization for own, _ in self.waiting.values())
        self.waiting[self.next] = (organization, tokens)
        self.turns.add(organization, self.next, tokens)
        if is_first:
            self.first[self.next] = Counter()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.waiting)))
        organization, _ = self.waiting.pop(call)
        self.turns.remove(organization, call)
        self.first.pop(call, None)
        self.forgive()

    @rule(times=st.integers(1, 6))
    def serve(self, times: int) -> None:
        for _ in range(times):
            call = self.turns.serve()
            if call is None:
                assert not self.waiting
                return
            organization, tokens = self.waiting.pop(call)
            earlier = [each for each, (own, _) in self.waiting.items() if own == organization and each < call]
            assert not earlier, "first come, first served within an organization"
            self.first.pop(call, None)
            self.owing.add(organization)
            for since in self.first.values():
                since[organization] += tokens
            # Within a round: each other organization has had one turn, its credit and one call that overdrew it.
            assert all(most < QUANTUM + LARGEST for since in self.first.values() for most in since.values())
            self.forgive()

    @precondition(lambda self: self.waiting)
    @rule(organization=st.sampled_from([A, B, C]))
    def serve_only(self, organization: UUID) -> None:
        may = {each for each, (own, _) in self.waiting.items() if own != organization}
        if may:
            # What is passed over is not owed a turn, so the bound on rounds is not kept across it.
            self.first.clear()
        call = self.turns.serve(may.__contains__)
        assert (call is None) is (not may)
        if call is not None:
            own, _ = self.waiting.pop(call)
            assert not [each for each, (other, _) in self.waiting.items() if other == own and each < call]
            self.owing.add(own)
            self.forgive()

    def forgive(self) -> None:
        assert len(self.turns) == len(self.waiting)
        if not self.waiting:
            self.owing.clear()
            self.first.clear()


TestAnyOrder = AnyOrder.TestCase
