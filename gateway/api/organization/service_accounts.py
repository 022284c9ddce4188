"""Routes of service accounts, the programs that own keys of a project, and of the keys made for them."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import keys as stored_keys
from billing.store import service_accounts as stored
from billing.store.keys import KeyBounds
from billing.store.pages import AnyRow
from gateway.api.issuing import Issued, issue_api_key
from gateway.api.operator.organizations import found_organization
from gateway.api.operator.shapes import AskedById, Body, ListOf, Name, list_of
from gateway.api.organization.api_keys import ScopeTexts, bounded, set_spend_scope
from gateway.api.organization.projects import own_live_project, own_project
from gateway.api.organization.requests import Admin, Change
from gateway.api.organization.scopes import scopes_of
from gateway.api.organization.shapes import Deleted, LifeSeconds, ProjectRole, expiry, seconds, seconds_or_none
from models.errors import Conflict, InvalidRequest, NotFound

router = APIRouter()

_OBJECT = "organization.project.service_account"


class NewServiceAccount(Body):
    """A service account to create, with a key unless it is to have none."""

    name: Name
    create_service_account_only: bool | None = None
    expires_in_seconds: LifeSeconds | None = None


class ServiceAccountUpdate(Body):
    """What is to change of a service account; what is left out stays."""

    name: Name | None = None
    role: ProjectRole | None = None


class NewAccountKey(Body):
    """A key to create for a service account."""

    name: Name = "API key"
    scopes: ScopeTexts = Field(default_factory=list)
    expires_in_seconds: LifeSeconds | None = None


class AccountKey(BaseModel):
    """A new key; `value` is shown this once."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    value: str
    created_at: int
    expires_at: int | None

    @classmethod
    def of(cls, issued: Issued) -> AccountKey:
        """The answer for a new key."""
        row = issued.row
        return cls(
            id=str(row.id),
            name=row.name,
            value=issued.value,
            created_at=seconds(row.created_at),
            expires_at=seconds_or_none(row.expires_at),
        )


class ServiceAccount(BaseModel):
    """A service account."""

    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: Literal["owner", "member", "none"]
    created_at: int

    @classmethod
    def of(cls, row: AnyRow) -> ServiceAccount:
        """The answer for a row."""
        return cls(id=str(row.id), name=row.name, role=row.role, created_at=seconds(row.created_at))


class CreatedServiceAccount(ServiceAccount):
    """A new service account, with its first key."""

    api_key: AccountKey | None


@router.post("/projects/{project_id}/service_accounts", response_model=CreatedServiceAccount)
async def create_service_account(project_id: UUID, body: NewServiceAccount, request: Admin) -> Response:
    """Create a service account and, unless `create_service_account_only`, its first key."""
    if body.create_service_account_only and body.expires_in_seconds is not None:
        raise InvalidRequest("Without a key there is nothing that expires.", param="expires_in_seconds")

    async def effect(change: Change) -> CreatedServiceAccount:
        project = await own_live_project(change.connection, request.organization_id, project_id)
        role = "none" if body.create_service_account_only else "member"
        owner = (project.organization_id, project_id)
        row = await stored.create_service_account(change.connection, *owner, body.name, role, change.now)
        await change.audit("service_account.created", f"service_account:{row.id}", *owner, role=role, name=row.name)
        key = None
        if not body.create_service_account_only:
            ends_at = expiry(change.now, body.expires_in_seconds)
            bounds = KeyBounds(expires_at=ends_at, service_account_id=row.id)
            key = AccountKey.of(await _issued(change, project, body.name, bounds))
        return CreatedServiceAccount(**ServiceAccount.of(row).model_dump(), api_key=key)

    return await request.change(effect)


@router.get("/projects/{project_id}/service_accounts")
async def list_service_accounts(
    project_id: UUID, asked: Annotated[AskedById, Query()], request: Admin
) -> ListOf[ServiceAccount]:
    """The service accounts of a project, oldest first."""
    async with request.reading() as connection:
        await own_project(connection, request.organization_id, project_id)
        rows, more = await stored.list_service_accounts(connection, project_id, asked.page())
    return list_of([ServiceAccount.of(row) for row in rows], more)


