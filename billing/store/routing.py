"""Where calls go, in Postgres: aliases with their targets, maintenance, and the rules of organizations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.catalog import OrganizationRouting, Window
from models.ids import uuid7
from models.tables import alias, backend, maintenance, model, organization_routing

Weighed: TypeAlias = tuple[str, int]
"""A model, and its weight among the targets of an alias."""

_PAST: Final = timedelta(days=31)
"""How long windows that are over stay in the catalog: for a gateway whose clock is set back, and no longer."""


# For the catalog -----------------------------------------------------------------------------------------------------


async def alias_targets(connection: AsyncConnection) -> dict[str, list[Weighed]]:
    """The targets of every alias."""
    rows = await connection.execute(select(alias))
    return {row.model_id: _weighed(row.targets) for row in rows}


async def windows(connection: AsyncConnection) -> Mapping[tuple[UUID, str | None], Sequence[Window]]:
    """Maintenance by backend and model (None: all of them), but for what is long over."""
    statement = select(maintenance).where(
        maintenance.c.cancelled_at.is_(None), maintenance.c.ends_at > func.now() - _PAST
    )
    found: defaultdict[tuple[UUID, str | None], list[Window]] = defaultdict(list)
    for row in await connection.execute(statement.order_by(maintenance.c.starts_at, maintenance.c.id)):
        found[row.backend_id, row.model_id].append(Window(row.starts_at, row.ends_at))
    return found


async def organizations_with_rules(connection: AsyncConnection) -> dict[UUID, OrganizationRouting]:
    """The organizations whose calls do not go everywhere."""
    return {row.organization_id: routing_of(row) for row in await connection.execute(select(organization_routing))}


def routing_of(row: AnyRow) -> OrganizationRouting:
    """The value that a row of `organization_routing` holds."""
    regions = None if row.regions is None else frozenset(row.regions)
    return OrganizationRouting(regions, row.pool, row.uses_shared)


# Aliases -------------------------------------------------------------------------------------------------------------

_ALIAS = select(alias, model.c.created_at, model.c.disabled_at).join(model, model.c.id == alias.c.model_id)


async def create_alias(connection: AsyncConnection, model_id: str, targets: Sequence[Weighed], now: datetime) -> None:
    """Make the model of this id an alias of these targets."""
    await connection.execute(insert(alias).values(model_id=model_id, targets=_as_json(targets), moved_at=now))


async def move_alias(connection: AsyncConnection, row: AnyRow, targets: Sequence[Weighed], now: datetime) -> None:
    """Give an alias other targets, and remember those that it had."""
    moved = update(alias).where(alias.c.model_id == row.model_id)
    await connection.execute(moved.values(targets=_as_json(targets), previous=row.targets, moved_at=now))


async def find_alias(connection: AsyncConnection, model_id: str, *, for_update: bool = False) -> AnyRow | None:
    """An alias with the times of its model, or None."""
    statement = _ALIAS.where(alias.c.model_id == model_id)
    return await fetch_optional(connection, statement.with_for_update(of=alias) if for_update else statement)


async def list_aliases(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of aliases, by id."""
    return await fetch_page(connection, _ALIAS, alias.c.model_id, page)


async def contexts_of(connection: AsyncConnection, model_ids: Sequence[str]) -> dict[str, int]:
    """The context lengths of those of the models that are no aliases themselves; others are left out."""
    rows = await connection.execute(
        select(model.c.id, model.c.context_length).where(
            model.c.id.in_(model_ids), model.c.id.not_in(select(alias.c.model_id))
        )
    )
    return {row.id: row.context_length for row in rows}


def _weighed(targets: Sequence[Mapping[str, Any]]) -> list[Weighed]:
    return [(each["model"], each["weight"]) for each in targets]


def _as_json(targets: Sequence[Weighed]) -> list[dict[str, Any]]:
    return [{"model": name, "weight": weight} for name, weight in targets]


# Maintenance ---------------------------------------------------------------------------------------------------------

_MAINTENANCE = select(maintenance, backend.c.name.label("backend")).join(
    backend, backend.c.id == maintenance.c.backend_id
)


async def plan_maintenance(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> UUID:
    """Store a time of maintenance; `values` are columns. Answers its id."""
    statement = insert(maintenance).values(id=uuid7(now), created_at=now, **values).returning(maintenance.c.id)
    row = await fetch_one(connection, statement)
    return UUID(str(row.id))


async def find_maintenance(connection: AsyncConnection, maintenance_id: UUID) -> AnyRow | None:
    """A time of maintenance with the name of its backend, or None."""
    return await fetch_optional(connection, _MAINTENANCE.where(maintenance.c.id == maintenance_id))


async def cancel_maintenance(connection: AsyncConnection, maintenance_id: UUID, now: datetime) -> None:
    """End a time of maintenance, or let it not begin; the first time counts."""
    statement = update(maintenance).where(maintenance.c.id == maintenance_id, maintenance.c.cancelled_at.is_(None))
    await connection.execute(statement.values(cancelled_at=now))


async def list_maintenance(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of times of maintenance, the newest first."""
    return await fetch_page(connection, _MAINTENANCE, maintenance.c.id, page)


# Organizations -------------------------------------------------------------------------------------------------------


async def find_routing(connection: AsyncConnection, organization_id: UUID) -> OrganizationRouting:
    """The rule of an organization; without one its calls go everywhere."""
    statement = select(organization_routing).where(organization_routing.c.organization_id == organization_id)
    row = await fetch_optional(connection, statement)
    return OrganizationRouting() if row is None else routing_of(row)


async def set_routing(connection: AsyncConnection, organization_id: UUID, rule: OrganizationRouting) -> None:
    """Give an organization a rule in the place of the one before."""
    values = {
        "regions": None if rule.regions is None else sorted(rule.regions),
        "pool": rule.pool,
        "uses_shared": rule.uses_shared,
    }
    statement = upsert(organization_routing).values(organization_id=organization_id, **values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["organization_id"], set_=values))
