"""Routing: in which order the deployments of a model are tried. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from models.catalog import Deployment


def order(deployments: tuple[Deployment, ...], in_flight: Mapping[UUID, int]) -> tuple[Deployment, ...]:
    """Deployments with room, least outstanding work per weight first; `in_flight` counts calls by backend id."""
    with_room = [
        deployment
        for deployment in deployments
        if deployment.backend.max_in_flight is None
        or in_flight.get(deployment.backend.id, 0) < deployment.backend.max_in_flight
    ]
    if len(with_room) < 2:
        return tuple(with_room)
    return tuple(sorted(with_room, key=lambda d: (in_flight.get(d.backend.id, 0) / d.weight, d.id)))
