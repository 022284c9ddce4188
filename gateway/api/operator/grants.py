"""Routes of credit grants: money an organization may spend, bought or given, and what it was spent by."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.settlement import grant_credit, void_grant
from billing.store import organizations as stored
from billing.store.grant_list import list_draws as draws_of
from billing.store.pages import AnyRow, Page
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Asked, AskedById, Body, ListOf, ModelId, Moment, Money, list_of
from models.errors import NotFound
from models.ledger import GrantKind, PostingKind
from models.money import Units

router = APIRouter()


class GrantScope(Body):
    """What a grant may pay for; null is everything."""

    models: Annotated[list[ModelId], Field(min_length=1, max_length=1_000)] | None = None
    project_ids: Annotated[list[UUID], Field(min_length=1, max_length=1_000)] | None = None


class NewGrant(Body):
    """Credit to give. Grants of a lower `priority` are spent first.

    At its expiry up to `rollover_max` of what is left goes into a grant of the same kind that begins then.
    """

    kind: GrantKind = GrantKind.PAID
    amount: Money
    priority: int = Field(50, ge=0, le=1_000)
    effective_at: Moment | None = None
    expires_at: Moment | None = None
    rollover_max: Money | None = None
    scope: GrantScope | None = None


class Grant(BaseModel):
    """A credit grant and what is left of it; `rolled_from` is the grant whose rest it was."""

    id: UUID
    object: Literal["credit_grant"] = "credit_grant"
    organization_id: UUID
    kind: GrantKind
    amount: Money
    remaining: Money
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    rollover_max: Money
    rolled_from: UUID | None
    scope: dict[str, Any] | None
    voided_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: AnyRow) -> Grant:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name != "object"}
        amounts = {name: Money.of(plain[name], row.currency) for name in ("amount", "remaining", "rollover_max")}
        return cls(**(plain | amounts))


class GrantDraw(BaseModel):
    """What a posting took from a grant, below zero where it gave back; the id is the posting's."""

    id: str
    object: Literal["credit_grant_draw"] = "credit_grant_draw"
    kind: PostingKind
    effective_at: datetime
    booked_at: datetime
    amount: Money


class AskedDraws(Asked):
    """Which draws to list, oldest first."""

    after: Annotated[int, Field(ge=0, lt=2**63)] | None = None


@router.post("/organizations/{organization_id}/credit_grants", response_model=Grant)
async def create_grant(organization_id: UUID, body: NewGrant, request: Operator) -> Response:
    """Give an organization credit, which it can spend at once."""

    async def effect(change: Change) -> Grant:
        organization = await open_organization(change.connection, organization_id)
        grant_id = await grant_credit(
            change.connection,
            organization_id=organization_id,
            currency=organization.currency,
            kind=body.kind,
            amount=body.amount.units(organization.currency, "amount"),
            priority=body.priority,
            effective_at=body.effective_at or change.now,
            expires_at=body.expires_at,
            scope=body.scope.model_dump(mode="json", exclude_none=True) or None if body.scope else None,
            # The book keeps the key for ever, so money is not given twice even when the stored answer is long gone.
            idempotency_key=change.retry_key or str(uuid4()),
            now=change.now,
            rollover_max=Units(0)
            if body.rollover_max is None
            else body.rollover_max.units(organization.currency, "rollover_max"),
        )
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("credit_grant.created", f"credit_grant:{grant_id}", organization_id, **asked)
        change.project(organization_id)
        return await _found(change.connection, organization_id, grant_id)

    return await request.change(effect)


@router.get("/organizations/{organization_id}/credit_grants")
async def list_grants(organization_id: UUID, asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Grant]:
    """The credit grants of an organization, oldest first, with those spent, expired or voided."""
    async with request.reading() as connection:
        await found_organization(connection, organization_id)
        rows, more = await stored.list_grants(connection, organization_id, asked.page())
    return list_of([Grant.of(row) for row in rows], more)


@router.post("/organizations/{organization_id}/credit_grants/{grant_id}/void", response_model=Grant)
async def void(organization_id: UUID, grant_id: UUID, request: Operator) -> Response:
    """Take back what is left of a credit grant; what was spent stays spent."""

    async def effect(change: Change) -> Grant:
        grant = await _found(change.connection, organization_id, grant_id)
        if grant.voided_at is not None:
            return grant
        await void_grant(change.connection, grant_id, change.now)
        await change.audit("credit_grant.voided", f"credit_grant:{grant_id}", organization_id)
        change.project(organization_id)
        return await _found(change.connection, organization_id, grant_id)

    return await request.change(effect)


@router.get("/organizations/{organization_id}/credit_grants/{grant_id}/draws")
async def list_draws(
    organization_id: UUID, grant_id: UUID, asked: Annotated[AskedDraws, Query()], request: Operator
) -> ListOf[GrantDraw]:
    """What was taken from a credit grant: a row for each posting, oldest first."""
    async with request.reading() as connection:
        found = await draws_of(connection, organization_id, grant_id, Page(asked.after, asked.limit))
    if found is None:
        raise NotFound("There is no such credit grant in this organization.")
    rows, more = found
    return list_of([_draw(row) for row in rows], more)


def _draw(row: AnyRow) -> GrantDraw:
    return GrantDraw(
        id=str(row.id),
        kind=PostingKind(row.kind),
        effective_at=row.effective_at,
        booked_at=row.booked_at,
        amount=Money.of(row.amount, row.currency),
    )


async def _found(connection: AsyncConnection, organization_id: UUID, grant_id: UUID) -> Grant:
    row = await stored.find_grant(connection, organization_id, grant_id)
    if row is None:
        raise NotFound("There is no such credit grant in this organization.")
    return Grant.of(row)
