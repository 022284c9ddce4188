"""Credentials in Postgres: finding the caller behind a digest, and making, listing and revoking keys.

A secret never comes here: callers pass its digest, `HMAC-SHA256(pepper, key)`, and its redacted form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from sqlalchemy import ARRAY, LargeBinary, Table, any_, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_optional, fetch_page
from billing.store.spend_limits import hard_limits_of_key, read_hard_limits
from models.account import (
    NO_LIMITS,
    AdminPrincipal,
    KeyScope,
    Limits,
    Network,
    OperatorPrincipal,
    Principal,
)
from models.ids import uuid7
from models.tables import admin_key, api_key, operator_key, organization, project, rate_limit
from models.tables.columns import MOMENT

_LIMIT_COLUMNS: Final = ("requests_per_minute", "tokens_per_minute", "max_in_flight")
P = TypeVar("P", covariant=True)


@dataclass(frozen=True, slots=True)
class KnownKey(Generic[P]):
    """A live key: who it stands for, and when it ends. `digest` is the stored one, to be compared with the caller's."""

    digest: bytes
    principal: P
    expires_at: datetime | None


async def find_api_keys(
    connection: AsyncConnection, digests: Collection[bytes], now: datetime
) -> dict[bytes, KnownKey[Principal]]:
    """The live API keys among `digests`: not revoked, not expired, of an open project of an open organization."""
    rows = await connection.execute(
        select(
            api_key.c.digest,
            api_key.c.expires_at,
            api_key.c.id,
            api_key.c.organization_id,
            api_key.c.project_id,
            api_key.c.models,
            api_key.c.endpoints,
            api_key.c.networks,
            api_key.c.counted_as,
            project.c.models_mode.label("project_models_mode"),
            project.c.models.label("project_models"),
            _MODEL_LIMITS,
            hard_limits_of_key().label("spend_limits"),
            *_limits_of(api_key, "key"),
            *_limits_of(project, "project"),
            *_limits_of(organization, "organization"),
            organization.c.shard,
            organization.c.currency,
            organization.c.price_book,
            organization.c.timezone,
        )
        .join(project, project.c.id == api_key.c.project_id)
        .join(organization, organization.c.id == api_key.c.organization_id)
        .where(
            *_alive(api_key, digests, now),
            project.c.archived_at.is_(None),
            organization.c.closed_at.is_(None),
        )
    )
    return {row.digest: KnownKey(row.digest, _principal(row), row.expires_at) for row in rows}


async def find_api_key(connection: AsyncConnection, digest: bytes, now: datetime) -> Principal | None:
    """The caller behind one digest, or None where there is none alive."""
    known = (await find_api_keys(connection, [digest], now)).get(digest)
    return known.principal if known else None


async def find_api_key_by_id(connection: AsyncConnection, key_id: UUID, now: datetime) -> Principal | None:
    """The caller behind a key whose secret nobody shows now, or None where it is not alive."""
    digest = (await connection.execute(select(api_key.c.digest).where(api_key.c.id == key_id))).scalar_one_or_none()
    return None if digest is None else await find_api_key(connection, digest, now)


async def find_admin_keys(
    connection: AsyncConnection, digests: Collection[bytes], now: datetime
) -> dict[bytes, KnownKey[AdminPrincipal]]:
    """The live admin keys among `digests`, of open organizations."""
    rows = await connection.execute(
        select(admin_key.c.digest, admin_key.c.expires_at, admin_key.c.id, admin_key.c.organization_id)
        .join(organization, organization.c.id == admin_key.c.organization_id)
        .where(*_alive(admin_key, digests, now), organization.c.closed_at.is_(None))
    )
    return {
        row.digest: KnownKey(row.digest, AdminPrincipal(row.organization_id, row.id, row.expires_at), row.expires_at)
        for row in rows
    }


async def find_operator_keys(
    connection: AsyncConnection, digests: Collection[bytes], now: datetime
) -> dict[bytes, KnownKey[OperatorPrincipal]]:
    """The live operator keys among `digests`."""
    rows = await connection.execute(
        select(operator_key.c.digest, operator_key.c.expires_at, operator_key.c.id, operator_key.c.name).where(
            *_alive(operator_key, digests, now)
        )
    )
    return {row.digest: KnownKey(row.digest, OperatorPrincipal(row.id, row.name), row.expires_at) for row in rows}


