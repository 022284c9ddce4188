"""Routes of keys: API keys of a project, admin keys of an organization, keys of operators. Each is shown once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import keys as stored
from billing.store.catalog import missing_models
from billing.store.keys import KeyBounds
from billing.store.pages import AnyRow
from gateway.api import issuing
from gateway.api.issuing import (
    LAST_USE,
    Endpoints,
    Issued,
    Networks,
    Rotation,
    issue_admin_key,
    issue_api_key,
    issue_operator_key,
)
from gateway.api.operator.organizations import found_organization, open_organization
from gateway.api.operator.projects import found_project, live_project
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, LimitsBody, ListOf, ModelId, Moment, Name, list_of
from models.errors import Conflict, InvalidRequest, NotFound
from models.tables import admin_key, api_key, operator_key

router = APIRouter()

Models = Annotated[list[ModelId], Field(max_length=1_000)]


class NewKey(Body):
    """An admin or operator key to create."""

    name: Name
    expires_at: Moment | None = None


class NewApiKey(NewKey):
    """An API key to create; null as `models`, `endpoints` or `networks` is no bound."""

    models: Models | None = None
    endpoints: Endpoints | None = None
    networks: Networks | None = None
    limits: LimitsBody = LimitsBody()


class ApiKeyUpdate(Body):
    """What is to change of an API key; what is left out stays."""

    name: Name | None = None
    models: Models | None = None
    endpoints: Endpoints | None = None
    networks: Networks | None = None
    limits: LimitsBody | None = None


class ApiKeyRotation(Rotation):
    """How an API key hands over; the new one has the old one's expiry unless one is given."""

    expires_at: Moment | None = None


class Key(BaseModel):
    """An admin or operator key as it can be shown again: never its value."""

    id: UUID
    object: str
    name: str
    redacted_value: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description=LAST_USE)


class ApiKey(Key):
    """An API key as it can be shown again."""

    object: Literal["api_key"] = "api_key"
    organization_id: UUID
    project_id: UUID
    models: list[str] | None
    endpoints: list[str] | None
    networks: list[str] | None
    limits: LimitsBody

    @classmethod
    def of(cls, row: AnyRow) -> ApiKey:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in ("object", "limits")}
        return cls(**plain, limits=LimitsBody.of(row))


class CreatedKey(Key):
    """A new key; `value` is shown this once."""

    value: str


class CreatedApiKey(ApiKey):
    """A new API key; `value` is shown this once."""

    value: str


# API keys ------------------------------------------------------------------------------------------------------------


@router.post("/projects/{project_id}/api_keys", response_model=CreatedApiKey)
async def create_api_key(project_id: UUID, body: NewApiKey, request: Operator) -> Response:
    """Create an API key of a project."""

    async def effect(change: Change) -> CreatedApiKey:
        project = await live_project(change.connection, project_id)
        await _check_models(change.connection, body.models)
        bounds = KeyBounds(body.expires_at, body.models, body.endpoints, body.networks, body.limits.limits())
        issued = await issue_api_key(change, project.organization_id, project_id, body.name, bounds)
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("api_key.created", f"api_key:{issued.row.id}", project.organization_id, project_id, **asked)
        return CreatedApiKey(**ApiKey.of(issued.row).model_dump(), value=issued.value)

    return await request.change(effect)


