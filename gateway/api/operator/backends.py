"""Routes of backends: the model servers that calls are sent to. Only the operator names them, never a caller.

A URL is enough: the server is asked which engine it is, which models it serves and how long their contexts are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import catalog as stored
from billing.store.pages import AnyRow
from billing.store.routing import find_alias
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, BackendName, Body, ListOf, ModelId, Printable, Slug, list_of
from gateway.destinations import resolve
from gateway.discovery import FoundBackend, ServedModel, probe
from gateway.health import HealthChecks
from gateway.parts import Parts
from gateway.telemetry import BACKENDS
from models.catalog import BackendKind
from models.errors import InvalidRequest, NotFound

router = APIRouter()

PROBE_TIMEOUT_SECONDS: Final = 3.0

_MODEL_ID: Final = re.compile(r"(?!.*(^|/)\.{1,2}(/|$))[A-Za-z0-9/_~@][A-Za-z0-9._:/@+~-]{0,199}")
"""A model of another name cannot be called: see `ModelId`."""


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
    _refuse_strange_name(host)
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}" + (f":{port}" if port is not None else "")


def _refuse_strange_address(host: str) -> None:
    # Link-local addresses are where clouds keep the machine's credentials, and no model server.
    if _is_strange(host):
        raise ValueError("must not be a link-local, multicast or unspecified address")


def _refuse_strange_name(host: str) -> None:
    # By both who will look it up: what they raise for such a name is no failed connection.
    try:
        host.encode("idna")
        if ":" not in host:
            _ = httpx.URL(scheme="http", host=host).host
    except (UnicodeError, httpx.InvalidURL):
        raise ValueError("must name a host that can be looked up") from None


def _is_strange(host: str) -> bool:
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # Systems connect to 2852039166, 0xa9.0xfe.0xa9.0xfe and 169.254.43518 as to 169.254.169.254.
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return False
    carried = getattr(address, "ipv4_mapped", None) or address
    return bool(carried.is_link_local or carried.is_multicast or carried.is_unspecified)


def _path_prefix(value: str) -> str:
    if any(segment in (".", "..") for segment in value.split("/")):
        raise ValueError("must not contain '.' or '..' as a part of a path")
    return value


Url = Annotated[str, StringConstraints(max_length=500), AfterValidator(_root_url)]
# A header value: what cannot stand there would fail each call, or forge a header.
Credential = Annotated[str, StringConstraints(min_length=1, max_length=4_096, pattern=r"^[\x21-\x7e]+$"), Printable]
InFlight = Annotated[int, Field(ge=1, le=1_000_000)]
PathPrefix = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9._~-]{1,64}){1,8}$"), AfterValidator(_path_prefix)]
Region = Annotated[Slug | None, Field(description="Where it stands; for organizations bound to regions")]
Prefix = Annotated[
    PathPrefix | None, Field(description="What stands for /v1 there, such as /api/v1 of a provider; null: /v1")
]


class NewBackend(Body):
    """A model server to send calls to; without `kind` it is asked what it is, and without `name` it gets one.

    With `create_models` the models that it serves are created, too, each with a deployment there; prices are not.
    """

    name: BackendName | None = None
    url: Url
    kind: BackendKind | None = None
    credential: Credential | None = Field(None, description="What the server demands as a Bearer token; never shown")
    max_in_flight: InFlight | None = None
    region: Region = None
    path_prefix: Prefix = None
    create_models: bool = False


class BackendUpdate(Body):
    """What is to change of a backend; what is left out stays, `credential: null` removes the credential."""

    url: Url | None = None
    kind: BackendKind | None = None
    credential: Credential | None = None
    max_in_flight: InFlight | None = None
    region: Region = None
    path_prefix: Prefix = None
    disabled: bool | None = None


class Healthiness(BaseModel):
    """What the health checks of the gateway that answers have shown."""

    healthy: bool
    failures: int
    reason: str | None
    checked_at: datetime | None


class Backend(BaseModel):
    """A backend; whether it has a credential is told, the credential is not."""

    id: UUID
    object: Literal["backend"] = "backend"
    name: str
    kind: BackendKind
    url: str
    max_in_flight: int | None
    region: str | None
    path_prefix: str | None
    has_credential: bool
    health: Healthiness | None = Field(description="As the gateway sees it that answers; null: it makes no checks")
    running_calls: int = Field(description="Calls that the gateway that answers has running there")
    created_at: datetime
    disabled_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow, parts: Parts) -> Backend:
        """The answer for a row."""
        made = ("object", "has_credential", "health", "running_calls")
        return cls(
            **{name: getattr(row, name) for name in cls.model_fields if name not in made},
            has_credential=row.credential is not None,
            health=_health(row.id, parts.health) if parts.settings.health_check_seconds else None,
            running_calls=sum(gauge.in_flight for gauge in BACKENDS.read() if gauge.backend == row.name),
        )


class Served(BaseModel):
    """A model as its server lists it."""

    id: str
    context_length: int
    capabilities: list[str]
    tokenizer: str | None
    parent: str | None


class Discovery(BaseModel):
    """What a server says it is."""

    object: Literal["backend_discovery"] = "backend_discovery"
    kind: BackendKind
    has_counters: bool
    models: list[Served]


class WantedModels(Body):
    """Which of the models that a backend serves are to be sold; null: all of them."""

    models: Annotated[list[ModelId], Field(max_length=200)] | None = None


class TakenModels(BaseModel):
    """What was made of the models that a backend serves: `known` ones were there and had their deployment."""

    object: Literal["backend_models"] = "backend_models"
    created: list[str]
    deployed: list[str]
    known: list[str]
    skipped: list[str]


@router.post("/backends", response_model=Backend)
async def create_backend(body: NewBackend, request: Operator) -> Response:
    """Create a backend."""

    async def effect(change: Change) -> Backend:
        columns = body.model_dump(exclude={"create_models"})
        found = None
        if body.kind is None or body.name is None or body.create_models:
            found = await _found(body.url, body.credential, body.path_prefix)
            columns |= {"kind": (body.kind or found.kind).value, "name": body.name or found.name}
        row = await stored.create_backend(change.connection, change.now, columns)
        await _audit(change, "backend.created", row, body)
        if found is not None and body.create_models:
            await _take_models(change, row, found.models)
        return Backend.of(row, request.parts)

    return await request.change(effect)


@router.get("/backends/{backend}/discovery")
async def discover(backend: BackendName, request: Operator) -> Discovery:
    """Ask a backend what it is and which models it serves; nothing is changed."""
    async with request.reading() as connection:
        row = await found_backend(connection, backend)
    found = await _found(row.url, row.credential, row.path_prefix)
    served = [
        Served(
            id=each.id,
            context_length=each.context_length,
            capabilities=list(each.capabilities),
            tokenizer=each.tokenizer,
            parent=each.parent,
        )
        for each in found.models
    ]
    return Discovery(kind=found.kind, has_counters=found.has_counters, models=served)


@router.post("/backends/{backend}/models", response_model=TakenModels)
async def take_models(backend: BackendName, body: WantedModels, request: Operator) -> Response:
    """Create models, or deployments of known models, from what a backend serves. They can be called once priced."""

    async def effect(change: Change) -> TakenModels:
        row = await found_backend(change.connection, backend)
        found = await _found(row.url, row.credential, row.path_prefix)
        served = {each.id: each for each in found.models}
        if missing := sorted(set(body.models or ()) - served.keys()):
            raise InvalidRequest(f"The backend does not serve '{missing[0]}'.", param="models")
        wanted = found.models if body.models is None else [served[name] for name in dict.fromkeys(body.models)]
        return await _take_models(change, row, wanted)

    return await request.change(effect)


@router.get("/backends")
async def list_backends(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Backend]:
    """All backends, oldest first, with the disabled ones."""
    async with request.reading() as connection:
        rows, more = await stored.list_backends(connection, asked.page())
    return list_of([Backend.of(row, request.parts) for row in rows], more)


@router.get("/backends/{backend}")
async def get_backend(backend: BackendName, request: Operator) -> Backend:
    """One backend, by its id or its name."""
    async with request.reading() as connection:
        return Backend.of(await found_backend(connection, backend), request.parts)


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
        return Backend.of(row, request.parts)

    return await request.change(effect)


async def found_backend(connection: AsyncConnection, name_or_id: str) -> AnyRow:
    """The backend of this name or id, or `NotFound`."""
    row = await stored.find_backend(connection, name_or_id)
    if row is None:
        raise NotFound(f"There is no backend '{name_or_id}'.")
    return row


async def _found(url: str, credential: str | None, path_prefix: str | None) -> FoundBackend:
    parts = urlsplit(url)
    try:
        addresses = await resolve(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except (OSError, UnicodeError):
        addresses = []
    # By its name, too, a server must not lead there; one without an address answers nothing.
    if any(map(_is_strange, addresses)):
        raise InvalidRequest("The server's name leads to a link-local, multicast or unspecified address.", param="url")
    found = await asyncio.to_thread(probe, url, PROBE_TIMEOUT_SECONDS, credential=credential, path_prefix=path_prefix)
    if found is None:
        raise InvalidRequest(
            "The server could not be asked what it is. Start it, correct 'url', or give 'name' and 'kind'.",
            param="kind",
        )
    return found


async def _take_models(change: Change, row: AnyRow, served: Sequence[ServedModel]) -> TakenModels:
    taken = TakenModels(created=[], deployed=[], known=[], skipped=[])
    for each in {one.id: one for one in served}.values():
        taken_as = taken.skipped if not _MODEL_ID.fullmatch(each.id) else await _take(change, row, each, taken)
        taken_as.append(each.id)
    change.catalog_changed = True
    await change.audit("backend.models_taken", f"backend:{row.name}", created=taken.created, deployed=taken.deployed)
    return taken


async def _take(change: Change, row: AnyRow, served: ServedModel, taken: TakenModels) -> list[str]:
    """Sell a model of a backend; answers the list in which that is told."""
    connection = change.connection
    known = await stored.find_model(connection, served.id)
    if known is None:
        columns = {"id": served.id, "context_length": served.context_length, "capabilities": list(served.capabilities)}
        await stored.create_model(connection, change.now, columns)
        await stored.add_deployment(connection, served.id, stored.DeploymentPlan(row.id, served.id), change.now)
        return taken.created
    if await find_alias(connection, served.id) is not None:
        return taken.skipped
    plan = stored.DeploymentPlan(row.id, served.id)
    is_new = await stored.add_deployment(connection, served.id, plan, change.now)
    return taken.deployed if is_new else taken.known


def _health(backend: UUID, checks: HealthChecks | None) -> Healthiness | None:
    if checks is None:
        return None
    health = checks.of(backend)
    return Healthiness(
        healthy=health.is_healthy, failures=health.failures, reason=health.reason, checked_at=health.checked_at
    )


async def _audit(change: Change, action: str, row: AnyRow, body: Body) -> None:
    change.catalog_changed = True
    asked = body.model_dump(mode="json", exclude_unset=True, exclude={"credential"})
    if "credential" in body.model_fields_set:
        asked["credential"] = "changed"
    await change.audit(action, f"backend:{row.name}", **asked)
