"""Routes of a project's API keys: seen, bound by scopes, rotated and deleted here; service accounts get new ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import keys as stored
from billing.store import spend_limits
from billing.store.pages import AnyRow
from billing.store.service_accounts import service_accounts_by_id
from gateway.api.issuing import Rotation, check_alive, rotate_api_key
from gateway.api.operator.organizations import found_organization
from gateway.api.operator.shapes import AskedById, Body, ListOf, list_of
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, AdminRequest, Change
from gateway.api.organization.scopes import Scopes, parse_scopes, scopes_of
from gateway.api.organization.shapes import (
    Deleted,
    LastUse,
    LifeSeconds,
    cents,
    dollars,
    expiry,
    seconds,
    seconds_or_none,
)
from gateway.api.organization.sold import check_sold
from gateway.api.organization.spend_limits import set_own_limit
from models.errors import InvalidRequest, NotFound, NotPermitted
from models.tables import api_key

router = APIRouter()

ScopeTexts = Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=1_000)]


class KeyUpdate(Body):
    """What is to change of a key: all of its scopes, its expiry counted from now, or both."""

    scopes: ScopeTexts | None = None
    expires_in_seconds: LifeSeconds | None = None


class KeyRotation(Rotation):
    """How a key hands over; the new one has the old one's expiry unless one is given, counted from now."""

    expires_in_seconds: LifeSeconds | None = None


class OwningAccount(BaseModel):
    """The service account that owns a key."""

    id: str
    name: str
    role: str
    created_at: int


class KeyOwner(BaseModel):
    """Who owns a key: a service account, or (with nothing set) the project alone, as for keys of the operator."""

    type: Literal["user", "service_account"] | None = None
    user: None = None
    service_account: OwningAccount | None = None


class ProjectKey(BaseModel):
    """An API key as it can be shown again; `scopes` is Tollgate's own field."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: LastUse
    expires_at: int | None
    owner: KeyOwner
    owner_project_access: Literal["active", "inactive"]
    scopes: list[str]


class RotatedProjectKey(ProjectKey):
    """The key that takes over; `value` is shown this once."""

    value: str


class AskedKeys(AskedById):
    """Which keys to list."""

    owner_project_access: Literal["active", "inactive", "any"] = "any"


@router.get("/projects/{project_id}/api_keys")
async def list_project_keys(
    project_id: UUID, asked: Annotated[AskedKeys, Query()], request: Admin
) -> ListOf[ProjectKey]:
    """The API keys of a project that were not deleted, oldest first."""
    async with request.reading() as connection:
        project = await own_project(connection, request.organization_id, project_id)
        if asked.owner_project_access not in ("any", _access(project)):
            return list_of([], False)
        owner = {"organization_id": request.organization_id, "project_id": project_id}
        rows, more = await stored.list_keys(connection, api_key, asked.page(), with_revoked=False, **owner)
        return list_of(await _shown(connection, project, rows), more)


@router.get("/projects/{project_id}/api_keys/{key_id}")
async def get_project_key(project_id: UUID, key_id: UUID, request: Admin) -> ProjectKey:
    """One API key."""
    async with request.reading() as connection:
        project = await own_project(connection, request.organization_id, project_id)
        row = await _found(connection, project_id, key_id)
        return (await _shown(connection, project, [row]))[0]


@router.post("/projects/{project_id}/api_keys/{key_id}", response_model=ProjectKey)
async def update_project_key(project_id: UUID, key_id: UUID, body: KeyUpdate, request: Admin) -> Response:
    """Replace the scopes of an API key, or give it another expiry; a gateway follows within seconds."""
    if not body.model_fields_set or None in (getattr(body, name) for name in body.model_fields_set):
        raise InvalidRequest("Give scopes, expires_in_seconds or both, and neither as null.", param="scopes")

    async def effect(change: Change) -> ProjectKey:
        project = await own_live_project(change.connection, request.organization_id, project_id)
        row = await _found(change.connection, project_id, key_id)
        check_alive(change, row)
        columns: dict[str, Any] = {}
        if body.scopes is not None:
            scopes = await bounded(change.connection, request, project, body.scopes)
            columns |= {name: _listed(getattr(scopes, name)) for name in ("models", "endpoints", "networks")}
            await set_spend_scope(change, row, scopes.spend_cents)
        if body.expires_in_seconds is not None:
            columns["expires_at"] = expiry(change.now, body.expires_in_seconds)
        row = await stored.update_api_key(change.connection, key_id, columns) or row
        change.revoked.append(row.digest)
        await _audit(change, "api_key.updated", row, **body.model_dump(exclude_unset=True))
        return (await _shown(change.connection, project, [row]))[0]

    return await request.change(effect)


@router.post("/projects/{project_id}/api_keys/{key_id}/rotate", response_model=RotatedProjectKey)
async def rotate_project_key(project_id: UUID, key_id: UUID, body: KeyRotation, request: Admin) -> Response:
    """Make a new key with the same scopes; the old one works on for `overlap_seconds`. Not in OpenAI's API."""

    async def effect(change: Change) -> RotatedProjectKey:
        project = await own_live_project(change.connection, request.organization_id, project_id)
        row = await _found(change.connection, project_id, key_id)
        issued = await rotate_api_key(change, row, body, expiry(change.now, body.expires_in_seconds))
        detail = {"rotated_from": str(key_id), **body.model_dump(exclude_unset=True)}
        await _audit(change, "api_key.rotated", issued.row, **detail)
        shown = await _shown(change.connection, project, [issued.row])
        return RotatedProjectKey(**shown[0].model_dump(), value=issued.value)

    return await request.change(effect)


