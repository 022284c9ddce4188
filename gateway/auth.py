"""Who is calling: the one parser of credentials, the ring of keys behind it, and what routes demand of a caller.

Every route of the application depends on exactly one of the guards at the end of this file; `guards_of` lets a test
find a route that does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fastapi import Security
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBearer
from fastapi.security.base import SecurityBase
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import HTTPConnection, Request

from billing.store.keys import find_admin_keys, find_api_keys, find_operator_keys
from gateway.clock import Clock
from gateway.key_cache import KeyCache
from gateway.key_uses import KeyUses
from gateway.keys import LONGEST_KEY, KeyKind, digest, well_formed
from gateway.parts import parts_of
from gateway.peers import check_method, check_network
from gateway.signatures import check_signature
from models.account import AdminPrincipal, OperatorPrincipal, Principal
from models.errors import InvalidRequest, NotAuthenticated, NotFound, NotPermitted, Unavailable
from models.tables import admin_key, api_key, operator_key

AnyPrincipal: TypeAlias = Principal | AdminPrincipal | OperatorPrincipal

_CREDENTIAL_LENGTHS: Final = frozenset({len("authorization"), len("x-api-key")})
NOT_AUTHENTICATED: Final = "No valid API key was given. Send yours as 'Authorization: Bearer <key>'."
_TWO_CREDENTIALS: Final = "More than one credential was sent. Send one key, as Authorization or as x-api-key."


def credential(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The key in a request's headers: `Authorization: Bearer <key>` or `x-api-key: <key>`, names in any case.

    Two headers of one name, or two different keys, are ambiguous and raise `InvalidRequest`; the same key in both
    places is fine, since some clients do that. Nothing, or nothing but blanks, raises `NotAuthenticated`.
    """
    bearer: bytes | None = None
    api_key: bytes | None = None
    for name, raw in headers:
        # Most headers are told apart by their length alone, and there are twenty in a call.
        if len(name) not in _CREDENTIAL_LENGTHS:
            continue
        match name.lower():
            case b"authorization":
                if bearer is not None:
                    raise InvalidRequest(_TWO_CREDENTIALS, param="authorization")
                bearer = raw.strip()
            case b"x-api-key":
                if api_key is not None:
                    raise InvalidRequest(_TWO_CREDENTIALS, param="x-api-key")
                api_key = raw.strip()
    if bearer:
        scheme, _, rest = bearer.partition(b" ")
        # Another scheme is kept as it is: it is a credential, though never a valid one.
        bearer = rest.strip() if scheme.lower() == b"bearer" else bearer
    if bearer and api_key and bearer != api_key:
        raise InvalidRequest(_TWO_CREDENTIALS, param="authorization")
    value = bearer or api_key
    if not value:
        raise NotAuthenticated(NOT_AUTHENTICATED)
    return value.decode("latin-1")


