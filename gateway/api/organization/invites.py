"""Routes of invites: people who are asked into the organization. Tollgate sends no mail."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import people as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import open_organization
from gateway.api.operator.shapes import AskedById, Body, ListOf, list_of
from gateway.api.organization.projects import own_live_project
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.shapes import Deleted, Email, OrganizationRole, ProjectRole, seconds, seconds_or_none
from models.errors import Conflict, NotFound

router = APIRouter()

LIFE: Final = timedelta(days=7)
"""How long an invite can be accepted."""


class InvitedTo(Body):
    """A project that an invite gives a place in."""

    id: UUID
    role: ProjectRole


class NewInvite(Body):
    """An invite to create."""

    email: Email
    role: OrganizationRole
    projects: Annotated[list[InvitedTo], Field(max_length=100)] = Field(default_factory=list)


class Invite(BaseModel):
    """An invite."""

    id: str
    object: Literal["organization.invite"] = "organization.invite"
    email: str
    role: OrganizationRole
    status: Literal["pending", "accepted", "expired"]
    created_at: int
    expires_at: int
    accepted_at: int | None
    projects: list[InvitedTo]

    @classmethod
    def of(cls, row: AnyRow, now: datetime) -> Invite:
        """The answer for a row."""
        return cls(
            id=str(row.id),
            email=row.email,
            role=row.role,
            status="accepted" if row.accepted_at else "pending" if row.expires_at > now else "expired",
            created_at=seconds(row.created_at),
            expires_at=seconds(row.expires_at),
            accepted_at=seconds_or_none(row.accepted_at),
            projects=row.projects,
        )


@router.post("/invites", response_model=Invite)
async def create_invite(body: NewInvite, request: Admin) -> Response:
    """Ask a person into the organization."""

    async def effect(change: Change) -> Invite:
        connection, organization_id = change.connection, request.organization_id
        await open_organization(connection, organization_id)
        for place in body.projects:
            await own_live_project(connection, organization_id, place.id)
        if await stored.find_user_by_email(connection, organization_id, body.email):
            raise Conflict("There is a user of this address in the organization already.")
        if await stored.find_pending_invite(connection, organization_id, body.email, change.now):
            raise Conflict("An invite of this address is pending already. Delete it to send another.")
        columns = body.model_dump(mode="json") | {"organization_id": organization_id}
        row = await stored.create_invite(connection, change.now, columns | {"expires_at": change.now + LIFE})
        await change.audit("invite.sent", f"invite:{row.id}", organization_id, None, email=row.email, role=row.role)
        return Invite.of(row, change.now)

    return await request.change(effect)


@router.get("/invites")
async def list_invites(asked: Annotated[AskedById, Query()], request: Admin) -> ListOf[Invite]:
    """The invites that were not deleted, oldest first, with those that were accepted or have expired."""
    now = request.parts.clock.now()
    async with request.reading() as connection:
        rows, more = await stored.list_invites(connection, request.organization_id, asked.page())
    return list_of([Invite.of(row, now) for row in rows], more)


@router.get("/invites/{invite_id}")
async def get_invite(invite_id: UUID, request: Admin) -> Invite:
    """One invite."""
    async with request.reading() as connection:
        row = await _found(connection, request.organization_id, invite_id)
    return Invite.of(row, request.parts.clock.now())


@router.delete("/invites/{invite_id}", response_model=Deleted)
async def delete_invite(invite_id: UUID, request: Admin) -> Response:
    """Delete an invite that was not accepted."""

    async def effect(change: Change) -> Deleted:
        await open_organization(change.connection, request.organization_id)
        row = await _found(change.connection, request.organization_id, invite_id)
        if row.accepted_at is not None:
            raise Conflict("This invite was accepted. Delete the user instead.")
        await stored.end_invite(change.connection, invite_id, deleted_at=change.now)
        await change.audit("invite.deleted", f"invite:{invite_id}", request.organization_id)
        return Deleted(id=str(invite_id), object="organization.invite.deleted")

    return await request.change(effect)


async def _found(connection: AsyncConnection, organization_id: UUID, invite_id: UUID) -> AnyRow:
    row = await stored.find_invite(connection, organization_id, invite_id)
    if row is None:
        raise NotFound("There is no such invite in this organization.")
    return row
