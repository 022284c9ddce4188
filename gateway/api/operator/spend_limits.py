"""Routes of spend limits: the most that an organization, a project or a key may spend in a month."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.months import month_of
from billing.store import keys as stored_keys
from billing.store import spend_limits as stored
from billing.store.spend_limits import StoredLimit
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.operator.projects import live_project
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Body, ListOf, Money, list_of
from models.errors import InvalidRequest, NotFound
from models.ids import uuid7
from models.tables import api_key

router = APIRouter()

Percent = Annotated[int, Field(ge=1, le=1_000)]


class NewSpendLimit(Body):
    """A limit on what is spent in a calendar month of the organization, in its time zone.

    Of one project or one key, or (with neither) of the whole organization; it takes the place of the one before. A
    hard limit refuses the calls that could pass it; one that is not hard only alerts.
    """

    amount: Money
    project_id: UUID | None = None
    api_key_id: UUID | None = None
    is_hard: bool = True
    alert_percents: Annotated[list[Percent], Field(max_length=10)] = Field(default_factory=lambda: [80, 100])


class SpendLimit(BaseModel):
    """A spend limit in force, with what is booked against it this month."""

    id: UUID
    object: Literal["spend_limit"] = "spend_limit"
    organization_id: UUID
    project_id: UUID | None
    api_key_id: UUID | None
    amount: Money
    is_hard: bool
    set_by: Literal["operator", "organization"]
    alert_percents: list[int]
    month: str
    spent: Money
    created_at: datetime


@router.post("/organizations/{organization_id}/spend_limits", response_model=SpendLimit)
async def set_spend_limit(organization_id: UUID, body: NewSpendLimit, request: Operator) -> Response:
    """Limit what may be spent in a month. Gateways know of it within seconds."""

    async def effect(change: Change) -> SpendLimit:
        organization = await open_organization(change.connection, organization_id)
        key_id = await _check_scope(change.connection, organization_id, body)
        amount = body.amount.units(organization.currency, "amount")
        limit = StoredLimit(
            id=uuid7(change.now),
            organization_id=organization_id,
            project_id=body.project_id,
            api_key_id=key_id,
            amount=amount,
            is_hard=body.is_hard,
            alert_percents=tuple(sorted(set(body.alert_percents))),
            created_at=change.now,
            timezone=organization.timezone,
            shard=organization.shard,
            currency=organization.currency,
        )
        await stored.set_limit(change.connection, limit)
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("spend_limit.set", f"spend_limit:{limit.id}", organization_id, **asked)
        change.project(organization_id)
        return await _shown(change.connection, limit, organization.currency, change.now)

    return await request.change(effect)


@router.get("/organizations/{organization_id}/spend_limits")
async def list_spend_limits(organization_id: UUID, request: Operator) -> ListOf[SpendLimit]:
    """The spend limits of an organization that are in force, oldest first."""
    now = request.parts.clock.now()
    async with request.reading() as connection:
        organization = await found_organization(connection, organization_id)
        limits = await stored.limits_of(connection, organization_id)
        return list_of([await _shown(connection, limit, organization.currency, now) for limit in limits], False)


@router.post("/organizations/{organization_id}/spend_limits/{limit_id}/remove", response_model=SpendLimit)
async def remove_spend_limit(organization_id: UUID, limit_id: UUID, request: Operator) -> Response:
    """End a spend limit."""

    async def effect(change: Change) -> SpendLimit:
        organization = await found_organization(change.connection, organization_id)
        for limit in await stored.limits_of(change.connection, organization_id):
            if limit.id == limit_id:
                await stored.remove_limit(change.connection, limit_id, change.now)
                await change.audit("spend_limit.removed", f"spend_limit:{limit_id}", organization_id)
                return await _shown(change.connection, limit, organization.currency, change.now)
        raise NotFound("There is no such spend limit in force in this organization.")

    return await request.change(effect)


async def _check_scope(connection: AsyncConnection, organization_id: UUID, body: NewSpendLimit) -> UUID | None:
    """The key whose spending is counted: a key that took the place of another is counted with that."""
    counted: UUID | None = None
    if body.project_id is not None and body.api_key_id is not None:
        raise InvalidRequest("Give project_id or api_key_id, not both.", param="api_key_id")
    if body.project_id is not None:
        owner = (await live_project(connection, body.project_id)).organization_id
    elif body.api_key_id is not None:
        row = await stored_keys.find_key(connection, api_key, body.api_key_id)
        owner = None if row is None else row.organization_id
        counted = None if row is None else row.counted_as or row.id
    else:
        return None
    if owner != organization_id:
        raise NotFound("There is no such project or key in this organization.")
    return counted


async def _shown(connection: AsyncConnection, limit: StoredLimit, currency: str, now: datetime) -> SpendLimit:
    month = month_of(now, limit.timezone)
    spent = await stored.booked_in(connection, limit, month)
    return SpendLimit(
        id=limit.id,
        organization_id=limit.organization_id,
        project_id=limit.project_id,
        api_key_id=limit.api_key_id,
        amount=Money.of(limit.amount, currency),
        is_hard=limit.is_hard,
        set_by="organization" if limit.set_by == "organization" else "operator",
        alert_percents=list(limit.alert_percents),
        month=f"{month:%Y-%m}",
        spent=Money.of(spent, currency),
        created_at=limit.created_at,
    )
