"""In which order the deployments of a model are tried."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import FAILURES_IN_A_ROW, SLOW_START_SECONDS, Breakers, State
from gateway.routing import MUCH_MORE, caller_key, pause_seconds, prefix_of, route, targets_for
from gateway.waiting import WaitingRoom
from models.catalog import Deployment, Target
from tests.unit.overload.nouns import ONE, THREE, TWO, backend, room_of, seated, ticket

LIMITS: dict[UUID, int | None] = {ONE: 2, TWO: 2, THREE: 2}


def on(at: UUID, weight: int = 1, priority: int = 0) -> Deployment:
    return Deployment(UUID(int=100 + at.int), "m", backend(at, 2), "m", weight, priority)


def fail(breakers: Breakers, at: UUID, now: float) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        passage = breakers.of(on(at).id).admit(now)
        assert passage is not None
        passage.failed(now)


def tried(
    room: WaitingRoom, breakers: Breakers, *deployments: Deployment, now: float = 0.0, prefix: int | None = None
) -> list[UUID]:
    return [each.backend.id for each in route(deployments, 100, room, breakers, now, prefix)]


@pytest.mark.parametrize(
    ("running", "weights", "order"),
    [
        pytest.param([], [1, 1, 1], [ONE, TWO, THREE], id="among equals the order is always the same"),
        pytest.param([(ONE, 10)], [1, 1, 1], [TWO, THREE, ONE], id="least outstanding work first"),
        pytest.param([(ONE, 900), (TWO, 50), (TWO, 50)], [1, 1, 1], [THREE, ONE, TWO], id="one that is full is last"),
        pytest.param(
            [(ONE, 900), (TWO, 300), (THREE, 600)], [1, 1, 1], [TWO, THREE, ONE], id="tokens count, not calls"
        ),
        pytest.param([], [1, 4, 2], [TWO, THREE, ONE], id="an idle model begins with the heaviest"),
        pytest.param([(TWO, 300)], [1, 4, 2], [THREE, ONE, TWO], id="four times the weight takes four times the work"),
    ],
)
def test_order(running: list[tuple[UUID, int]], weights: list[int], order: list[UUID]) -> None:
    room = room_of(LIMITS)
    for at, tokens in running:
        seated(room, ticket(UUID(int=1), at, tokens=tokens))
    deployments = [on(at, weight) for at, weight in zip((ONE, TWO, THREE), weights, strict=True)]
    assert tried(room, Breakers(), *deployments) == order


def test_an_open_deployment_is_left_out() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    fail(breakers, ONE, 0.0)
    assert tried(room, breakers, on(ONE), on(TWO), now=4.9) == [TWO]


def test_one_that_is_due_for_a_probe_comes_first() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    fail(breakers, TWO, 0.0)
    seated(room, ticket(UUID(int=1), TWO, tokens=5_000))
    assert tried(room, breakers, on(ONE), on(TWO), now=5.0) == [TWO, ONE]
    breakers.of(on(TWO).id).admit(5.0)
    assert tried(room, breakers, on(ONE), on(TWO), now=5.0) == [ONE], "the probe is under way"


def test_where_all_are_open_there_is_no_route_but_a_time() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    fail(breakers, ONE, 0.0)
    fail(breakers, TWO, 2.0)
    both = (on(ONE), on(TWO))
    assert tried(room, breakers, *both, now=3.0) == []
    assert pause_seconds(both, breakers, 3.0) == 2.0


def test_a_single_deployment_needs_no_comparison() -> None:
    room, breakers = room_of({ONE: 0}), Breakers()
    assert tried(room, breakers, on(ONE)) == [ONE]
    fail(breakers, ONE, 0.0)
    assert tried(room, breakers, on(ONE)) == []


# Classes -------------------------------------------------------------------------------------------------------------


def test_a_lower_class_is_used_only_where_no_higher_one_is_able() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    first, second = on(ONE), on(TWO, weight=1_000, priority=1)
    seated(room, ticket(UUID(int=1), ONE, tokens=90_000))
    assert tried(room, breakers, second, first) == [ONE, TWO], "loaded, but able"
    slot = seated(room, ticket(UUID(int=1), ONE))
    assert tried(room, breakers, second, first) == [TWO, ONE], "full"
    room.release(slot, 0.0)
    fail(breakers, ONE, 0.0)
    assert tried(room, breakers, second, first) == [TWO], "failing"
    assert tried(room, breakers, second, first, now=6.0) == [ONE, TWO], "due for a probe"


def test_a_probe_of_a_lower_class_waits_until_that_class_is_needed() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    fail(breakers, TWO, 0.0)
    assert tried(room, breakers, on(ONE), on(TWO, priority=1), now=6.0) == [ONE, TWO]


# Slow start and suspension -------------------------------------------------------------------------------------------


def test_one_that_is_new_gets_its_share_little_by_little() -> None:
    room, breakers = room_of(dict.fromkeys((ONE, TWO, THREE))), Breakers()
    breakers.of(on(TWO).id).start_slowly(0.0)
    seated(room, ticket(UUID(int=1), ONE, tokens=300))
    assert tried(room, breakers, on(ONE), on(TWO), now=0.0) == [ONE, TWO], "a tenth of its weight: 1,000 against 400"
    assert tried(room, breakers, on(ONE), on(TWO), now=SLOW_START_SECONDS / 2) == [TWO, ONE], "200 against 400"
    assert breakers.of(on(TWO).id).share(SLOW_START_SECONDS) == 1.0


def test_one_that_recovers_starts_slowly() -> None:
    breakers = Breakers()
    fail(breakers, ONE, 0.0)
    breaker = breakers.of(on(ONE).id)
    passage = breaker.admit(5.0)
    assert passage is not None
    passage.succeeded(6.0)
    assert breaker.share(6.0) < 0.2
    assert breaker.share(6.0 + SLOW_START_SECONDS) == 1.0


def test_one_that_is_suspended_takes_nothing_until_it_comes_back() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    breaker = breakers.of(on(ONE).id)
    passage = breaker.admit(0.0)
    assert passage is not None
    for _ in range(2):
        breaker.suspend(back_at=20.0)
    assert tried(room, breakers, on(ONE), now=1_000.0) == []
    assert tried(room, breakers, on(ONE), on(TWO), now=1_000.0) == [TWO]
    assert breaker.state(0.0) is State.OPEN
    assert pause_seconds([on(ONE)], breakers, 5.0) == 15.0
    passage.failed(1.0)
    breaker.resume(30.0)
    assert breaker.state(30.0) is State.CLOSED, "what ran before says nothing about now"
    assert breaker.share(30.0) < 0.2
    assert tried(room, breakers, on(ONE), now=30.0) == [ONE]


def test_to_resume_one_that_is_not_suspended_changes_nothing() -> None:
    breakers = Breakers()
    fail(breakers, ONE, 0.0)
    breakers.of(on(ONE).id).resume(1.0)
    assert breakers.of(on(ONE).id).state(1.0) is State.OPEN


# Conversations -------------------------------------------------------------------------------------------------------


def test_a_conversation_has_one_favourite_and_many_have_all() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    three = on(ONE), on(TWO), on(THREE)
    favourites = [tried(room, breakers, *three, prefix=prefix)[0] for prefix in range(3_000)]
    assert favourites == [tried(room, breakers, *three, prefix=prefix)[0] for prefix in range(3_000)]
    for at in (ONE, TWO, THREE):
        assert 880 < favourites.count(at) < 1_120


def test_favourites_share_by_weight() -> None:
    room, breakers = room_of(LIMITS), Breakers()
    # As much work for each as its weight, so that neither is loaded more than the other.
    seated(room, ticket(UUID(int=1), TWO, tokens=200))
    favourites = [tried(room, breakers, on(ONE, 1), on(TWO, 3), prefix=prefix)[0] for prefix in range(4_000)]
    assert 2_870 < favourites.count(TWO) < 3_130


def test_a_favourite_is_given_up_where_it_is_much_more_loaded() -> None:
    prefix = next(
        one for one in range(100) if tried(room_of(LIMITS), Breakers(), on(ONE), on(TWO), prefix=one)[0] == TWO
    )
    room, breakers = room_of(dict.fromkeys(LIMITS)), Breakers()
    seated(room, ticket(UUID(int=1), TWO, tokens=(MUCH_MORE - 1) * 100))
    assert tried(room, breakers, on(ONE), on(TWO), prefix=prefix) == [TWO, ONE]
    seated(room, ticket(UUID(int=1), TWO, tokens=1))
    assert tried(room, breakers, on(ONE), on(TWO), prefix=prefix) == [ONE, TWO]


def test_a_favourite_neither_waits_nor_keeps_a_probe_away_nor_leaves_its_class() -> None:
    prefix = next(
        one for one in range(100) if tried(room_of(LIMITS), Breakers(), on(ONE), on(TWO), prefix=one)[0] == TWO
    )
    full = room_of(LIMITS | {TWO: 1})
    seated(full, ticket(UUID(int=1), TWO, tokens=1))
    assert tried(full, Breakers(), on(ONE), on(TWO), prefix=prefix) == [ONE, TWO]
    breakers = Breakers()
    fail(breakers, ONE, 0.0)
    assert tried(room_of(LIMITS), breakers, on(ONE), on(TWO), now=6.0, prefix=prefix) == [ONE, TWO]
    assert tried(room_of(LIMITS), Breakers(), on(ONE), on(TWO, priority=1), prefix=prefix) == [ONE, TWO]


@given(prefix=st.integers(0, 2**32 - 1), gone=st.sampled_from([ONE, TWO, THREE]))
def test_who_goes_takes_only_its_own_conversations_away(prefix: int, gone: UUID) -> None:
    room, breakers = room_of(LIMITS), Breakers()
    before = tried(room, breakers, on(ONE), on(TWO), on(THREE), prefix=prefix)[0]
    rest = [on(at) for at in (ONE, TWO, THREE) if at != gone]
    after = tried(room, breakers, *rest, prefix=prefix)[0]
    assert after == before or before == gone


@given(
    loads=st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 9), st.integers(0, 2)), min_size=2, max_size=3),
    prefix=st.none() | st.integers(0, 2**32 - 1),
)
def test_the_order_is_one_of_all_that_are_able(loads: list[tuple[int, int, int]], prefix: int | None) -> None:
    room, breakers = room_of(LIMITS), Breakers()
    deployments = []
    for at, (tokens, weight, priority) in zip((ONE, TWO, THREE), loads, strict=False):
        seated(room, ticket(UUID(int=1), at, tokens=tokens))
        deployments.append(on(at, weight, priority))
    ordered = route(deployments, 100, room, breakers, 0.0, prefix)
    assert sorted(each.id for each in ordered) == sorted(each.id for each in deployments)
    assert [each.priority for each in ordered] == sorted(each.priority for each in ordered)
    work = {each.id: (room.tokens(each.backend.id) + 100) / each.weight for each in ordered}
    best = [each for each in ordered if each.priority == ordered[0].priority]
    assert work[best[0].id] <= MUCH_MORE * min(work[each.id] for each in best)


def said(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def test_each_call_of_a_conversation_begins_alike() -> None:
    begin = ("system", "You are a pilot."), ("user", "What is a wing?")
    first = prefix_of(said(*begin))
    assert first is not None
    assert prefix_of(said(*begin, ("assistant", "A plane."), ("user", "And a tail?"))) == first
    assert prefix_of(said(begin[0], ("user", "What is a wheel?"))) != first
    assert prefix_of(said(("system", "You are a cook."), begin[1])) != first
    parts = [{"type": "text", "text": "What is a wing?"}]
    assert prefix_of(said(begin[0], ("user", parts))) == prefix_of(said(begin[0], ("user", parts), ("user", "x")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"prompt": "a" * 600}, {"prompt": "a" * 512 + "b" * 88}, id="only the beginning counts"),
        pytest.param({"prompt": ["once", "twice"]}, {"prompt": ["once", "thrice"]}, id="the first of several prompts"),
        pytest.param({"input": "hi", "temperature": 1}, {"input": "hi"}, id="parameters do not count"),
    ],
)
def test_equal_beginnings(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert prefix_of(one) == prefix_of(other) is not None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"prompt": ""},
        {"messages": [{"role": "user"}]},
        {"input": {}},
        {"prompt": [[[[[["x"]]]]]]},
    ],
)
def test_where_there_is_no_text_there_is_no_favourite(body: dict[str, Any]) -> None:
    assert prefix_of(body) is None


def test_tokens_and_odd_text_have_a_beginning_too() -> None:
    assert prefix_of({"prompt": [1, 2, 3]}) == prefix_of({"prompt": [[1, 2, 3]]}) is not None
    assert prefix_of({"prompt": "\ud800"}) is not None


# Aliases -------------------------------------------------------------------------------------------------------------

CALLERS = range(20_000)


def shares(*weights: int) -> list[str]:
    targets = [Target(f"v{number}", weight) for number, weight in enumerate(weights)]
    return [targets_for(targets, caller)[0] for caller in CALLERS]


@pytest.mark.parametrize("weights", [(90, 10), (50, 50), (1, 99), (1, 2, 3)])
def test_callers_share_by_weight(weights: tuple[int, ...]) -> None:
    found = shares(*weights)
    for number, weight in enumerate(weights):
        expected = len(CALLERS) * weight / sum(weights)
        # Five standard deviations of a binomial count.
        spread = 5 * (expected * (1 - weight / sum(weights))) ** 0.5
        assert abs(found.count(f"v{number}") - expected) < spread


def test_more_weight_moves_callers_to_the_new_version_only_and_back_to_where_they_were() -> None:
    little, half, little_again = shares(90, 10), shares(50, 50), shares(90, 10)
    assert all(after == "v1" for before, after in zip(little, half, strict=True) if before == "v1")
    assert little == little_again
    assert set(shares(0, 1)) == {"v1"}


def test_whoever_moves_does_not_move_between_the_others() -> None:
    before, after = shares(3, 3, 1), shares(3, 3, 6)
    assert all(new in (old, "v2") for old, new in zip(before, after, strict=True))


def test_a_target_without_weight_is_none() -> None:
    assert targets_for([Target("a", 0), Target("b", 5), Target("c", 0)], 7) == ("b",)
    assert targets_for([Target("a", 1)], 7) == ("a",)


def test_a_caller_is_its_end_user_in_its_organization_else_its_key() -> None:
    a, b, key, other = (UUID(int=number) for number in range(4))
    assert caller_key(a, key, "ann") == caller_key(a, other, "ann")
    assert caller_key(a, key, "ann") != caller_key(b, key, "ann")
    assert caller_key(a, key, None) == caller_key(b, key, None) != caller_key(a, other, None)
