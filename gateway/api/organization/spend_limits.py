"""Routes of spend limits: the most that the organization or a project may spend in a month, kept by the hold."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import spend_limits as stored
from billing.store.pages import AnyRow
from billing.store.spend_limits import OWN, StoredLimit
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, AdminRequest, Change
from gateway.api.organization.shapes import DeletedSetting, MonthlyAmount, cents
from models.errors import NotFound
from models.ids import uuid7
from models.money import Units

router = APIRouter()

_ORGANIZATION, _PROJECT = "organization.spend_limit", "project.spend_limit"


class Enforcement(BaseModel):
    """Whether calls are checked against a limit: always, but for a project that is archived and has none."""

    status: Literal["inactive", "enforcing"] = "enforcing"


class OwnSpendLimit(BaseModel):
    """A limit that the organization has set itself."""

    object: str
    threshold_amount: int
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    enforcement: Enforcement


@router.get("/spend_limit")
async def get_spend_limit(request: Admin) -> OwnSpendLimit:
    """The organization's own limit."""
    async with request.reading() as connection:
        return _shown(await _found(connection, request.organization_id, None), _ORGANIZATION)


@router.post("/spend_limit", response_model=OwnSpendLimit)
async def update_spend_limit(body: MonthlyAmount, request: Admin) -> Response:
    """Limit what the organization spends in a month of its calendar. Gateways know of it within seconds."""

    async def effect(change: Change) -> OwnSpendLimit:
        organization = await open_organization(change.connection, request.organization_id)
        return await _set(change, organization, body, None)

    return await request.change(effect)


@router.delete("/spend_limit", response_model=DeletedSetting)
async def delete_spend_limit(request: Admin) -> Response:
    """End the organization's own limit; one that the operator has set stays."""
    return await _deleted(request, None)


@router.get("/projects/{project_id}/spend_limit")
async def get_project_spend_limit(project_id: UUID, request: Admin) -> OwnSpendLimit:
    """The limit of a project."""
    async with request.reading() as connection:
        project = await own_project(connection, request.organization_id, project_id)
        limit = await _found(connection, request.organization_id, project_id)
    return _shown(limit, _PROJECT, is_active=project.archived_at is None)


@router.post("/projects/{project_id}/spend_limit", response_model=OwnSpendLimit)
async def update_project_spend_limit(project_id: UUID, body: MonthlyAmount, request: Admin) -> Response:
    """Limit what a project spends in a month of the organization's calendar."""

    async def effect(change: Change) -> OwnSpendLimit:
        await own_live_project(change.connection, request.organization_id, project_id)
        organization = await found_organization(change.connection, request.organization_id)
        return await _set(change, organization, body, project_id)

    return await request.change(effect)


@router.delete("/projects/{project_id}/spend_limit", response_model=DeletedSetting)
async def delete_project_spend_limit(project_id: UUID, request: Admin) -> Response:
    """End the limit of a project; one that the operator has set stays."""
    return await _deleted(request, project_id)


async def set_own_limit(
    change: Change,
    organization: AnyRow,
    amount: Units | None,
    *,
    project_id: UUID | None = None,
    api_key_id: UUID | None = None,
) -> StoredLimit | None:
    """Put a limit of the organization's own in the place of the one before; None ends that. Answers what was set."""
    if amount is None:
        await stored.remove_own_limit(change.connection, organization.id, project_id, api_key_id, change.now)
        return None
    limit = StoredLimit(
        id=uuid7(change.now),
        organization_id=organization.id,
        project_id=project_id,
        api_key_id=api_key_id,
        amount=amount,
        is_hard=True,
        alert_percents=(80, 100),
        created_at=change.now,
        timezone=organization.timezone,
        shard=organization.shard,
        currency=organization.currency,
        set_by=OWN,
    )
    await stored.set_limit(change.connection, limit)
    change.project(organization.id)
    return limit


async def _set(change: Change, organization: AnyRow, body: MonthlyAmount, project_id: UUID | None) -> OwnSpendLimit:
    limit = await set_own_limit(change, organization, body.units(organization.currency), project_id=project_id)
    assert limit is not None
    subject = f"spend_limit:{project_id or organization.id}"
    await change.audit("spend_limit.updated", subject, organization.id, project_id, **body.model_dump())
    return _shown(limit, _ORGANIZATION if project_id is None else _PROJECT)


async def _deleted(request: AdminRequest, project_id: UUID | None) -> Response:
    async def effect(change: Change) -> DeletedSetting:
        if project_id is not None:
            await own_project(change.connection, request.organization_id, project_id)
        organization = await found_organization(change.connection, request.organization_id)
        await _found(change.connection, organization.id, project_id)
        await set_own_limit(change, organization, None, project_id=project_id)
        subject = f"spend_limit:{project_id or organization.id}"
        await change.audit("spend_limit.deleted", subject, organization.id, project_id)
        return DeletedSetting(object=f"{_ORGANIZATION if project_id is None else _PROJECT}.deleted")

    return await request.change(effect)


async def _found(connection: AsyncConnection, organization_id: UUID, project_id: UUID | None) -> StoredLimit:
    limit = await stored.find_own_limit(connection, organization_id, project_id)
    if limit is None:
        raise NotFound("There is no spend limit here that the organization has set itself.")
    return limit


def _shown(limit: StoredLimit, name: str, *, is_active: bool = True) -> OwnSpendLimit:
    enforcement = Enforcement(status="enforcing" if is_active else "inactive")
    return OwnSpendLimit(object=name, threshold_amount=cents(limit.amount), enforcement=enforcement)