@router.get("/projects/{project_id}/service_accounts/{account_id}")
async def get_service_account(project_id: UUID, account_id: UUID, request: Admin) -> ServiceAccount:
    """One service account."""
    async with request.reading() as connection:
        await own_project(connection, request.organization_id, project_id)
        return ServiceAccount.of(await _found(connection, project_id, account_id))


@router.post("/projects/{project_id}/service_accounts/{account_id}", response_model=ServiceAccount)
async def update_service_account(
    project_id: UUID, account_id: UUID, body: ServiceAccountUpdate, request: Admin
) -> Response:
    """Change the name or the role of a service account."""

    async def effect(change: Change) -> ServiceAccount:
        await own_live_project(change.connection, request.organization_id, project_id)
        row = await _found(change.connection, project_id, account_id)
        columns = body.model_dump(exclude_none=True)
        if columns:
            row = await stored.update_service_account(change.connection, account_id, columns)
        owner = (request.organization_id, project_id)
        await change.audit("service_account.updated", f"service_account:{account_id}", *owner, **columns)
        return ServiceAccount.of(row)

    return await request.change(effect)


@router.delete("/projects/{project_id}/service_accounts/{account_id}", response_model=Deleted)
async def delete_service_account(project_id: UUID, account_id: UUID, request: Admin) -> Response:
    """Delete a service account: its keys stop here at once and in every gateway within five seconds."""

    async def effect(change: Change) -> Deleted:
        # Locked, so that no key is made for it meanwhile.
        await found_organization(change.connection, request.organization_id, for_update=True)
        await own_project(change.connection, request.organization_id, project_id)
        await _found(change.connection, project_id, account_id)
        await stored.update_service_account(change.connection, account_id, {"deleted_at": change.now})
        change.revoked += await stored_keys.revoke_keys_of(change.connection, account_id, change.now)
        owner = (request.organization_id, project_id)
        await change.audit("service_account.deleted", f"service_account:{account_id}", *owner)
        return Deleted(id=str(account_id), object=f"{_OBJECT}.deleted")

    return await request.change(effect)


@router.post("/projects/{project_id}/service_accounts/{account_id}/api_keys", response_model=AccountKey)
async def create_service_account_key(
    project_id: UUID, account_id: UUID, body: NewAccountKey, request: Admin
) -> Response:
    """Create a key of a service account, bound by its scopes."""

    async def effect(change: Change) -> AccountKey:
        project = await own_live_project(change.connection, request.organization_id, project_id)
        account = await _found(change.connection, project_id, account_id)
        if account.role == "none":
            raise Conflict("This service account has no role in the project. Give it the role member first.")
        scopes = await bounded(change.connection, request, project, body.scopes)
        bounds = KeyBounds(
            expires_at=expiry(change.now, body.expires_in_seconds),
            models=scopes.models,
            endpoints=scopes.endpoints,
            networks=scopes.networks,
            service_account_id=account_id,
        )
        issued = await _issued(change, project, body.name, bounds, scopes.spend_cents)
        if scopes.spend_cents is not None:
            await set_spend_scope(change, issued.row, scopes.spend_cents)
        return AccountKey.of(issued)

    return await request.change(effect)


async def _found(connection: AsyncConnection, project_id: UUID, account_id: UUID) -> AnyRow:
    row = await stored.find_service_account(connection, project_id, account_id)
    if row is None:
        raise NotFound("There is no such service account in this project.")
    return row


async def _issued(
    change: Change, project: AnyRow, name: str, bounds: KeyBounds, spend_cents: int | None = None
) -> Issued:
    issued = await issue_api_key(change, project.organization_id, project.id, name, bounds)
    detail = {"name": name, "scopes": scopes_of(bounds, spend_cents)}
    owner = (project.organization_id, project.id)
    await change.audit("api_key.created", f"api_key:{issued.row.id}", *owner, **detail)
    return issued