@dataclass(frozen=True, slots=True)
class KeyBounds:
    """What a key is bound to, in columns: None is no bound. `counted_as` is the key whose limits it shares."""

    expires_at: datetime | None = None
    models: Sequence[str] | None = None
    endpoints: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    limits: Limits = field(default_factory=Limits)
    service_account_id: UUID | None = None
    counted_as: UUID | None = None

    @classmethod
    def of(cls, row: AnyRow) -> KeyBounds:
        """Those of a stored key, to be handed on to the key that takes its place."""
        limits = Limits(*(getattr(row, column) for column in _LIMIT_COLUMNS))
        plain = {
            name: getattr(row, name) for name in ("expires_at", "models", "endpoints", "networks", "service_account_id")
        }
        return cls(limits=limits, counted_as=row.counted_as or row.id, **plain)


async def create_api_key(
    connection: AsyncConnection,
    *,
    organization_id: UUID,
    project_id: UUID,
    name: str,
    digest: bytes,
    redacted_value: str,
    now: datetime,
    bounds: KeyBounds = KeyBounds(),
) -> UUID:
    """Store a new API key of a project."""
    return await _create(
        connection,
        api_key,
        now,
        organization_id=organization_id,
        project_id=project_id,
        name=name,
        digest=digest,
        redacted_value=redacted_value,
        expires_at=bounds.expires_at,
        models=_listed(bounds.models),
        endpoints=_listed(bounds.endpoints),
        networks=_listed(bounds.networks),
        service_account_id=bounds.service_account_id,
        counted_as=bounds.counted_as,
        **{column: getattr(bounds.limits, column) for column in _LIMIT_COLUMNS},
    )


async def create_admin_key(
    connection: AsyncConnection,
    *,
    organization_id: UUID,
    name: str,
    digest: bytes,
    redacted_value: str,
    now: datetime,
    expires_at: datetime | None = None,
) -> UUID:
    """Store a new admin key of an organization."""
    return await _create(
        connection,
        admin_key,
        now,
        organization_id=organization_id,
        name=name,
        digest=digest,
        redacted_value=redacted_value,
        expires_at=expires_at,
    )


async def create_operator_key(
    connection: AsyncConnection,
    *,
    name: str,
    digest: bytes,
    redacted_value: str,
    now: datetime,
    expires_at: datetime | None = None,
) -> UUID:
    """Store a new operator key. `gateway.keys.issue_operator_key` also makes the secret."""
    return await _create(
        connection,
        operator_key,
        now,
        name=name,
        digest=digest,
        redacted_value=redacted_value,
        expires_at=expires_at,
    )


async def update_api_key(connection: AsyncConnection, key_id: UUID, values: dict[str, Any]) -> AnyRow | None:
    """Change name, models or limits of a key; answers the new row, or None where there is no such key."""
    statement = update(api_key).where(api_key.c.id == key_id).values(values).returning(api_key)
    return await fetch_optional(connection, statement)


async def expire(connection: AsyncConnection, keys: Table, key_id: UUID, expires_at: datetime) -> None:
    """End a key of one of the three tables at a moment; one that ends before stays as it is."""
    is_later = keys.c.expires_at.is_(None) | (keys.c.expires_at > expires_at)
    await connection.execute(update(keys).where(keys.c.id == key_id, is_later).values(expires_at=expires_at))


async def revoke_keys_of(connection: AsyncConnection, service_account_id: UUID, now: datetime) -> list[bytes]:
    """Revoke all keys of a service account; their digests tell a gateway what to forget."""
    # In the order of `note_uses`, which may be writing of the same keys.
    alive = (
        select(api_key.c.id)
        .where(api_key.c.service_account_id == service_account_id, api_key.c.revoked_at.is_(None))
        .order_by(api_key.c.id)
        .with_for_update(key_share=True)
        .cte("alive")
    )
    statement = update(api_key).where(api_key.c.id == alive.c.id).values(revoked_at=now).returning(api_key.c.digest)
    return list((await connection.execute(statement)).scalars())


