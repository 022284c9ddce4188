"""Rate limits of models within a project, in Postgres; keys have them from their look-up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, fetch_one
from models.tables import rate_limit


async def rate_limits_of(connection: AsyncConnection, project_id: UUID, models: Collection[str]) -> dict[str, AnyRow]:
    """By model: what was set for it in a project; a model of which nothing was ever set is not there."""
    statement = select(rate_limit).where(rate_limit.c.project_id == project_id, rate_limit.c.model.in_(models))
    return {row.model: row for row in await connection.execute(statement)}


async def set_rate_limit(
    connection: AsyncConnection, project_id: UUID, model: str, now: datetime, values: Mapping[str, Any]
) -> AnyRow:
    """Change the limits of a model in a project; `values` are columns, and what is left out stays."""
    statement = upsert(rate_limit).values(project_id=project_id, model=model, updated_at=now, **values)
    changed = statement.on_conflict_do_update(
        index_elements=[rate_limit.c.project_id, rate_limit.c.model], set_={**values, "updated_at": now}
    )
    return await fetch_one(connection, changed.returning(rate_limit))
