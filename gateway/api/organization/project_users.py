"""Routes of a project's users: people who have a place in it, with a role each."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import people as stored
from billing.store.pages import AnyRow
from gateway.api.operator.shapes import AskedById, Body, ListOf, list_of
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.shapes import Deleted, Email, ProjectRole, seconds
from gateway.api.organization.users import found_user
from models.errors import Conflict, InvalidRequest, NotFound

router = APIRouter()


class NewProjectUser(Body):
    """A person to give a place, by address or by id; an address that is new becomes a reader of the organization."""

    role: ProjectRole
    email: Email | None = None
    user_id: UUID | None = None


class ProjectUserUpdate(Body):
    """Another role."""

    role: ProjectRole | None = None


class ProjectUser(BaseModel):
    """A user of a project."""

    id: str
    object: Literal["organization.project.user"] = "organization.project.user"
    role: ProjectRole
    name: str | None
    email: str
    added_at: int

    @classmethod
    def of(cls, row: AnyRow) -> ProjectUser:
        """The answer for a row."""
        return cls(id=str(row.id), role=row.role, name=row.name, email=row.email, added_at=seconds(row.created_at))


@router.post("/projects/{project_id}/users", response_model=ProjectUser)
async def create_project_user(project_id: UUID, body: NewProjectUser, request: Admin) -> Response:
    """Give a person a place in a project."""
    if (body.email is None) == (body.user_id is None):
        raise InvalidRequest("Give email or user_id, one of them.", param="email")

    async def effect(change: Change) -> ProjectUser:
        await own_live_project(change.connection, request.organization_id, project_id)
        user = await _person(change, request.organization_id, body)
        owner = (request.organization_id, project_id)
        if not await stored.put_into_project(change.connection, *owner, user.id, body.role, change.now):
            # An invite that was taken up just now may have put them there.
            place = await _found(change.connection, project_id, user.id)
            if place.created_at < change.now:
                raise Conflict("This user is in the project already. Update the role instead.")
            await stored.set_project_role(change.connection, project_id, user.id, body.role)
        await change.audit("user.added", f"user:{user.id}", *owner, role=body.role)
        return ProjectUser.of(await _found(change.connection, project_id, user.id))

    return await request.change(effect)


@router.get("/projects/{project_id}/users")
async def list_project_users(
    project_id: UUID, asked: Annotated[AskedById, Query()], request: Admin
) -> ListOf[ProjectUser]:
    """The users of a project."""
    async with request.reading() as connection:
        await own_project(connection, request.organization_id, project_id)
        rows, more = await stored.list_project_users(connection, project_id, asked.page())
    return list_of([ProjectUser.of(row) for row in rows], more)


@router.get("/projects/{project_id}/users/{user_id}")
async def get_project_user(project_id: UUID, user_id: UUID, request: Admin) -> ProjectUser:
    """One user of a project."""
    async with request.reading() as connection:
        await own_project(connection, request.organization_id, project_id)
        return ProjectUser.of(await _found(connection, project_id, user_id))


@router.post("/projects/{project_id}/users/{user_id}", response_model=ProjectUser)
async def update_project_user(project_id: UUID, user_id: UUID, body: ProjectUserUpdate, request: Admin) -> Response:
    """Give a user of a project another role."""

    async def effect(change: Change) -> ProjectUser:
        await own_live_project(change.connection, request.organization_id, project_id)
        row = await _found(change.connection, project_id, user_id)
        if body.role is not None and body.role != row.role:
            await stored.set_project_role(change.connection, project_id, user_id, body.role)
            owner = (request.organization_id, project_id)
            await change.audit("user.updated", f"user:{user_id}", *owner, role=body.role)
        return ProjectUser.of(await _found(change.connection, project_id, user_id))

    return await request.change(effect)


@router.delete("/projects/{project_id}/users/{user_id}", response_model=Deleted)
async def delete_project_user(project_id: UUID, user_id: UUID, request: Admin) -> Response:
    """Take a user out of a project."""

    async def effect(change: Change) -> Deleted:
        await own_live_project(change.connection, request.organization_id, project_id)
        await _found(change.connection, project_id, user_id)
        await stored.take_out_of_project(change.connection, project_id, user_id)
        await change.audit("user.deleted", f"user:{user_id}", request.organization_id, project_id)
        return Deleted(id=str(user_id), object="organization.project.user.deleted")

    return await request.change(effect)


async def _person(change: Change, organization_id: UUID, body: NewProjectUser) -> AnyRow:
    if body.user_id is not None:
        return await found_user(change.connection, organization_id, body.user_id)
    assert body.email is not None
    known = await stored.find_user_by_email(change.connection, organization_id, body.email)
    if known is not None:
        return known
    invited = await stored.find_pending_invite(change.connection, organization_id, body.email, change.now)
    if invited is not None:
        await change.audit("invite.accepted", f"invite:{invited.id}", organization_id)
    user = await stored.take_in(change.connection, organization_id, body.email, invited, change.now)
    await change.audit("user.added", f"user:{user.id}", organization_id, None, role=user.role)
    return user


async def _found(connection: AsyncConnection, project_id: UUID, user_id: UUID) -> AnyRow:
    row = await stored.find_project_user(connection, project_id, user_id)
    if row is None:
        raise NotFound("There is no such user in this project.")
    return row
