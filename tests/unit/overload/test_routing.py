"""In which order the deployments of a model are tried."""

from __future__ import annotations

from uuid import UUID

import pytest

from gateway.breaker import FAILURES_IN_A_ROW, Breakers
from gateway.routing import pause_seconds, route
from gateway.waiting import WaitingRoom
from models.catalog import Deployment
from tests.unit.overload.nouns import ONE, THREE, TWO, backend, room_of, seated, ticket

LIMITS: dict[UUID, int | None] = {ONE: 2, TWO: 2, THREE: 2}


def on(at: UUID, weight: int = 1) -> Deployment:
    return Deployment(UUID(int=100 + at.int), "m", backend(at, 2), "m", weight)


def fail(breakers: Breakers, at: UUID, now: float) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        passage = breakers.of(on(at).id).admit(now)
        assert passage is not None
        passage.failed(now)


def tried(room: WaitingRoom, breakers: Breakers, *deployments: Deployment, now: float = 0.0) -> list[UUID]:
    return [each.backend.id for each in route(deployments, 100, room, breakers, now)]


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
