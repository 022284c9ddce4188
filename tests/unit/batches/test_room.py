"""What lines of batches may take of backends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from gateway.batches.room import Room
from gateway.waiting import Bounds, Slot, Ticket, WaitingRoom
from models.catalog import Backend, BackendKind, Catalog, Deployment, Model, Target

ORGANIZATION = UUID(int=9)


def scene(limit: int | None, busy: int = 0, waiting: int = 0) -> tuple[Catalog, WaitingRoom]:
    """The model `m` on a backend of so many slots, of which some are busy."""
    backend = Backend(UUID(int=1), "b", BackendKind.VLLM, "http://b", max_in_flight=limit)
    deployment = Deployment(UUID(int=2), "m", backend, "x")
    catalog = Catalog({"m": Model("m", 4_096, datetime(2026, 1, 1, tzinfo=UTC), deployments=(deployment,))})
    room = WaitingRoom(Bounds())
    room.know([backend], 0.0)
    for _ in range(busy + waiting):
        room.ask(Ticket(ORGANIZATION, 10, (backend.id,)), 0.0)
    return catalog, room


@pytest.mark.parametrize(
    ("limit", "busy", "running", "begun"),
    [
        pytest.param(8, 0, 0, 4, id="half of an idle backend"),
        pytest.param(8, 6, 0, 2, id="no more than is free"),
        pytest.param(8, 8, 0, 0, id="nothing of a full one"),
        pytest.param(8, 3, 3, 1, id="lines that run count"),
        pytest.param(1, 0, 0, 1, id="a single slot while nobody has it"),
        pytest.param(1, 1, 0, 0, id="and not while somebody has"),
        pytest.param(None, 500, 0, 20, id="a backend without a limit"),
    ],
)
def test_room(limit: int | None, busy: int, running: int, begun: int) -> None:
    room = Room(*scene(limit, busy), ["m"] * running, 0.5, ORGANIZATION)
    assert sum(room.take(["m"] * 20, 20)) == begun


def test_whoever_waits_goes_first() -> None:
    catalog, waiting = scene(2, busy=2, waiting=1)
    slot = waiting.ask(Ticket(ORGANIZATION, 10, (UUID(int=1),)), 0.0)
    assert not isinstance(slot, Slot)
    assert Room(catalog, waiting, [], 1.0, ORGANIZATION).take(["m"], 1) == [False]


def test_a_model_that_is_not_there_needs_no_room_and_the_limit_holds() -> None:
    assert Room(*scene(2), [], 0.5, ORGANIZATION).take(["no", None, "m", "no", "m"], 3) == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_lines_for_an_alias_need_room_at_what_serves_it() -> None:
    catalog, waiting = scene(2, busy=2)
    catalog.models["a"] = Model("a", 4_096, datetime(2026, 1, 1, tzinfo=UTC), targets=(Target("m", 1),))
    assert Room(catalog, waiting, [], 1.0, ORGANIZATION).take(["a"], 1) == [False]


def test_a_backend_that_is_not_for_the_organization_is_no_room() -> None:
    catalog, waiting = scene(2, busy=2)
    other = Backend(UUID(int=3), "o", BackendKind.VLLM, "http://o", max_in_flight=8)
    reserved = Deployment(UUID(int=4), "m", other, "x", pool="others")
    catalog.models["m"] = replace(catalog.models["m"], deployments=(*catalog.models["m"].deployments, reserved))
    waiting.know([each.backend for each in catalog.models["m"].deployments], 0.0)
    assert Room(catalog, waiting, [], 1.0, ORGANIZATION).take(["m"], 1) == [False]
