"""Routes of spend alerts: amounts at which the organization wants to be told what a month has cost."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import spend_alerts as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import open_organization
from gateway.api.operator.shapes import Body, ListOf, Printable, list_of
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, AdminRequest, Change
from gateway.api.organization.shapes import AskedBothWays, Deleted, Email, MonthlyAmount, cents
from models.errors import Conflict, InvalidRequest, NotFound

router = APIRouter()

MOST_ALERTS: Final = 1_000
"""Of one organization: each is looked at with every look for alerts."""

_PROJECT = "/projects/{project_id}/spend_alerts"


class NotificationChannel(Body):
    """Who is to be told. Tollgate sends no mail: it hands these to the receivers of its alerts."""

    type: Literal["email"]
    recipients: Annotated[list[Email], Field(min_length=1, max_length=50)]
    subject_prefix: Annotated[str, StringConstraints(max_length=100), Printable] | None = None


class SpendAlertBody(MonthlyAmount):
    """An alert, to be created or to take the place of one."""

    notification_channel: NotificationChannel


class OwnSpendAlert(BaseModel):
    """An alert of the organization or of a project."""

    id: str
    object: Literal["organization.spend_alert", "project.spend_alert"]
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    notification_channel: NotificationChannel

    @classmethod
    def of(cls, row: AnyRow) -> OwnSpendAlert:
        """The answer for a row."""
        channel = NotificationChannel(type="email", recipients=row.recipients, subject_prefix=row.subject_prefix)
        return cls(
            id=str(row.id),
            object="organization.spend_alert" if row.project_id is None else "project.spend_alert",
            threshold_amount=cents(row.amount),
            notification_channel=channel,
        )


@router.post("/spend_alerts", response_model=OwnSpendAlert)
async def create_spend_alert(body: SpendAlertBody, request: Admin) -> Response:
    """Be told when a month of the organization has come to an amount."""
    return await _created(request, None, body)


@router.get("/spend_alerts")
async def list_spend_alerts(asked: Annotated[AskedBothWays, Query()], request: Admin) -> ListOf[OwnSpendAlert]:
    """The alerts of the organization."""
    return await _listed(request, None, asked)


@router.get("/spend_alerts/{alert_id}")
async def get_spend_alert(alert_id: UUID, request: Admin) -> OwnSpendAlert:
    """One alert of the organization."""
    return await _one(request, None, alert_id)


@router.post("/spend_alerts/{alert_id}", response_model=OwnSpendAlert)
async def update_spend_alert(alert_id: UUID, body: SpendAlertBody, request: Admin) -> Response:
    """Put another amount and other recipients in the place of an alert's."""
    return await _updated(request, None, alert_id, body)


@router.delete("/spend_alerts/{alert_id}", response_model=Deleted)
async def delete_spend_alert(alert_id: UUID, request: Admin) -> Response:
    """End an alert."""
    return await _deleted(request, None, alert_id)


@router.post(_PROJECT, response_model=OwnSpendAlert)
async def create_project_spend_alert(project_id: UUID, body: SpendAlertBody, request: Admin) -> Response:
    """Be told when a month of a project has come to an amount."""
    return await _created(request, project_id, body)


@router.get(_PROJECT)
async def list_project_spend_alerts(
    project_id: UUID, asked: Annotated[AskedBothWays, Query()], request: Admin
) -> ListOf[OwnSpendAlert]:
    """The alerts of a project."""
    return await _listed(request, project_id, asked)


@router.get(_PROJECT + "/{alert_id}")
async def get_project_spend_alert(project_id: UUID, alert_id: UUID, request: Admin) -> OwnSpendAlert:
    """One alert of a project."""
    return await _one(request, project_id, alert_id)


@router.post(_PROJECT + "/{alert_id}", response_model=OwnSpendAlert)
async def update_project_spend_alert(
    project_id: UUID, alert_id: UUID, body: SpendAlertBody, request: Admin
) -> Response:
    """Put another amount and other recipients in the place of an alert's."""
    return await _updated(request, project_id, alert_id, body)


