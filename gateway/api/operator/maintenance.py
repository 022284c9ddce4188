"""Routes of maintenance: times at which a backend, or one model on it, takes no new calls, and after which it does."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import catalog as models
from billing.store import routing as stored
from billing.store.pages import AnyRow
from gateway.api.operator.backends import found_backend
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, BackendName, Body, ListOf, ModelId, Moment, Text, list_of
from gateway.telemetry import BACKENDS
from models.errors import Conflict, InvalidRequest, NotFound

router = APIRouter()

LONGEST: Final = timedelta(days=31)
"""What stays away for longer is disabled."""

State = Literal["planned", "running", "over", "cancelled"]


class NewMaintenance(Body):
    """When a backend (its name or id) takes no new calls; of one `model` on it, or (without one) of all.

    From `starts_at` on what runs there ends, and nothing new begins; at `ends_at` it comes back by itself.
    """

    backend: BackendName
    model: ModelId | None = None
    starts_at: Moment
    ends_at: Moment
    note: Text | None = None


class Maintenance(BaseModel):
    """A time of maintenance. `running_calls` are those that the gateway that answers still has at the backend."""

    id: UUID
    object: Literal["maintenance"] = "maintenance"
    backend: str
    model: str | None
    starts_at: datetime
    ends_at: datetime
    note: str | None
    state: State
    running_calls: int
    created_at: datetime
    cancelled_at: datetime | None


@router.post("/maintenance", response_model=Maintenance)
async def plan_maintenance(body: NewMaintenance, request: Operator) -> Response:
    """Plan maintenance. Gateways know of it within seconds."""

    async def effect(change: Change) -> Maintenance:
        connection = change.connection
        _check_times(body, change.now)
        try:
            backend = await found_backend(connection, body.backend)
        except NotFound as error:
            raise InvalidRequest(error.message, param="backend") from None
        if body.model is not None:
            deployed = (await models.find_deployments(connection, [body.model]))[body.model]
            if all(each.backend_id != backend.id for each in deployed):
                raise InvalidRequest("This model has no deployment on that backend.", param="model")
        values = {"backend_id": backend.id, "model_id": body.model, "note": body.note}
        values |= {"starts_at": body.starts_at, "ends_at": body.ends_at}
        maintenance_id = await stored.plan_maintenance(connection, change.now, values)
        change.catalog_changed = True
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("maintenance.planned", f"maintenance:{maintenance_id}", **asked)
        return await _shown(connection, maintenance_id, change.now)

    return await request.change(effect)


@router.get("/maintenance")
async def list_maintenance(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Maintenance]:
    """All maintenance, the last planned first."""
    now = request.parts.clock.now()
    async with request.reading() as connection:
        rows, more = await stored.list_maintenance(connection, asked.page(newest_first=True))
    return list_of([_maintenance(row, now) for row in rows], more)


@router.post("/maintenance/{maintenance_id}/cancel", response_model=Maintenance)
async def cancel_maintenance(maintenance_id: UUID, request: Operator) -> Response:
    """End maintenance now, or let it not begin."""

    async def effect(change: Change) -> Maintenance:
        if (await _shown(change.connection, maintenance_id, change.now)).state == "over":
            raise Conflict("This maintenance is over, so there is nothing to cancel.")
        await stored.cancel_maintenance(change.connection, maintenance_id, change.now)
        change.catalog_changed = True
        await change.audit("maintenance.cancelled", f"maintenance:{maintenance_id}")
        return await _shown(change.connection, maintenance_id, change.now)

    return await request.change(effect)


def _check_times(body: NewMaintenance, now: datetime) -> None:
    if body.ends_at <= max(body.starts_at, now):
        raise InvalidRequest("'ends_at' must be later than 'starts_at', and than now.", param="ends_at")
    if body.ends_at - body.starts_at > LONGEST:
        raise InvalidRequest(
            f"Maintenance takes {LONGEST.days} days at most. Disable what stays away for longer.", param="ends_at"
        )


async def _shown(connection: AsyncConnection, maintenance_id: UUID, now: datetime) -> Maintenance:
    row = await stored.find_maintenance(connection, maintenance_id)
    if row is None:
        raise NotFound("There is no such maintenance.")
    return _maintenance(row, now)


def _maintenance(row: AnyRow, now: datetime) -> Maintenance:
    return Maintenance(
        id=row.id,
        backend=row.backend,
        model=row.model_id,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        note=row.note,
        state=_state(row, now),
        running_calls=sum(gauge.in_flight for gauge in BACKENDS.read() if gauge.backend == row.backend),
        created_at=row.created_at,
        cancelled_at=row.cancelled_at,
    )


def _state(row: AnyRow, now: datetime) -> State:
    if row.cancelled_at is not None:
        return "cancelled"
    if now < row.starts_at:
        return "planned"
    return "running" if now < row.ends_at else "over"
