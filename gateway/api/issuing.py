"""Keys as operators and administrators alike issue them: their bounds, their making, and the key that takes over."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Annotated, Final, NamedTuple
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Table

from billing.store import keys as stored
from billing.store.keys import KeyBounds
from billing.store.pages import AnyRow
from gateway.api.transactions import Change
from gateway.keys import KeyKind, mint
from models.call import Endpoint
from models.errors import Conflict, InvalidRequest
from models.tables import admin_key, api_key, operator_key

LONGEST_OVERLAP_SECONDS: Final = 90 * 86_400
LAST_USE: Final = "When the key was last let in, up to a minute behind; null where no use is known"
"""Of a field. Lines of batches are let in without their key."""


def network_text(value: str) -> str:
    """A network as it is stored: `10.1.2.3` is `10.1.2.3/32`."""
    try:
        return str(ip_network(value.strip()))
    except ValueError:
        raise ValueError(f"'{value[:64]}' is no network. Write it as 10.0.0.0/8 or 2001:db8::/32.") from None


def endpoint_path(value: str) -> str:
    """A metered path."""
    if value not in frozenset(Endpoint):
        known = ", ".join(Endpoint)
        raise ValueError(f"'{value[:64]}' is no endpoint of calls. There are {known}.")
    return value


NetworkText = Annotated[str, StringConstraints(max_length=64), AfterValidator(network_text)]
EndpointPath = Annotated[str, StringConstraints(max_length=64), AfterValidator(endpoint_path)]
Networks = Annotated[list[NetworkText], Field(min_length=1, max_length=100)]
Endpoints = Annotated[list[EndpointPath], Field(max_length=50)]
OverlapSeconds = Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_SECONDS)]


class Rotation(BaseModel):
    """How a key hands over to its successor: for `overlap_seconds` from now both work."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: OverlapSeconds = 86_400


class Issued(NamedTuple):
    """A key that was made just now, as it is stored; `value` is shown this once."""

    row: AnyRow
    value: str


async def issue_api_key(
    change: Change, organization_id: UUID, project_id: UUID, name: str, bounds: KeyBounds
) -> Issued:
    """Make an API key of a project."""
    check_expiry(change, bounds.expires_at)
    minted = mint(KeyKind.API, change.pepper)
    key_id = await stored.create_api_key(
        change.connection,
        organization_id=organization_id,
        project_id=project_id,
        name=name,
        digest=minted.digest,
        redacted_value=minted.redacted_value,
        now=change.now,
        bounds=bounds,
    )
    return await _issued(change, api_key, key_id, minted.value)


async def issue_admin_key(change: Change, organization_id: UUID, name: str, expires_at: datetime | None) -> Issued:
    """Make an admin key of an organization."""
    check_expiry(change, expires_at)
    minted = mint(KeyKind.ADMIN, change.pepper)
    key_id = await stored.create_admin_key(
        change.connection,
        organization_id=organization_id,
        name=name,
        digest=minted.digest,
        redacted_value=minted.redacted_value,
        now=change.now,
        expires_at=expires_at,
    )
    return await _issued(change, admin_key, key_id, minted.value)


async def issue_operator_key(change: Change, name: str, expires_at: datetime | None) -> Issued:
    """Make a key of an operator."""
    check_expiry(change, expires_at)
    minted = mint(KeyKind.OPERATOR, change.pepper)
    key_id = await stored.create_operator_key(
        change.connection,
        name=name,
        digest=minted.digest,
        redacted_value=minted.redacted_value,
        now=change.now,
        expires_at=expires_at,
    )
    return await _issued(change, operator_key, key_id, minted.value)


async def rotate_api_key(change: Change, row: AnyRow, rotation: Rotation, expires_at: datetime | None = None) -> Issued:
    """Make the successor of an API key, with the same bounds and expiry unless another is given.

    The old one ends with the overlap. Both are counted as one, so that a rotation doubles no limit.
    """
    await hand_over(change, api_key, row, rotation)
    bounds = KeyBounds.of(row)
    if expires_at is not None:
        bounds = replace(bounds, expires_at=expires_at)
    return await issue_api_key(change, row.organization_id, row.project_id, row.name, bounds)


async def hand_over(change: Change, keys: Table, row: AnyRow, rotation: Rotation) -> None:
    """Let a key of one of the three tables live for the overlap and no longer."""
    check_alive(change, row)
    await stored.expire(change.connection, keys, row.id, change.now + timedelta(seconds=rotation.overlap_seconds))
    change.revoked.append(row.digest)


def check_alive(change: Change, row: AnyRow) -> None:
    """Raise `Conflict` for a key that has ended."""
    if row.revoked_at is not None:
        raise Conflict("This key is revoked. Create a new one.")
    if row.expires_at is not None and row.expires_at <= change.now:
        raise Conflict("This key has expired. Create a new one.")


def check_expiry(change: Change, expires_at: datetime | None) -> None:
    """Raise `InvalidRequest` for a key that would be dead from the start."""
    if expires_at is not None and expires_at <= change.now:
        raise InvalidRequest("The key would expire before it is used. Give a later expires_at.", param="expires_at")


async def _issued(change: Change, keys: Table, key_id: UUID, value: str) -> Issued:
    row = await stored.find_key(change.connection, keys, key_id)
    assert row is not None, "it was stored just now"
    return Issued(row, value)
