"""Spend limits in Postgres, and what is booked against each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, Text, and_, cast, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.months import bounds_of, next_month
from models.account import SpendLimit
from models.money import Units
from models.tables import api_key, organization, spend_limit, usage_day, usage_hour

OWN: Final = "organization"
"""The author of a limit that an organization has set itself; the other is `operator`."""


class Scoped(Protocol):
    """What spending is summed of: an organization, one of its projects, or one of its keys."""

    @property
    def organization_id(self) -> UUID:
        """Whose spending."""

    @property
    def project_id(self) -> UUID | None:
        """Of this project alone."""

    @property
    def api_key_id(self) -> UUID | None:
        """Of this key alone."""

    @property
    def timezone(self) -> str:
        """Whose clocks tell the month."""


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A limit in force, of a key, of a project, or (without either) of the organization."""

    id: UUID
    organization_id: UUID
    project_id: UUID | None
    api_key_id: UUID | None
    amount: Units
    is_hard: bool
    alert_percents: tuple[int, ...]
    created_at: datetime
    timezone: str
    shard: int
    currency: str
    set_by: str = "operator"

    @property
    def scope(self) -> str:
        """Its name in the hot store, without the month."""
        return _scope(self.project_id, self.api_key_id)


async def set_limit(connection: AsyncConnection, limit: StoredLimit) -> None:
    """Put a limit in the place of the one that its scope had of the same author."""
    await connection.execute(
        update(spend_limit)
        .where(
            spend_limit.c.organization_id == limit.organization_id,
            spend_limit.c.project_id.is_not_distinct_from(limit.project_id),
            spend_limit.c.api_key_id.is_not_distinct_from(limit.api_key_id),
            spend_limit.c.set_by == limit.set_by,
            spend_limit.c.removed_at.is_(None),
        )
        .values(removed_at=limit.created_at)
    )
    await connection.execute(
        insert(spend_limit).values(
            id=limit.id,
            organization_id=limit.organization_id,
            project_id=limit.project_id,
            api_key_id=limit.api_key_id,
            amount=limit.amount,
            is_hard=limit.is_hard,
            alert_percents=list(limit.alert_percents),
            created_at=limit.created_at,
            set_by=limit.set_by,
        )
    )


async def remove_limit(connection: AsyncConnection, limit_id: UUID, now: datetime) -> None:
    """End a limit."""
    await connection.execute(update(spend_limit).where(spend_limit.c.id == limit_id).values(removed_at=now))


async def find_own_limit(
    connection: AsyncConnection, organization_id: UUID, project_id: UUID | None
) -> StoredLimit | None:
    """The limit in force that an organization has set for itself, or for one of its projects."""
    found = await _limits(connection, *_is_own(organization_id, project_id, None))
    return found[0] if found else None


async def remove_own_limit(
    connection: AsyncConnection,
    organization_id: UUID,
    project_id: UUID | None,
    api_key_id: UUID | None,
    now: datetime,
) -> None:
    """End a limit that an organization has set for itself, a project or a key, if there is one."""
    is_it = (*_is_own(organization_id, project_id, api_key_id), spend_limit.c.removed_at.is_(None))
    await connection.execute(update(spend_limit).where(*is_it).values(removed_at=now))


async def own_limits_of_keys(connection: AsyncConnection, key_ids: Collection[UUID]) -> dict[UUID, Units]:
    """By key: the limit in force that its organization has set for it."""
    if not key_ids:
        return {}
    rows = await _limits(connection, spend_limit.c.api_key_id.in_(key_ids), spend_limit.c.set_by == OWN)
    return {row.api_key_id: row.amount for row in rows if row.api_key_id is not None}


def _is_own(organization_id: UUID, project_id: UUID | None, api_key_id: UUID | None) -> tuple[ColumnElement[bool], ...]:
    return (
        spend_limit.c.organization_id == organization_id,
        spend_limit.c.project_id.is_not_distinct_from(project_id),
        spend_limit.c.api_key_id.is_not_distinct_from(api_key_id),
        spend_limit.c.set_by == OWN,
    )


async def limits_of(connection: AsyncConnection, organization_id: UUID) -> list[StoredLimit]:
    """The limits in force of an organization, oldest first."""
    return await _limits(connection, spend_limit.c.organization_id == organization_id)


async def limits_of_shard(connection: AsyncConnection, shard: int) -> list[StoredLimit]:
    """The limits in force of all organizations of a shard."""
    return await _limits(connection, organization.c.shard == shard)


