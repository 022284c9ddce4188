"""Routes of credit grants: money an organization may spend, bought or given."""

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
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, ListOf, ModelId, Moment, Money, list_of
from models.errors import NotFound
from models.ledger import GrantKind

router = APIRouter()


class GrantScope(Body):
    """What a grant may pay for; null is everything."""

    models: Annotated[list[ModelId], Field(min_length=1, max_length=1_000)] | None = None
    project_ids: Annotated[list[UUID], Field(min_length=1, max_length=1_000)] | None = None


class NewGrant(Body):
    """Credit to give. Grants of a lower `priority` are spent first."""

    kind: GrantKind = GrantKind.PAID
    amount: Money
    priority: int = Field(50, ge=0, le=1_000)
    effective_at: Moment | None = None
    expires_at: Moment | None = None
    scope: GrantScope | None = None


class Grant(BaseModel):
    """A credit grant and what is left of it."""

    id: UUID
    object: Literal["credit_grant"] = "credit_grant"
    organization_id: UUID
    kind: GrantKind
    amount: Money
    remaining: Money
    priority: int
    effective_at: datetime
    expires_at: datetime | None
    scope: dict[str, Any] | None
    voided_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: AnyRow) -> Grant:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name != "object"}
        amounts = {name: Money.of(plain[name], row.currency) for name in ("amount", "remaining")}
        return cls(**(plain | amounts))


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


async def _found(connection: AsyncConnection, organization_id: UUID, grant_id: UUID) -> Grant:
    row = await stored.find_grant(connection, organization_id, grant_id)
    if row is None:
        raise NotFound("There is no such credit grant in this organization.")
    return Grant.of(row)