@router.get("/projects/{project_id}/api_keys")
async def list_api_keys(project_id: UUID, asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[ApiKey]:
    """The API keys of a project, oldest first, with the revoked ones."""
    async with request.reading() as connection:
        project = await found_project(connection, project_id)
        owner = {"organization_id": project.organization_id, "project_id": project_id}
        rows, more = await stored.list_keys(connection, api_key, asked.page(), **owner)
    return list_of([ApiKey.of(row) for row in rows], more)


@router.patch("/projects/{project_id}/api_keys/{key_id}", response_model=ApiKey, include_in_schema=False)
@router.post("/projects/{project_id}/api_keys/{key_id}", response_model=ApiKey)
async def update_api_key(project_id: UUID, key_id: UUID, body: ApiKeyUpdate, request: Operator) -> Response:
    """Change name, models or limits of an API key; a gateway follows within seconds."""

    async def effect(change: Change) -> ApiKey:
        project = await live_project(change.connection, project_id)
        row = await stored.find_key(change.connection, api_key, key_id, project_id=project_id)
        if row is None:
            raise NotFound("There is no such API key in this project.")
        if row.revoked_at is not None:
            raise Conflict("This key is revoked. Create a new one.")
        await _check_models(change.connection, body.models)
        columns: dict[str, Any] = {} if body.name is None else {"name": body.name}
        columns |= body.model_dump(include={"models", "endpoints", "networks"}, exclude_unset=True)
        columns |= body.limits.model_dump(exclude_unset=True) if body.limits else {}
        if columns:
            row = await stored.update_api_key(change.connection, key_id, columns) or row
            change.revoked.append(row.digest)
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("api_key.updated", f"api_key:{key_id}", project.organization_id, project_id, **asked)
        return ApiKey.of(row)

    return await request.change(effect)


@router.post("/projects/{project_id}/api_keys/{key_id}/rotate", response_model=CreatedApiKey)
async def rotate_api_key(project_id: UUID, key_id: UUID, body: ApiKeyRotation, request: Operator) -> Response:
    """Make a new API key with the same bounds and limits; the old one works on for `overlap_seconds`."""

    async def effect(change: Change) -> CreatedApiKey:
        project = await live_project(change.connection, project_id)
        row = await stored.find_key(change.connection, api_key, key_id, project_id=project_id)
        if row is None:
            raise NotFound("There is no such API key in this project.")
        issued = await issuing.rotate_api_key(change, row, body, body.expires_at)
        asked = {"rotated_from": str(key_id), **body.model_dump(mode="json", exclude_unset=True)}
        await change.audit("api_key.rotated", f"api_key:{issued.row.id}", project.organization_id, project_id, **asked)
        return CreatedApiKey(**ApiKey.of(issued.row).model_dump(), value=issued.value)

    return await request.change(effect)


@router.post("/projects/{project_id}/api_keys/{key_id}/revoke", response_model=ApiKey)
async def revoke_api_key(project_id: UUID, key_id: UUID, request: Operator) -> Response:
    """Revoke an API key: it stops here at once and in every gateway within five seconds."""

    async def effect(change: Change) -> ApiKey:
        row = await _revoked(change, api_key, key_id, project_id=project_id)
        await change.audit("api_key.revoked", f"api_key:{key_id}", row.organization_id, project_id)
        return ApiKey.of(row)

    return await request.change(effect)


# Admin keys ----------------------------------------------------------------------------------------------------------


@router.post("/organizations/{organization_id}/admin_keys", response_model=CreatedKey)
async def create_admin_key(organization_id: UUID, body: NewKey, request: Operator) -> Response:
    """Create an admin key of an organization."""

    async def effect(change: Change) -> CreatedKey:
        await open_organization(change.connection, organization_id)
        issued = await issue_admin_key(change, organization_id, body.name, body.expires_at)
        await _audit(change, "admin_key.created", f"admin_key:{issued.row.id}", organization_id, body)
        return _created("admin_key", issued)

    return await request.change(effect)


@router.get("/organizations/{organization_id}/admin_keys")
async def list_admin_keys(
    organization_id: UUID, asked: Annotated[AskedById, Query()], request: Operator
) -> ListOf[Key]:
    """The admin keys of an organization, oldest first, with the revoked ones."""
    async with request.reading() as connection:
        await found_organization(connection, organization_id)
        rows, more = await stored.list_keys(connection, admin_key, asked.page(), organization_id=organization_id)
    return list_of(_keys("admin_key", rows), more)


@router.post("/organizations/{organization_id}/admin_keys/{key_id}/revoke", response_model=Key)
async def revoke_admin_key(organization_id: UUID, key_id: UUID, request: Operator) -> Response:
    """Revoke an admin key."""

    async def effect(change: Change) -> Key:
        row = await _revoked(change, admin_key, key_id, organization_id=organization_id)
        await change.audit("admin_key.revoked", f"admin_key:{key_id}", organization_id)
        return _keys("admin_key", [row])[0]

    return await request.change(effect)


@router.post("/organizations/{organization_id}/admin_keys/{key_id}/rotate", response_model=CreatedKey)
async def rotate_admin_key(organization_id: UUID, key_id: UUID, body: Rotation, request: Operator) -> Response:
    """Make a new admin key in the place of one, which works on for `overlap_seconds`."""

    async def effect(change: Change) -> CreatedKey:
        await open_organization(change.connection, organization_id)
        row = await stored.find_key(change.connection, admin_key, key_id, organization_id=organization_id)
        if row is None:
            raise NotFound("There is no such key here.")
        await issuing.hand_over(change, admin_key, row, body)
        issued = await issue_admin_key(change, organization_id, row.name, row.expires_at)
        asked = {"rotated_from": str(key_id), **body.model_dump(mode="json", exclude_unset=True)}
        await change.audit("admin_key.rotated", f"admin_key:{issued.row.id}", organization_id, **asked)
        return _created("admin_key", issued)

    return await request.change(effect)


# Operator keys -------------------------------------------------------------------------------------------------------


@router.post("/operator_keys", response_model=CreatedKey)
async def create_operator_key(body: NewKey, request: Operator) -> Response:
    """Create a key of another operator, or the successor of one's own."""

    async def effect(change: Change) -> CreatedKey:
        issued = await issue_operator_key(change, body.name, body.expires_at)
        await _audit(change, "operator_key.created", f"operator_key:{issued.row.id}", None, body)
        return _created("operator_key", issued)

    return await request.change(effect)


@router.get("/operator_keys")
async def list_operator_keys(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Key]:
    """The keys of operators, oldest first, with the revoked ones."""
    async with request.reading() as connection:
        rows, more = await stored.list_keys(connection, operator_key, asked.page())
    return list_of(_keys("operator_key", rows), more)


@router.post("/operator_keys/{key_id}/revoke", response_model=Key)
async def revoke_operator_key(key_id: UUID, request: Operator) -> Response:
    """Revoke a key of an operator, but not the one this request is made with: that could lock everybody out."""

    async def effect(change: Change) -> Key:
        if key_id == request.operator.operator_key_id:
            raise Conflict("A key cannot revoke itself. Use another operator key to revoke this one.")
        row = await _revoked(change, operator_key, key_id)
        await change.audit("operator_key.revoked", f"operator_key:{key_id}")
        return _keys("operator_key", [row])[0]

    return await request.change(effect)


async def _check_models(connection: AsyncConnection, models: Sequence[str] | None) -> None:
    if models and (missing := await missing_models(connection, models)):
        raise InvalidRequest(f"There is no model '{missing[0]}'. Create it first.", param="models")


async def _revoked(change: Change, keys: Table, key_id: UUID, **owner: UUID) -> AnyRow:
    row = await stored.revoke(change.connection, keys, key_id, change.now, **owner)
    if row is None:
        raise NotFound("There is no such key here.")
    change.revoked.append(row.digest)
    return row


def _keys(kind: str, rows: Sequence[AnyRow]) -> list[Key]:
    names = [name for name in Key.model_fields if name != "object"]
    return [Key(object=kind, **{name: getattr(row, name) for name in names}) for row in rows]


def _created(kind: str, issued: Issued) -> CreatedKey:
    return CreatedKey(**_keys(kind, [issued.row])[0].model_dump(), value=issued.value)


async def _audit(change: Change, action: str, subject: str, organization_id: UUID | None, body: Body) -> None:
    asked = body.model_dump(mode="json", exclude_unset=True)
    await change.audit(action, subject, organization_id, **asked)
