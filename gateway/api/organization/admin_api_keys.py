"""Routes of admin keys: those that administer the organization, as the one that asks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import keys as stored
from billing.store.pages import AnyRow
from gateway.api.issuing import Rotation, hand_over, issue_admin_key
from gateway.api.operator.organizations import open_organization
from gateway.api.operator.shapes import Body, ListOf, Name, list_of
from gateway.api.organization.requests import Admin, AdminRequest, Change
from gateway.api.organization.shapes import (
    AskedInOrder,
    Deleted,
    LastUse,
    LifeSeconds,
    expiry,
    seconds,
    seconds_or_none,
)
from gateway.auth import NOT_AUTHENTICATED
from models.errors import Conflict, NotAuthenticated, NotFound, NotPermitted
from models.tables import admin_key

router = APIRouter()


class NewAdminKey(Body):
    """An admin key to create."""

    name: Name
    expires_in_seconds: LifeSeconds | None = None


class AdminKeyRotation(Rotation):
    """How an admin key hands over; the new one has the old one's expiry unless one is given, counted from now."""

    expires_in_seconds: LifeSeconds | None = None


class AdminKeyOwner(BaseModel):
    """Whoever holds the key: what an owner may do, without a person behind it."""

    type: Literal["user"] = "user"
    object: Literal["organization.user"] = "organization.user"
    role: Literal["owner"] = "owner"
    id: str | None = None
    name: str | None = None
    created_at: int | None = None


class AdminKey(BaseModel):
    """An admin key as it can be shown again."""

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: LastUse
    owner: AdminKeyOwner = AdminKeyOwner()

    @classmethod
    def of(cls, row: AnyRow) -> AdminKey:
        """The answer for a row."""
        return cls(
            id=str(row.id),
            name=row.name,
            redacted_value=row.redacted_value,
            created_at=seconds(row.created_at),
            expires_at=seconds_or_none(row.expires_at),
            last_used_at=seconds_or_none(row.last_used_at),
        )


class CreatedAdminKey(AdminKey):
    """A new admin key; `value` is shown this once."""

    value: str


@router.post("/admin_api_keys", response_model=CreatedAdminKey)
async def create_admin_api_key(body: NewAdminKey, request: Admin) -> Response:
    """Create an admin key; it lives no longer than the key that this request is made with."""

    async def effect(change: Change) -> CreatedAdminKey:
        own = await _own(change, request)
        return await _created(change, own, body.name, expiry(change.now, body.expires_in_seconds))

    return await request.change(effect)


@router.get("/admin_api_keys")
async def list_admin_api_keys(asked: Annotated[AskedInOrder, Query()], request: Admin) -> ListOf[AdminKey]:
    """The admin keys that were not deleted."""
    async with request.reading() as connection:
        owner = {"organization_id": request.organization_id}
        rows, more = await stored.list_keys(connection, admin_key, asked.page(), with_revoked=False, **owner)
    return list_of([AdminKey.of(row) for row in rows], more)


@router.get("/admin_api_keys/{key_id}")
async def get_admin_api_key(key_id: UUID, request: Admin) -> AdminKey:
    """One admin key."""
    async with request.reading() as connection:
        return AdminKey.of(await _found(connection, request, key_id))


@router.post("/admin_api_keys/{key_id}/rotate", response_model=CreatedAdminKey)
async def rotate_admin_api_key(key_id: UUID, body: AdminKeyRotation, request: Admin) -> Response:
    """Make a new admin key; the old one works on for `overlap_seconds`. Not in OpenAI's API."""

    async def effect(change: Change) -> CreatedAdminKey:
        own = await _own(change, request)
        row = await _found(change.connection, request, key_id)
        ends_at = expiry(change.now, body.expires_in_seconds) or row.expires_at
        await hand_over(change, admin_key, row, body)
        return await _created(change, own, row.name, ends_at, rotated_from=str(key_id))

    return await request.change(effect)


@router.delete("/admin_api_keys/{key_id}", response_model=Deleted)
async def delete_admin_api_key(key_id: UUID, request: Admin) -> Response:
    """Delete an admin key, but not the one this request is made with: that could lock everybody out."""
    if key_id == request.admin.admin_key_id:
        raise Conflict("A key cannot delete itself. Use another admin key to delete this one.")

    async def effect(change: Change) -> Deleted:
        await _own(change, request)
        row = await _found(change.connection, request, key_id)
        await stored.revoke(change.connection, admin_key, key_id, change.now, organization_id=request.organization_id)
        change.revoked.append(row.digest)
        await change.audit("admin_key.revoked", f"admin_key:{key_id}", request.organization_id)
        return Deleted(id=str(key_id), object="organization.admin_api_key.deleted")

    return await request.change(effect)


async def _own(change: Change, request: AdminRequest) -> AnyRow:
    """The key that this request is made with, its organization locked: nobody ends it before the change is done.

    That it was ended a moment ago a gateway may not know for seconds. Then it must make no key, which would live on,
    and delete none, or two could delete each other.
    """
    await open_organization(change.connection, request.organization_id)
    row = await stored.find_key(change.connection, admin_key, request.admin.admin_key_id)
    if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= change.now):
        raise NotAuthenticated(NOT_AUTHENTICATED)
    return row


async def _created(
    change: Change, own: AnyRow, name: str, expires_at: datetime | None, **detail: Any
) -> CreatedAdminKey:
    ends_at = own.expires_at
    # A key that could make one that outlives it would never really end.
    if ends_at is not None and (expires_at is None or expires_at > ends_at):
        raise NotPermitted(
            f"The key that you use ends at {ends_at:%Y-%m-%dT%H:%M:%SZ}, and none that it makes may live longer. "
            "Give a shorter expires_in_seconds, or use a key that lives longer."
        )
    issued = await issue_admin_key(change, own.organization_id, name, expires_at)
    action = "admin_key.rotated" if detail else "admin_key.created"
    await change.audit(action, f"admin_key:{issued.row.id}", own.organization_id, None, name=name, **detail)
    return CreatedAdminKey(**AdminKey.of(issued.row).model_dump(), value=issued.value)


async def _found(connection: AsyncConnection, request: AdminRequest, key_id: UUID) -> AnyRow:
    row = await stored.find_key(connection, admin_key, key_id, organization_id=request.organization_id)
    if row is None or row.revoked_at is not None:
        raise NotFound("There is no such admin key in this organization.")
    return row