class KeyRing:
    """All keys that one process has seen, by their full digest.

    A key is believed for `cache_seconds` (at most 5, so that a revoked key stops in time) and then looked up again.
    While Postgres is away, keys that were alive go on working for ten minutes and others raise `Unavailable`.
    `uses` writes down when keys were last let in.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        pepper: bytes,
        clock: Clock,
        cache_seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pepper = pepper
        seen = (engine, clock, monotonic)
        # Four look-ups at a time in all, a share of the connection pool.
        self._api = KeyCache(find_api_keys, *seen, cache_seconds=cache_seconds, lookups=2)
        self._admin = KeyCache(find_admin_keys, *seen, cache_seconds=cache_seconds, lookups=1)
        self._operator = KeyCache(find_operator_keys, *seen, cache_seconds=cache_seconds, lookups=1)
        caches: dict[Table, KeyCache[Any]] = {api_key: self._api, admin_key: self._admin, operator_key: self._operator}
        self.uses = KeyUses(*seen, caches)

    async def warm_up(self) -> None:
        """Ask for a key that nobody has: so the first caller need not wait for a connection and a new query."""
        with suppress(Unavailable):
            await self._api.find(bytes(32))

    def cached(self, value: str) -> Principal | None:
        """The caller behind an API key seen a moment ago; None means only that `principal` must be asked."""
        if len(value) > LONGEST_KEY or not value.isascii():
            return None
        return self._api.fresh(digest(value, self._pepper))

    async def principal(self, value: str) -> Principal:
        """The caller behind an API key.

        Raises `NotAuthenticated` for a key that is malformed, unknown, revoked or expired, `NotPermitted` for a live
        key of another kind, `Unavailable` where Postgres is needed and away.
        """
        found = await self._caller(value)
        if not isinstance(found, Principal):
            raise NotPermitted("This needs an API key; the key given is of another kind.")
        return found

    async def admin(self, value: str) -> AdminPrincipal:
        """The administrator behind an admin key; raises as `principal` does."""
        found = await self._caller(value)
        if not isinstance(found, AdminPrincipal):
            raise NotPermitted("This needs an admin key of an organization; the key given is of another kind.")
        return found

    async def operator(self, value: str) -> OperatorPrincipal:
        """The operator behind an operator key; raises as `principal` does."""
        found = await self._caller(value)
        if not isinstance(found, OperatorPrincipal):
            raise NotPermitted("This needs an operator key; the key given is of another kind.")
        return found

    async def reader(self, value: str) -> Principal | AdminPrincipal:
        """The API key's or admin key's caller, for what both may read of their organization."""
        found = await self._caller(value)
        if isinstance(found, OperatorPrincipal):
            raise NotPermitted("This needs a key of an organization; operators use /operator/v1.")
        return found

    def forget(self, digest: bytes) -> None:
        """Stop believing a key at once in this process; others look it up again within `cache_seconds`."""
        for cache in (self._api, self._admin, self._operator):
            cache.forget(digest)

    async def _caller(self, value: str) -> AnyPrincipal:
        # The checksum comes first: garbage costs neither Redis nor Postgres anything.
        kind = well_formed(value)
        found: AnyPrincipal | None
        match kind:
            case None:
                found = None
            case KeyKind.API:
                found = await self._api.find(digest(value, self._pepper))
            case KeyKind.ADMIN:
                found = await self._admin.find(digest(value, self._pepper))
            case KeyKind.OPERATOR:
                found = await self._operator.find(digest(value, self._pepper))
        if found is None:
            raise NotAuthenticated(NOT_AUTHENTICATED)
        return found


class _BearerScheme(SecurityBase):
    """Names a kind of key in the OpenAPI page. It reads nothing: `credential` is the only parser of credentials."""

    def __init__(self, scheme_name: str, description: str) -> None:
        self.model = HTTPBearer(description=description)
        self.scheme_name = scheme_name

    def __call__(self) -> None:
        return None


_API_KEY: Final = _BearerScheme("ApiKey", "Key of a project, `tg_live_...`, as Bearer token or `x-api-key`.")
_ADMIN_KEY: Final = _BearerScheme("AdminKey", "Admin key of an organization, `tg_admin_...`.")
_OPERATOR_KEY: Final = _BearerScheme("OperatorKey", "Key of the operator, `tg_op_...`.")


async def require_api_key(connection: HTTPConnection, _: None = Security(_API_KEY)) -> Principal:
    """Guard of routes for developers."""
    value = credential(connection.scope["headers"])
    keys = parts_of(connection).keys
    return _within_scope(connection, keys.cached(value) or await keys.principal(value))


async def require_admin(connection: HTTPConnection, _: None = Security(_ADMIN_KEY)) -> AdminPrincipal:
    """Guard of routes for administrators of an organization."""
    return await parts_of(connection).keys.admin(credential(connection.scope["headers"]))


async def require_operator(connection: HTTPConnection, _: None = Security(_OPERATOR_KEY)) -> OperatorPrincipal:
    """Guard of routes for the operator."""
    return await parts_of(connection).keys.operator(credential(connection.scope["headers"]))


async def require_reader(
    connection: HTTPConnection, _: None = Security(_API_KEY), __: None = Security(_ADMIN_KEY)
) -> Principal | AdminPrincipal:
    """Guard of routes that both a developer and an administrator of the organization may read."""
    reader = await parts_of(connection).keys.reader(credential(connection.scope["headers"]))
    return _within_scope(connection, reader) if isinstance(reader, Principal) else reader


@dataclass(frozen=True, slots=True)
class SignedBody:
    """A body that a payment provider has signed; there is no other way to make one."""

    provider: str
    body: bytes


def _within_scope(connection: HTTPConnection, principal: Principal) -> Principal:
    if principal.scope is not None:
        peer = connection.client.host if connection.client else ""
        trusted = parts_of(connection).settings.trusted_proxies
        check_network(principal.scope, peer, connection.scope["headers"], trusted)
        check_method(principal.scope, connection.scope["method"])
    return principal


class _SignatureScheme(SecurityBase):
    """Names the signature on the OpenAPI page; `check_signature` reads it."""

    def __init__(self) -> None:
        self.model = APIKey.model_validate(
            {
                "in": APIKeyIn.header,
                "name": "Stripe-Signature",
                "description": 'HMAC-SHA256 of "<t>.<body>" with the secret of the provider: `t=<seconds>,v1=<hex>`.',
            }
        )
        self.scheme_name = "WebhookSignature"

    def __call__(self) -> None:
        return None


_SIGNATURE: Final = _SignatureScheme()
_LARGEST_WEBHOOK_BYTES: Final = 256 * 1024


async def require_signature(provider: str, request: Request, _: None = Security(_SIGNATURE)) -> SignedBody:
    """Guard of the routes of payment providers: the body, which the provider of the path has signed just now.

    A provider without a secret is not there: 404. The body is bounded before it is looked at.
    """
    settings = parts_of(request).settings
    secret = settings.payment_webhook_secrets.get(provider)
    if secret is None:
        raise NotFound("There is no such payment provider here.")
    headers = request.headers.getlist(f"{provider}-signature")
    body = await _bounded_body(request)
    check_signature(
        # Two headers are ambiguous, as two credentials are: neither counts.
        headers[0].encode("latin-1") if len(headers) == 1 else b"",
        body,
        secret.get_secret_value().encode(),
        # The provider's clock is the world's, also where the billing clock rehearses another month.
        int(time.time()),
        settings.payment_webhook_tolerance_seconds,
    )
    return SignedBody(provider, body)


async def _bounded_body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_WEBHOOK_BYTES:
            raise InvalidRequest(f"The body is larger than {_LARGEST_WEBHOOK_BYTES} bytes.", status=413)
    return bytes(body)


async def public_route() -> None:
    """Marks a route that anybody may call, on purpose."""


GUARDS: Final[frozenset[Callable[..., Any]]] = frozenset(
    {require_api_key, require_admin, require_operator, require_reader, require_signature, public_route}
)


def guards_of(dependant: Dependant) -> frozenset[str]:
    """Names of the guards that a route depends on, at any depth: `guards_of(route.dependant)` of an `APIRoute`."""
    own = {dependant.call.__name__} if dependant.call in GUARDS else set()
    return frozenset(own.union(*(guards_of(inner) for inner in dependant.dependencies)))