async def shards_with_limits(connection: AsyncConnection) -> list[int]:
    """The shards of organizations that have a limit in force: one look instead of sixteen where there are few."""
    statement = select(organization.c.shard).join(spend_limit, spend_limit.c.organization_id == organization.c.id)
    rows = await connection.execute(statement.where(spend_limit.c.removed_at.is_(None)).distinct())
    return sorted(rows.scalars())


async def booked_in(connection: AsyncConnection, limit: Scoped, month: date) -> Units:
    """What calls of the limit's scope that ended in this month of the organization's clocks have cost.

    With a key, those that took its place count. Its calls are summed by the hour in UTC alone: where midnight is
    within such an hour, its calls before and after count in the month in which the hour began.
    """
    if limit.api_key_id is None:
        of_month = _days(limit, month)
    else:
        of_month = _hours(limit, limit.api_key_id, *bounds_of(month, limit.timezone))
    return Units(int((await connection.execute(of_month)).scalar_one()))


def _days(limit: Scoped, month: date) -> Select[tuple[Any]]:
    statement = select(func.coalesce(func.sum(usage_day.c.amount), 0)).where(
        usage_day.c.organization_id == limit.organization_id,
        # Nothing is billed before the month in which it ended: a bound for the index.
        usage_day.c.billing_month >= month,
        usage_day.c.day >= month,
        usage_day.c.day < next_month(month),
    )
    return statement if limit.project_id is None else statement.where(usage_day.c.project_id == limit.project_id)


def _hours(limit: Scoped, api_key_id: UUID, starts_at: datetime, ends_at: datetime) -> Select[tuple[Any]]:
    successors = select(api_key.c.id).where(api_key.c.counted_as == api_key_id)
    return select(func.coalesce(func.sum(usage_hour.c.amount), 0)).where(
        usage_hour.c.organization_id == limit.organization_id,
        usage_hour.c.hour >= starts_at,
        usage_hour.c.hour < ends_at,
        or_(usage_hour.c.api_key_id == api_key_id, usage_hour.c.api_key_id.in_(successors)),
    )


def hard_limits_of_key() -> ColumnElement[Any]:
    """A column of a query about API keys: the limits beyond which a key's calls are refused, for `read_hard_limits`."""
    limit = func.jsonb_build_array(spend_limit.c.project_id, spend_limit.c.api_key_id, cast(spend_limit.c.amount, Text))
    return (
        select(func.jsonb_agg(limit))
        .where(
            spend_limit.c.removed_at.is_(None),
            spend_limit.c.is_hard,
            spend_limit.c.organization_id == api_key.c.organization_id,
            or_(
                and_(spend_limit.c.project_id.is_(None), spend_limit.c.api_key_id.is_(None)),
                spend_limit.c.project_id == api_key.c.project_id,
                spend_limit.c.api_key_id == func.coalesce(api_key.c.counted_as, api_key.c.id),
            ),
        )
        .correlate(api_key)
        .scalar_subquery()
    )


def read_hard_limits(found: Iterable[tuple[str | None, str | None, str]] | None) -> tuple[SpendLimit, ...]:
    """The limits in a row's column `hard_limits_of_key`: one of a scope, the least, as each is counted once."""
    least: dict[str, Units] = {}
    for project_id, api_key_id, text in found or ():
        scope, amount = _scope(project_id, api_key_id), Units(int(text))
        least[scope] = min(amount, least.get(scope, amount))
    return tuple(SpendLimit(scope, amount) for scope, amount in sorted(least.items()))


def _scope(project_id: UUID | str | None, api_key_id: UUID | str | None) -> str:
    if api_key_id is not None:
        return f"key:{api_key_id}"
    return "organization" if project_id is None else f"project:{project_id}"


async def _limits(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> list[StoredLimit]:
    rows = await connection.execute(
        select(spend_limit, organization.c.timezone, organization.c.shard, organization.c.currency)
        .join(organization, organization.c.id == spend_limit.c.organization_id)
        .where(spend_limit.c.removed_at.is_(None), *conditions)
        .order_by(spend_limit.c.id)
    )
    return [_limit(row) for row in rows]


def _limit(row: Row[Any]) -> StoredLimit:
    return StoredLimit(
        id=row.id,
        organization_id=row.organization_id,
        project_id=row.project_id,
        api_key_id=row.api_key_id,
        amount=Units(int(row.amount)),
        is_hard=row.is_hard,
        alert_percents=tuple(row.alert_percents),
        created_at=row.created_at,
        timezone=row.timezone,
        shard=row.shard,
        currency=row.currency,
        set_by=row.set_by,
    )
