"""Routes of alerts and of those who receive them, and of what payment providers told."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response

from billing.store import alerts as stored
from billing.store.pages import AnyRow
from billing.store.webhook_events import list_events
from gateway import destinations
from gateway.api.operator.organizations import open_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, ListOf, list_of
from gateway.keys import seal
from models.alert import AlertKind
from models.errors import NotFound
from models.payment import PaymentEventState, PaymentKind

router = APIRouter()

_PREFIX: Final = "tg_hook_"
_SECRET_BYTES: Final = 28
"""In hexadecimal digits after the prefix these are 64 characters: as many as `seal` covers."""


class NewEndpoint(Body):
    """Where to send alerts: those of one organization, or (without one) everybody's and the operator's own."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=destinations.LONGEST_URL)]
    organization_id: UUID | None = None
    events: Annotated[list[AlertKind], Field(min_length=1, max_length=20)] = Field(
        default_factory=lambda: list(AlertKind)
    )


class Endpoint(BaseModel):
    """A receiver of alerts."""

    id: UUID
    object: Literal["alert_endpoint"] = "alert_endpoint"
    url: str
    organization_id: UUID | None
    events: list[AlertKind]
    created_at: datetime
    removed_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> Endpoint:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("id", "url", "organization_id", "created_at", "removed_at")}
        return cls(**plain, events=[AlertKind(kind) for kind in row.kinds])


class CreatedEndpoint(Endpoint):
    """A new receiver, with the secret that its alerts are signed with; it is shown this once."""

    value: str


class Delivery(BaseModel):
    """How an alert fared with one receiver: delivered, still tried (`next_at`), or given up (neither)."""

    endpoint_id: UUID
    attempts: int
    next_at: datetime | None
    delivered_at: datetime | None
    last_status: int | None
    last_error: str | None

    @classmethod
    def of(cls, row: AnyRow) -> Delivery:
        """The answer for a row."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class OwnAlert(BaseModel):
    """An alert: what happened, and in `data` the figures of that moment."""

    id: UUID
    object: Literal["alert"] = "alert"
    event: AlertKind
    created_at: datetime
    organization_id: UUID | None
    data: dict[str, Any]
    ended_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> OwnAlert:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("id", "created_at", "organization_id", "ended_at")}
        return cls(**plain, event=AlertKind(row.kind), data=row.detail)


class AskedAlerts(AskedById):
    """Which alerts to list."""

    event: AlertKind | None = None


class Alert(OwnAlert):
    """An alert with its deliveries."""

    deliveries: list[Delivery]


class AskedOfOrganization(AskedAlerts):
    """Which alerts to list."""

    organization_id: UUID | None = None


class AskedEndpoints(AskedById):
    """Which receivers to list."""

    organization_id: UUID | None = None


class WebhookEvent(BaseModel):
    """An event of a payment provider; `reason` says why it was not booked, or with which other event it was."""

    id: UUID
    object: Literal["webhook_event"] = "webhook_event"
    provider: str
    event_id: str
    received_at: datetime
    kind: PaymentKind
    state: PaymentEventState
    reason: str | None
    reference: str
    organization_id: UUID | None
    amount_minor: int | None
    currency: str | None
    payload: dict[str, Any]

    @classmethod
    def of(cls, row: AnyRow) -> WebhookEvent:
        """The answer for a row."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields if name != "object"})


class AskedEvents(AskedById):
    """Which events to list."""

    state: PaymentEventState | None = None
    organization_id: UUID | None = None


@router.post("/alert_endpoints", response_model=CreatedEndpoint)
async def create_alert_endpoint(body: NewEndpoint, request: Operator) -> Response:
    """Send alerts to an https URL. `value` signs them: keep it, it is not shown again."""
    await destinations.check(body.url)

    async def effect(change: Change) -> CreatedEndpoint:
        if body.organization_id is not None:
            await open_organization(change.connection, body.organization_id)
        value = _PREFIX + secrets.token_hex(_SECRET_BYTES)
        columns = {
            "organization_id": body.organization_id,
            "url": body.url,
            "sealed_secret": seal(value, change.pepper),
            "kinds": sorted({event.value for event in body.events}),
        }
        row = await stored.create_endpoint(change.connection, change.now, columns)
        # Without the address, in which people put secrets.
        await change.audit("alert_endpoint.created", f"alert_endpoint:{row.id}", body.organization_id)
        return CreatedEndpoint(**Endpoint.of(row).model_dump(), value=value)

    return await request.change(effect)


@router.get("/alert_endpoints")
async def list_alert_endpoints(asked: Annotated[AskedEndpoints, Query()], request: Operator) -> ListOf[Endpoint]:
    """The receivers of alerts, oldest first, with those that were removed."""
    async with request.reading() as connection:
        rows, more = await stored.list_endpoints(connection, asked.page(), asked.organization_id)
    return list_of([Endpoint.of(row) for row in rows], more)


@router.post("/alert_endpoints/{endpoint_id}/remove", response_model=Endpoint)
async def remove_alert_endpoint(endpoint_id: UUID, request: Operator) -> Response:
    """Send nothing there any more, also not what waits."""

    async def effect(change: Change) -> Endpoint:
        row = await stored.find_endpoint(change.connection, endpoint_id)
        if row is None:
            raise NotFound("There is no such alert endpoint.")
        if row.removed_at is None:
            row = await stored.remove_endpoint(change.connection, endpoint_id, change.now)
            await change.audit("alert_endpoint.removed", f"alert_endpoint:{endpoint_id}", row.organization_id)
        return Endpoint.of(row)

    return await request.change(effect)


@router.get("/alerts")
async def list_all_alerts(asked: Annotated[AskedOfOrganization, Query()], request: Operator) -> ListOf[Alert]:
    """Alerts of everybody and the operator's own, newest first, with their deliveries."""
    async with request.reading() as connection:
        page = asked.page(newest_first=True)
        rows, more = await stored.list_alerts(connection, page, asked.organization_id, asked.event)
        deliveries = await stored.deliveries_of(connection, [row.id for row in rows])
    shown = [
        Alert(
            **OwnAlert.of(row).model_dump(),
            deliveries=[Delivery.of(delivery) for delivery in deliveries.get(row.id, ())],
        )
        for row in rows
    ]
    return list_of(shown, more)


@router.get("/webhook_events")
async def list_webhook_events(asked: Annotated[AskedEvents, Query()], request: Operator) -> ListOf[WebhookEvent]:
    """What payment providers told, newest first; those with the state `unbooked` wait for a person."""
    async with request.reading() as connection:
        page = asked.page(newest_first=True)
        rows, more = await list_events(connection, page, asked.state, asked.organization_id)
    return list_of([WebhookEvent.of(row) for row in rows], more)
