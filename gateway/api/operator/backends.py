"""Routes of backends: the model servers that calls are sent to. Only the operator names them, never a caller."""

from __future__ import annotations

import asyncio
import ipaddress
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import catalog as stored
from billing.store.pages import AnyRow
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, BackendName, Body, ListOf, Printable, list_of
from gateway.embedded.discovery import probe
from models.catalog import BackendKind
from models.errors import InvalidRequest, NotFound

router = APIRouter()

PROBE_TIMEOUT_SECONDS: Final = 3.0


def _root_url(value: str) -> str:
    """The root of a server, `http(s)://host[:port]`, or `ValueError`: a path or a query would change every call."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must be http://host[:port] or https://host[:port]")
    if not value.isascii() or any(character <= " " or character in "\\\x7f" for character in value):
        raise ValueError("must not contain blanks, backslashes or characters beyond ASCII")
    if "@" in parts.netloc:
        raise ValueError("must not contain a user or password; send the token as 'credential'")
    if parts.path not in ("", "/", "/v1", "/v1/") or "?" in value or "#" in value:
        raise ValueError("must be the root of the server, without a path")
    _refuse_strange_address(host)
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}" + (f":{port}" if port is not None else "")


def _refuse_strange_address(host: str) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    # Link-local addresses are where clouds keep the machine's credentials, and no model server.
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise ValueError("must not be a link-local, multicast or unspecified address")


Url = Annotated[str, StringConstraints(max_length=500), AfterValidator(_root_url)]
# A header value: what cannot stand there would fail each call, or forge a header.
Credential = Annotated[str, StringConstraints(min_length=1, max_length=4_096, pattern=r"^[\x21-\x7e]+$"), Printable]
InFlight = Annotated[int, Field(ge=1, le=1_000_000)]


class NewBackend(Body):
    """A model server to send calls to; without `kind` it is asked what it is."""

    name: BackendName
    url: Url
    kind: BackendKind | None = None
    credential: Credential | None = Field(None, description="What the server demands as a Bearer token; never shown")
    max_in_flight: InFlight | None = None


class BackendUpdate(Body):
    """What is to change of a backend; what is left out stays, `credential: null` removes the credential."""

    url: Url | None = None
    kind: BackendKind | None = None
    credential: Credential | None = None
    max_in_flight: InFlight | None = None
    disabled: bool | None = None


class Backend(BaseModel):
    """A backend; whether it has a credential is told, the credential is not."""

    id: UUID
    object: Literal["backend"] = "backend"
    name: str
    kind: BackendKind
    url: str
    max_in_flight: int | None
    has_credential: bool
    created_at: datetime
    disabled_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> Backend:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in ("object", "has_credential")}
        return cls(**plain, has_credential=row.credential is not None)


@router.post("/backends", response_model=Backend)
async def create_backend(body: NewBackend, request: Operator) -> Response:
    """Create a backend."""

    async def effect(change: Change) -> Backend:
        columns = body.model_dump() | {"kind": (body.kind or await _detected(body.url)).value}
        row = await stored.create_backend(change.connection, change.now, columns)
        await _audit(change, "backend.created", row, body)
        return Backend.of(row)

    return await request.change(effect)


@router.get("/backends")
async def list_backends(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Backend]:
    """All backends, oldest first, with the disabled ones."""
    async with request.reading() as connection:
        rows, more = await stored.list_backends(connection, asked.page())
    return list_of([Backend.of(row) for row in rows], more)


@router.get("/backends/{backend}")
async def get_backend(backend: BackendName, request: Operator) -> Backend:
    """One backend, by its id or its name."""
    async with request.reading() as connection:
        return Backend.of(await found_backend(connection, backend))


@router.patch("/backends/{backend}", response_model=Backend, include_in_schema=False)
@router.post("/backends/{backend}", response_model=Backend)
async def update_backend(backend: BackendName, body: BackendUpdate, request: Operator) -> Response:
    """Change, disable or enable a backend. A disabled one gets no new call; running calls end."""

    async def effect(change: Change) -> Backend:
        row = await found_backend(change.connection, backend)
        columns: dict[str, Any] = body.model_dump(mode="json", exclude_unset=True, exclude={"disabled"})
        for name in ("url", "kind"):
            if columns.get(name, "") is None:
                raise InvalidRequest(f"'{name}' cannot be null. Leave it out to keep it.", param=name)
        if body.disabled is not None:
            columns["disabled_at"] = (row.disabled_at or change.now) if body.disabled else None
        if columns:
            row = await stored.update_backend(change.connection, row.id, columns) or row
        await _audit(change, "backend.updated", row, body)
        return Backend.of(row)

    return await request.change(effect)


async def found_backend(connection: AsyncConnection, name_or_id: str) -> AnyRow:
    """The backend of this name or id, or `NotFound`."""
    row = await stored.find_backend(connection, name_or_id)
    if row is None:
        raise NotFound(f"There is no backend '{name_or_id}'.")
    return row


async def _detected(url: str) -> BackendKind:
    found = await asyncio.to_thread(probe, url, PROBE_TIMEOUT_SECONDS)
    if found is None:
        raise InvalidRequest(
            "The server could not be asked what it is. Start it, correct 'url', or give 'kind'.", param="kind"
        )
    return found.kind


async def _audit(change: Change, action: str, row: AnyRow, body: Body) -> None:
    change.catalog_changed = True
    asked = body.model_dump(mode="json", exclude_unset=True, exclude={"credential"})
    if "credential" in body.model_fields_set:
        asked["credential"] = "changed"
    await change.audit(action, f"backend:{row.name}", **asked)
