"""Amounts in Postgres at which an organization wants to be told what a month has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.money import Units
from models.tables import organization, spend_alert


@dataclass(frozen=True, slots=True)
class StoredAlert:
    """An amount of a project or (without one) of the organization, and who is told when a month has come to it."""

    id: UUID
    organization_id: UUID
    project_id: UUID | None
    amount: Units
    recipients: Sequence[str]
    subject_prefix: str | None
    created_at: datetime
    timezone: str
    currency: str

    @property
    def api_key_id(self) -> None:
        """It is never of one key."""
        return None


async def create_spend_alert(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> AnyRow:
    """Store an alert; `values` are columns."""
    statement = insert(spend_alert).values(id=uuid7(now), created_at=now, **values)
    return await fetch_one(connection, statement.returning(spend_alert))


async def find_spend_alert(
    connection: AsyncConnection, organization_id: UUID, project_id: UUID | None, alert_id: UUID
) -> AnyRow | None:
    """An alert in force of a project or (None) of the organization itself."""
    statement = _of(organization_id, project_id).where(spend_alert.c.id == alert_id)
    return await fetch_optional(connection, statement)


async def update_spend_alert(connection: AsyncConnection, alert_id: UUID, values: dict[str, Any]) -> AnyRow:
    """Change columns of an alert that exists."""
    statement = update(spend_alert).where(spend_alert.c.id == alert_id).values(values).returning(spend_alert)
    return await fetch_one(connection, statement)


async def list_spend_alerts(
    connection: AsyncConnection, organization_id: UUID, project_id: UUID | None, page: Page
) -> tuple[list[AnyRow], bool]:
    """A page of the alerts in force of a project or (None) of the organization itself."""
    return await fetch_page(connection, _of(organization_id, project_id), spend_alert.c.id, page)


async def count_spend_alerts(connection: AsyncConnection, organization_id: UUID) -> int:
    """How many alerts an organization has in force, with those of its projects."""
    statement = select(spend_alert.c.id).where(
        spend_alert.c.organization_id == organization_id, spend_alert.c.removed_at.is_(None)
    )
    return len((await connection.execute(statement)).all())


async def shards_with_alerts(connection: AsyncConnection) -> list[int]:
    """The shards of organizations that have an alert in force: one look instead of sixteen where there are few."""
    statement = select(organization.c.shard).join(spend_alert, spend_alert.c.organization_id == organization.c.id)
    rows = await connection.execute(statement.where(spend_alert.c.removed_at.is_(None)).distinct())
    return sorted(rows.scalars())


async def alerts_of_shard(connection: AsyncConnection, shard: int) -> list[StoredAlert]:
    """The alerts in force of all open organizations of a shard."""
    rows = await connection.execute(
        select(spend_alert, organization.c.timezone, organization.c.currency)
        .join(organization, organization.c.id == spend_alert.c.organization_id)
        .where(spend_alert.c.removed_at.is_(None), organization.c.shard == shard, organization.c.closed_at.is_(None))
        .order_by(spend_alert.c.id)
    )
    return [
        StoredAlert(
            id=row.id,
            organization_id=row.organization_id,
            project_id=row.project_id,
            amount=Units(int(row.amount)),
            recipients=row.recipients,
            subject_prefix=row.subject_prefix,
            created_at=row.created_at,
            timezone=row.timezone,
            currency=row.currency,
        )
        for row in rows
    ]


def _of(organization_id: UUID, project_id: UUID | None) -> Any:
    return select(spend_alert).where(
        spend_alert.c.organization_id == organization_id,
        spend_alert.c.project_id.is_not_distinct_from(project_id),
        spend_alert.c.removed_at.is_(None),
    )
