"""Routes of projects: the parts an organization divides its use into, each with keys and limits of its own."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import organizations as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, LimitsBody, ListOf, Name, list_of
from models.errors import Conflict, NotFound

router = APIRouter()


class NewProject(Body):
    """A project to create."""

    name: Name
    limits: LimitsBody = LimitsBody()


class ProjectUpdate(Body):
    """What is to change of a project; what is left out stays."""

    name: Name | None = None
    limits: LimitsBody | None = None


class Project(BaseModel):
    """A project of an organization."""

    id: UUID
    object: Literal["project"] = "project"
    organization_id: UUID
    name: str
    limits: LimitsBody
    created_at: datetime
    archived_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> Project:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in ("object", "limits")}
        return cls(**plain, limits=LimitsBody.of(row))


@router.post("/organizations/{organization_id}/projects", response_model=Project)
async def create_project(organization_id: UUID, body: NewProject, request: Operator) -> Response:
    """Create a project."""

    async def effect(change: Change) -> Project:
        await open_organization(change.connection, organization_id)
        columns = {"name": body.name} | body.limits.columns()
        row = await stored.create_project(change.connection, organization_id, change.now, columns)
        await _audit(change, "project.created", row, body)
        return Project.of(row)

    return await request.change(effect)


@router.get("/organizations/{organization_id}/projects")
async def list_projects(
    organization_id: UUID, asked: Annotated[AskedById, Query()], request: Operator
) -> ListOf[Project]:
    """The projects of an organization, oldest first."""
    async with request.reading() as connection:
        await found_organization(connection, organization_id)
        rows, more = await stored.list_projects(connection, organization_id, asked.page())
    return list_of([Project.of(row) for row in rows], more)


@router.get("/projects/{project_id}")
async def get_project(project_id: UUID, request: Operator) -> Project:
    """One project."""
    async with request.reading() as connection:
        return Project.of(await found_project(connection, project_id))


@router.patch("/projects/{project_id}", response_model=Project, include_in_schema=False)
@router.post("/projects/{project_id}", response_model=Project)
async def update_project(project_id: UUID, body: ProjectUpdate, request: Operator) -> Response:
    """Change a project."""

    async def effect(change: Change) -> Project:
        row = await live_project(change.connection, project_id)
        columns = {} if body.name is None else {"name": body.name}
        columns |= body.limits.model_dump(exclude_unset=True) if body.limits else {}
        if columns:
            row = await stored.update_project(change.connection, project_id, columns) or row
        await _audit(change, "project.updated", row, body)
        return Project.of(row)

    return await request.change(effect)


@router.post("/projects/{project_id}/archive", response_model=Project)
async def archive_project(project_id: UUID, request: Operator) -> Response:
    """Archive a project: its keys stop within seconds. It cannot be brought back."""

    async def effect(change: Change) -> Project:
        row = await found_project(change.connection, project_id)
        if row.archived_at is None:
            row = await stored.update_project(change.connection, project_id, {"archived_at": change.now}) or row
            await _audit(change, "project.archived", row)
        return Project.of(row)

    return await request.change(effect)


async def found_project(connection: AsyncConnection, project_id: UUID) -> AnyRow:
    """The project of this id, or `NotFound`."""
    row = await stored.find_project(connection, project_id)
    if row is None:
        raise NotFound("There is no such project.")
    return row


async def live_project(connection: AsyncConnection, project_id: UUID) -> AnyRow:
    """The project of this id, with its organization locked; `Conflict` where either has ended."""
    row = await found_project(connection, project_id)
    await open_organization(connection, row.organization_id)
    if row.archived_at is not None:
        raise Conflict("This project is archived.")
    return row


async def _audit(change: Change, action: str, row: AnyRow, body: Body | None = None) -> None:
    asked = body.model_dump(mode="json", exclude_unset=True) if body else {}
    await change.audit(action, f"project:{row.id}", row.organization_id, row.id, **asked)