@router.delete("/projects/{project_id}/api_keys/{key_id}", response_model=Deleted)
async def delete_project_key(project_id: UUID, key_id: UUID, request: Admin) -> Response:
    """Delete an API key: it stops here at once and in every gateway within five seconds."""

    async def effect(change: Change) -> Deleted:
        await own_project(change.connection, request.organization_id, project_id)
        row = await _found(change.connection, project_id, key_id)
        await stored.revoke(change.connection, api_key, key_id, change.now, project_id=project_id)
        change.revoked.append(row.digest)
        await _audit(change, "api_key.deleted", row)
        return Deleted(id=str(key_id), object="organization.project.api_key.deleted")

    return await request.change(effect)


async def bounded(connection: AsyncConnection, request: AdminRequest, project: AnyRow, texts: list[str]) -> Scopes:
    """The bounds of a key to be, which must lie within its project's; raises `NotPermitted` where they do not."""
    scopes = parse_scopes(texts)
    models = scopes.models or ()
    organization = await found_organization(connection, request.organization_id)
    await check_sold(request.parts, organization, models, "scopes")
    if project.models_mode is not None:
        is_allowed = project.models_mode == "allow_list"
        if beyond := [model for model in models if (model in project.models) != is_allowed]:
            raise NotPermitted(
                f"The project may not call the model '{beyond[0]}', so none of its keys may. "
                "Change the model permissions of the project first."
            )
    if scopes.spend_cents is not None:
        dollars(scopes.spend_cents, organization.currency, "scopes")
    return scopes


async def set_spend_scope(change: Change, row: AnyRow, spend_cents: int | None) -> None:
    """Have a key spend no more than this in a month (None: no limit of the organization's own)."""
    key_id = row.counted_as or row.id
    organization = await found_organization(change.connection, row.organization_id)
    amount = None if spend_cents is None else dollars(spend_cents, organization.currency, "scopes")
    await set_own_limit(change, organization, amount, api_key_id=key_id)


async def _found(connection: AsyncConnection, project_id: UUID, key_id: UUID) -> AnyRow:
    row = await stored.find_key(connection, api_key, key_id, project_id=project_id)
    if row is None or row.revoked_at is not None:
        raise NotFound("There is no such API key in this project.")
    return row


async def _shown(connection: AsyncConnection, project: AnyRow, rows: list[AnyRow]) -> list[ProjectKey]:
    accounts = await service_accounts_by_id(
        connection, [row.service_account_id for row in rows if row.service_account_id]
    )
    limits = await spend_limits.own_limits_of_keys(connection, [row.counted_as or row.id for row in rows])
    shown = []
    for row in rows:
        limit = limits.get(row.counted_as or row.id)
        shown.append(
            ProjectKey(
                id=str(row.id),
                name=row.name,
                redacted_value=row.redacted_value,
                created_at=seconds(row.created_at),
                last_used_at=seconds_or_none(row.last_used_at),
                expires_at=seconds_or_none(row.expires_at),
                owner=_owner(accounts.get(row.service_account_id)),
                owner_project_access=_access(project),
                scopes=scopes_of(row, None if limit is None else cents(limit)),
            )
        )
    return shown


def _owner(account: AnyRow | None) -> KeyOwner:
    if account is None:
        return KeyOwner()
    shown = OwningAccount(
        id=str(account.id), name=account.name, role=account.role, created_at=seconds(account.created_at)
    )
    return KeyOwner(type="service_account", service_account=shown)


def _access(project: AnyRow) -> Literal["active", "inactive"]:
    return "active" if project.archived_at is None else "inactive"


def _listed(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


async def _audit(change: Change, action: str, row: AnyRow, **detail: Any) -> None:
    await change.audit(action, f"api_key:{row.id}", row.organization_id, row.project_id, **detail)
