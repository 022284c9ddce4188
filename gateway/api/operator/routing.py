"""Routes of an organization's routing: the regions its calls must stay in, and the capacity reserved for it."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.store import routing as stored
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Body, Slug
from models.catalog import OrganizationRouting
from models.errors import InvalidRequest

router = APIRouter()


class RoutingBody(Body):
    """Where an organization's calls may go; it takes the place of what was said before.

    `regions`: only to backends that say they are in one of them; null: anywhere. `pool`: also to the deployments of
    that pool, before all others. With `uses_shared` false to the pool alone.
    """

    regions: Annotated[list[Slug], Field(min_length=1, max_length=50)] | None = None
    pool: Slug | None = None
    uses_shared: bool = True


class Routing(BaseModel):
    """Where an organization's calls may go."""

    object: Literal["organization_routing"] = "organization_routing"
    organization_id: UUID
    regions: list[str] | None
    pool: str | None
    uses_shared: bool

    @classmethod
    def of(cls, organization_id: UUID, rule: OrganizationRouting) -> Routing:
        """The answer for a rule."""
        regions = None if rule.regions is None else sorted(rule.regions)
        return cls(organization_id=organization_id, regions=regions, pool=rule.pool, uses_shared=rule.uses_shared)


@router.get("/organizations/{organization_id}/routing")
async def get_routing(organization_id: UUID, request: Operator) -> Routing:
    """Where an organization's calls may go."""
    async with request.reading() as connection:
        await found_organization(connection, organization_id)
        return Routing.of(organization_id, await stored.find_routing(connection, organization_id))


@router.post("/organizations/{organization_id}/routing", response_model=Routing)
async def set_routing(organization_id: UUID, body: RoutingBody, request: Operator) -> Response:
    """Say where an organization's calls may go. Gateways know within seconds; calls that run stay where they are."""

    async def effect(change: Change) -> Routing:
        await open_organization(change.connection, organization_id)
        if body.pool is None and not body.uses_shared:
            raise InvalidRequest("Without a pool there is only what all share: give 'pool'.", param="pool")
        regions = None if body.regions is None else frozenset(body.regions)
        rule = OrganizationRouting(regions, body.pool, body.uses_shared)
        await stored.set_routing(change.connection, organization_id, rule)
        change.catalog_changed = True
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("organization.routed", f"organization:{organization_id}", organization_id, **asked)
        return Routing.of(organization_id, rule)

    return await request.change(effect)
