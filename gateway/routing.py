"""Routing: in which order the deployments of a model are tried. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from models.catalog import Deployment

if TYPE_CHECKING:
    from gateway.breaker import Breakers
    from gateway.waiting import WaitingRoom


def route(
    deployments: Sequence[Deployment], tokens: int, room: WaitingRoom, breakers: Breakers, now: float
) -> tuple[Deployment, ...]:
    """Deployments that a call which reserves `tokens` may try, best first; none if the breakers of all are open.

    Those with a free slot come first, and among them the one whose breaker wants a probe: put behind the others it
    would never be tried again. The rest follow by outstanding work in reserved tokens, this call's included, per
    weight. The full ones are last, but they are there: the call may wait for any of them.
    """
    if len(deployments) == 1:
        return tuple(deployments) if breakers.of(deployments[0].id).admits(now) else ()
    ranked = []
    for each in deployments:
        breaker, backend = breakers.of(each.id), each.backend.id
        if breaker.admits(now):
            work = (room.tokens(backend) + tokens) / each.weight
            ranked.append((not room.has_room(backend), not breaker.is_probing(now), work, each.id, each))
    # Ids differ, so deployments themselves are never compared.
    ranked.sort()
    return tuple(each for *_, each in ranked)


def pause_seconds(deployments: Sequence[Deployment], breakers: Breakers, now: float) -> float:
    """Time until the soonest of the deployments may be tried again: for `Retry-After` where `route` finds none."""
    return min((breakers.of(each.id).pause_seconds(now) for each in deployments), default=0.0)
