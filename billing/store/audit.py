"""The audit log: who changed what, written in the transaction of the change and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_page
from models.tables import audit_log


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries to list; None is any."""

    organization_id: UUID | None = None
    actor: str | None = None
    action: str | None = None
    object: str | None = None


async def write_audit(
    connection: AsyncConnection,
    *,
    now: datetime,
    actor: str,
    action: str,
    object: str,
    organization_id: UUID | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Record a change, for example `("operator:<id>", "organization.created", "organization:<id>")`.

    `detail` is JSON and holds no secret: callers pass what was asked for, less credentials.
    """
    values = {"actor": actor, "action": action, "object": object, "organization_id": organization_id}
    await connection.execute(insert(audit_log).values(created_at=now, detail=detail or {}, **values))


async def list_audit(connection: AsyncConnection, wanted: AuditFilter, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of the log; its cursor is the number of an entry."""
    statement = select(audit_log)
    for column, value in (
        (audit_log.c.organization_id, wanted.organization_id),
        (audit_log.c.actor, wanted.actor),
        (audit_log.c.action, wanted.action),
        (audit_log.c.object, wanted.object),
    ):
        if value is not None:
            statement = statement.where(column == value)
    return await fetch_page(connection, statement, audit_log.c.id, page)
