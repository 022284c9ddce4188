"""Routes of the organization's users: people who belong to it, with a role each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import people as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import open_organization
from gateway.api.operator.shapes import AskedById, Body, ListOf, Text, list_of
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.shapes import Deleted, Email, OrganizationRole, ProjectRole, seconds
from models.errors import InvalidRequest, NotFound

router = APIRouter()


class UserUpdate(Body):
    """What is to change of a user; what is left out stays."""

    role: OrganizationRole | None = None
    role_id: Text | None = None
    developer_persona: Text | None = None
    technical_level: Text | None = None


class ProjectOfUser(BaseModel):
    """A project that a user has a place in."""

    id: str
    name: str
    role: ProjectRole


class ProjectsOfUser(BaseModel):
    """The projects that a user has a place in."""

    object: Literal["list"] = "list"
    data: list[ProjectOfUser]


class Person(BaseModel):
    """Who a user is."""

    id: str
    object: Literal["user"] = "user"
    name: str | None
    email: str
    picture: None = None
    enabled: Literal[True] = True
    banned: Literal[False] = False
    banned_at: None = None


class OrganizationUser(BaseModel):
    """A user of the organization."""

    id: str
    object: Literal["organization.user"] = "organization.user"
    role: OrganizationRole
    name: str | None
    email: str
    added_at: int
    created: int
    is_service_account: Literal[False] = False
    is_scim_managed: Literal[False] = False
    developer_persona: str | None
    technical_level: str | None
    projects: ProjectsOfUser
    user: Person


class AskedUsers(AskedById):
    """Which users to list."""

    emails: Annotated[list[Email] | None, Field(max_length=100)] = Field(None, alias="emails[]")


@router.get("/users")
async def list_users(asked: Annotated[AskedUsers, Query()], request: Admin) -> ListOf[OrganizationUser]:
    """The users of the organization, oldest first."""
    async with request.reading() as connection:
        rows, more = await stored.list_users(connection, request.organization_id, asked.page(), asked.emails)
        return list_of(await _shown(connection, rows), more)


@router.get("/users/{user_id}")
async def get_user(user_id: UUID, request: Admin) -> OrganizationUser:
    """One user."""
    async with request.reading() as connection:
        return (await _shown(connection, [await found_user(connection, request.organization_id, user_id)]))[0]


@router.post("/users/{user_id}", response_model=OrganizationUser)
async def update_user(user_id: UUID, body: UserUpdate, request: Admin) -> Response:
    """Give a user another role."""
    if body.role_id is not None:
        raise InvalidRequest("There are no roles of your own here. Give role as owner or reader.", param="role_id")

    async def effect(change: Change) -> OrganizationUser:
        await open_organization(change.connection, request.organization_id)
        row = await found_user(change.connection, request.organization_id, user_id)
        columns: dict[str, Any] = {} if body.role is None else {"role": body.role}
        columns |= body.model_dump(include={"developer_persona", "technical_level"}, exclude_unset=True)
        if columns:
            row = await stored.update_user(change.connection, user_id, columns)
        await change.audit("user.updated", f"user:{user_id}", request.organization_id, None, **columns)
        return (await _shown(change.connection, [row]))[0]

    return await request.change(effect)


@router.delete("/users/{user_id}", response_model=Deleted)
async def delete_user(user_id: UUID, request: Admin) -> Response:
    """Remove a user from the organization and from its projects."""

    async def effect(change: Change) -> Deleted:
        await open_organization(change.connection, request.organization_id)
        await found_user(change.connection, request.organization_id, user_id)
        await stored.remove_user(change.connection, user_id, change.now)
        await change.audit("user.deleted", f"user:{user_id}", request.organization_id)
        return Deleted(id=str(user_id), object="organization.user.deleted")

    return await request.change(effect)


async def found_user(connection: AsyncConnection, organization_id: UUID, user_id: UUID) -> AnyRow:
    """A user of this organization, or `NotFound`."""
    row = await stored.find_user(connection, organization_id, user_id)
    if row is None:
        raise NotFound("There is no such user in this organization.")
    return row


async def _shown(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[OrganizationUser]:
    projects = await stored.projects_of_users(connection, [row.id for row in rows])
    return [_one(row, projects[row.id]) for row in rows]


def _one(row: AnyRow, projects: Sequence[AnyRow]) -> OrganizationUser:
    return OrganizationUser(
        id=str(row.id),
        role=row.role,
        name=row.name,
        email=row.email,
        added_at=seconds(row.created_at),
        created=seconds(row.created_at),
        developer_persona=row.developer_persona,
        technical_level=row.technical_level,
        projects=ProjectsOfUser(
            data=[ProjectOfUser(id=str(each.id), name=each.name, role=each.role) for each in projects]
        ),
        user=Person(id=str(row.id), name=row.name, email=row.email),
    )
