"""Backends, organizations and calls that the tests of overload control share."""

from __future__ import annotations

from uuid import UUID

from gateway.waiting import Bounds, Slot, Ticket, Waiting, WaitingRoom
from models.catalog import Backend, BackendKind

A, B, C, D = (UUID(int=number) for number in range(1, 5))
"""Organizations."""
ONE, TWO, THREE = (UUID(int=number) for number in range(11, 14))
"""Backends."""


def backend(id: UUID, max_in_flight: int | None) -> Backend:
    return Backend(id, f"b{id.int}", BackendKind.VLLM, "http://backend:8000", max_in_flight=max_in_flight)


def room_of(limits: dict[UUID, int | None], bounds: Bounds | None = None, now: float = 0.0) -> WaitingRoom:
    room = WaitingRoom(bounds or Bounds())
    room.know([backend(id, limit) for id, limit in limits.items()], now)
    return room


def ticket(organization: UUID = A, *backends: UUID, tokens: int = 1_000) -> Ticket:
    return Ticket(organization, tokens, backends or (ONE,))


def seated(room: WaitingRoom, wanted: Ticket, now: float = 0.0) -> Slot:
    answer = room.ask(wanted, now)
    assert isinstance(answer, Slot)
    return answer


def waits(room: WaitingRoom, wanted: Ticket, now: float = 0.0) -> Waiting:
    answer = room.ask(wanted, now)
    assert isinstance(answer, Waiting)
    return answer