@router.delete(_PROJECT + "/{alert_id}", response_model=Deleted)
async def delete_project_spend_alert(project_id: UUID, alert_id: UUID, request: Admin) -> Response:
    """End an alert of a project."""
    return await _deleted(request, project_id, alert_id)


async def _created(request: AdminRequest, project_id: UUID | None, body: SpendAlertBody) -> Response:
    async def effect(change: Change) -> OwnSpendAlert:
        organization = await _open(change, request, project_id)
        if await stored.count_spend_alerts(change.connection, organization.id) >= MOST_ALERTS:
            raise Conflict(f"An organization has at most {MOST_ALERTS} spend alerts. Delete one first.")
        columns = _columns(body, organization.currency)
        owner = {"organization_id": organization.id, "project_id": project_id}
        row = await stored.create_spend_alert(change.connection, change.now, columns | owner)
        await _audit(change, "spend_alert.created", row, threshold_amount=body.threshold_amount)
        return OwnSpendAlert.of(row)

    return await request.change(effect)


async def _listed(request: AdminRequest, project_id: UUID | None, asked: AskedBothWays) -> ListOf[OwnSpendAlert]:
    async with request.reading() as connection:
        await _check_project(connection, request, project_id)
        page = asked.page()
        rows, more = await stored.list_spend_alerts(connection, request.organization_id, project_id, page)
    return list_of([OwnSpendAlert.of(row) for row in rows], more)


async def _one(request: AdminRequest, project_id: UUID | None, alert_id: UUID) -> OwnSpendAlert:
    async with request.reading() as connection:
        await _check_project(connection, request, project_id)
        return OwnSpendAlert.of(await _found(connection, request, project_id, alert_id))


async def _updated(request: AdminRequest, project_id: UUID | None, alert_id: UUID, body: SpendAlertBody) -> Response:
    async def effect(change: Change) -> OwnSpendAlert:
        organization = await _open(change, request, project_id)
        await _found(change.connection, request, project_id, alert_id)
        columns = _columns(body, organization.currency)
        row = await stored.update_spend_alert(change.connection, alert_id, columns)
        await _audit(change, "spend_alert.updated", row, threshold_amount=body.threshold_amount)
        return OwnSpendAlert.of(row)

    return await request.change(effect)


async def _deleted(request: AdminRequest, project_id: UUID | None, alert_id: UUID) -> Response:
    async def effect(change: Change) -> Deleted:
        await _check_project(change.connection, request, project_id)
        row = await _found(change.connection, request, project_id, alert_id)
        await stored.update_spend_alert(change.connection, alert_id, {"removed_at": change.now})
        await _audit(change, "spend_alert.deleted", row)
        return Deleted(id=str(alert_id), object=f"{OwnSpendAlert.of(row).object}.deleted")

    return await request.change(effect)


async def _open(change: Change, request: AdminRequest, project_id: UUID | None) -> AnyRow:
    """The organization, locked, after a look at its project where there is one."""
    if project_id is not None:
        await own_live_project(change.connection, request.organization_id, project_id)
    return await open_organization(change.connection, request.organization_id)


async def _check_project(connection: AsyncConnection, request: AdminRequest, project_id: UUID | None) -> None:
    if project_id is not None:
        await own_project(connection, request.organization_id, project_id)


async def _found(connection: AsyncConnection, request: AdminRequest, project_id: UUID | None, alert_id: UUID) -> AnyRow:
    row = await stored.find_spend_alert(connection, request.organization_id, project_id, alert_id)
    if row is None:
        raise NotFound("There is no such spend alert.")
    return row


def _columns(body: SpendAlertBody, currency: str) -> dict[str, Any]:
    amount = body.units(currency)
    if not amount:
        raise InvalidRequest("An alert is given at an amount above zero.", param="threshold_amount")
    channel = body.notification_channel
    return {"amount": amount, "recipients": channel.recipients, "subject_prefix": channel.subject_prefix}


async def _audit(change: Change, action: str, row: AnyRow, **detail: Any) -> None:
    await change.audit(action, f"spend_alert:{row.id}", row.organization_id, row.project_id, **detail)
