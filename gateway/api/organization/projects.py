"""Routes of the organization's projects."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import organizations as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import open_organization
from gateway.api.operator.projects import found_project, live_project
from gateway.api.operator.shapes import AskedById, Body, ListOf, Name, Text, list_of
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.shapes import seconds, seconds_or_none
from models.errors import InvalidRequest, NotFound

router = APIRouter()


class NewProject(Body):
    """A project to create."""

    name: Name
    external_key_id: Text | None = None
    geography: Text | None = None
    residency: Text | None = None


class ProjectUpdate(Body):
    """What is to change of a project; what is left out stays."""

    name: Name | None = None
    external_key_id: Text | None = None
    geography: Text | None = None


class Project(BaseModel):
    """A project."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    external_key_id: str | None
    residency: str | None = None

    @classmethod
    def of(cls, row: AnyRow) -> Project:
        """The answer for a row."""
        return cls(
            id=str(row.id),
            name=row.name,
            created_at=seconds(row.created_at),
            archived_at=seconds_or_none(row.archived_at),
            status="active" if row.archived_at is None else "archived",
            external_key_id=row.external_key_id,
        )


class AskedProjects(AskedById):
    """Which projects to list."""

    include_archived: bool = False


@router.post("/projects", response_model=Project)
async def create_organization_project(body: NewProject, request: Admin) -> Response:
    """Create a project."""
    _refuse_places(body.geography, body.residency)

    async def effect(change: Change) -> Project:
        await open_organization(change.connection, request.organization_id)
        columns = {"name": body.name, "external_key_id": body.external_key_id}
        row = await stored.create_project(change.connection, request.organization_id, change.now, columns)
        await _audit(change, "project.created", row, name=row.name, title=row.name)
        return Project.of(row)

    return await request.change(effect)


@router.get("/projects")
async def list_organization_projects(asked: Annotated[AskedProjects, Query()], request: Admin) -> ListOf[Project]:
    """The projects, oldest first; archived ones where asked for."""
    async with request.reading() as connection:
        rows, more = await stored.list_projects(
            connection, request.organization_id, asked.page(), with_archived=asked.include_archived
        )
    return list_of([Project.of(row) for row in rows], more)


@router.get("/projects/{project_id}")
async def get_organization_project(project_id: UUID, request: Admin) -> Project:
    """One project."""
    async with request.reading() as connection:
        return Project.of(await own_project(connection, request.organization_id, project_id))


@router.post("/projects/{project_id}", response_model=Project)
async def update_organization_project(project_id: UUID, body: ProjectUpdate, request: Admin) -> Response:
    """Change a project."""
    _refuse_places(body.geography, None)

    async def effect(change: Change) -> Project:
        row = await own_live_project(change.connection, request.organization_id, project_id)
        columns = {} if body.name is None else {"name": body.name}
        columns |= body.model_dump(include={"external_key_id"}, exclude_unset=True)
        if columns:
            row = await stored.update_project(change.connection, project_id, columns) or row
        await _audit(change, "project.updated", row, title=row.name)
        return Project.of(row)

    return await request.change(effect)


@router.post("/projects/{project_id}/archive", response_model=Project)
async def archive_organization_project(project_id: UUID, request: Admin) -> Response:
    """Archive a project: its keys stop within five seconds. It cannot be brought back."""

    async def effect(change: Change) -> Project:
        row = await own_project(change.connection, request.organization_id, project_id)
        if row.archived_at is None:
            row = await stored.update_project(change.connection, project_id, {"archived_at": change.now}) or row
            await _audit(change, "project.archived", row)
        return Project.of(row)

    return await request.change(effect)


async def own_project(connection: AsyncConnection, organization_id: UUID, project_id: UUID) -> AnyRow:
    """A project of this organization, or `NotFound`."""
    row = await found_project(connection, project_id)
    if row.organization_id != organization_id:
        raise NotFound("There is no such project.")
    return row


async def own_live_project(connection: AsyncConnection, organization_id: UUID, project_id: UUID) -> AnyRow:
    """A project of this organization, which is locked with it; `Conflict` where either has ended."""
    await own_project(connection, organization_id, project_id)
    return await live_project(connection, project_id)


def _refuse_places(geography: str | None, residency: str | None) -> None:
    for name, value in (("geography", geography), ("residency", residency)):
        if value is not None:
            # A promise about where data goes must not be taken down and then not kept.
            raise InvalidRequest(
                f"'{name}' is not set here: where calls are served is agreed with the operator. Leave it out.",
                param=name,
            )


async def _audit(change: Change, action: str, row: AnyRow, **detail: str) -> None:
    await change.audit(action, f"project:{row.id}", row.organization_id, row.id, **detail)