async def revoke(connection: AsyncConnection, keys: Table, key_id: UUID, now: datetime, **owner: UUID) -> AnyRow | None:
    """Revoke a key of one of the three tables; `owner` are columns it must match. The first revocation's time stays.

    Answers the row, whose `digest` tells a gateway what to forget, or None where there is no such key.
    """
    matches = [keys.c.id == key_id, *(keys.c[column] == value for column, value in owner.items())]
    await connection.execute(update(keys).where(*matches, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    return await find_key(connection, keys, key_id, **owner)


async def note_uses(connection: AsyncConnection, keys: Table, uses: Mapping[bytes, datetime]) -> None:
    """Note when keys of one of the three tables were last used, by their digest; a time that is no later is nothing."""
    columns = literal(list(uses), ARRAY(LargeBinary)), literal(list(uses.values()), ARRAY(MOMENT))
    used = func.unnest(*columns).table_valued("digest", "used_at").render_derived("used")
    # Locked in the order of their ids: other gateways let the same keys in, and two must never wait for each other.
    later = (
        select(keys.c.id, used.c.used_at)
        .join_from(keys, used, keys.c.digest == used.c.digest)
        .where(keys.c.last_used_at.is_(None) | (keys.c.last_used_at < used.c.used_at))
        .order_by(keys.c.id)
        .with_for_update(key_share=True, of=keys)
        .cte("later")
    )
    await connection.execute(update(keys).where(keys.c.id == later.c.id).values(last_used_at=later.c.used_at))


async def find_key(connection: AsyncConnection, keys: Table, key_id: UUID, **owner: UUID) -> AnyRow | None:
    """A key of one of the three tables, revoked or not; `owner` are columns it must match."""
    matches = [keys.c.id == key_id, *(keys.c[column] == value for column, value in owner.items())]
    return await fetch_optional(connection, select(keys).where(*matches))


async def list_keys(
    connection: AsyncConnection, keys: Table, page: Page, *, with_revoked: bool = True, **owner: UUID
) -> tuple[list[AnyRow], bool]:
    """A page of the keys of one of the three tables, oldest first, and whether more follow.

    `owner` are columns they must match; the organization is among them where there is one, as by it they are found.
    """
    statement = select(keys).where(*(keys.c[column] == value for column, value in owner.items()))
    if not with_revoked:
        statement = statement.where(keys.c.revoked_at.is_(None))
    return await fetch_page(connection, statement, keys.c.id, page)


async def _create(connection: AsyncConnection, keys: Table, now: datetime, **values: object) -> UUID:
    key_id = uuid7(now)
    await connection.execute(insert(keys).values(id=key_id, created_at=now, **values))
    return key_id


def _alive(keys: Table, digests: Collection[bytes], now: datetime) -> list[Any]:
    return [
        # One array, so that the text of the statement is the same for any number of keys.
        keys.c.digest == any_(literal(list(digests), ARRAY(LargeBinary))),
        keys.c.revoked_at.is_(None),
        keys.c.expires_at.is_(None) | (keys.c.expires_at > now),
    ]


def _limits_of(table: Table, scope: str) -> list[Any]:
    return [table.c[column].label(f"{scope}_{column}") for column in _LIMIT_COLUMNS]


def _limits(row: AnyRow, scope: str) -> Limits:
    limits = Limits(*(getattr(row, f"{scope}_{column}") for column in _LIMIT_COLUMNS))
    return NO_LIMITS if limits == NO_LIMITS else limits


def _listed(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)


# In the look-up itself, so that limits of models cost it no query of their own.
_MODEL_LIMITS: Final = (
    select(
        func.jsonb_agg(
            aggregate_order_by(
                func.jsonb_build_array(
                    rate_limit.c.model,
                    rate_limit.c.requests_per_minute,
                    rate_limit.c.tokens_per_minute,
                    rate_limit.c.requests_per_day,
                ),
                rate_limit.c.model,
            )
        )
    )
    .where(rate_limit.c.project_id == project.c.id)
    .correlate(project)
    .scalar_subquery()
    .label("model_limits")
)


def _models(row: AnyRow) -> tuple[frozenset[str] | None, frozenset[str]]:
    """What a key may call (None: everything) but for what is denied: its own list within its project's."""
    own = None if row.models is None else frozenset(row.models)
    match row.project_models_mode:
        case "allow_list":
            allowed = frozenset(row.project_models)
            return allowed if own is None else own & allowed, frozenset()
        case "deny_list":
            return own, frozenset(row.project_models)
        case _:
            return own, frozenset()


@lru_cache(maxsize=10_000)
def _network(text: str) -> Network:
    return ip_network(text)


def _scope(row: AnyRow) -> KeyScope | None:
    if row.endpoints is None and row.networks is None:
        return None
    return KeyScope(
        endpoints=None if row.endpoints is None else frozenset(row.endpoints),
        networks=None if row.networks is None else tuple(_network(text) for text in row.networks),
    )


def _principal(row: AnyRow) -> Principal:
    models, denied = _models(row)
    return Principal(
        organization_id=row.organization_id,
        project_id=row.project_id,
        api_key_id=row.id,
        shard=row.shard,
        currency=row.currency,
        price_book=row.price_book,
        expires_at_ms=None if row.expires_at is None else int(row.expires_at.timestamp() * 1_000),
        models=models,
        organization_limits=_limits(row, "organization"),
        project_limits=_limits(row, "project"),
        key_limits=_limits(row, "key"),
        spend_limits=read_hard_limits(row.spend_limits),
        timezone=row.timezone,
        denied=denied,
        scope=_scope(row),
        counted_as=row.counted_as,
        model_limits={
            model: Limits(requests, tokens, None, of_day) for model, requests, tokens, of_day in row.model_limits or ()
        },
    )
