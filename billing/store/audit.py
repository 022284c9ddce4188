"""The audit log: who changed what, written in the transaction of the change and never changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import case, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_page
from models.tables import audit_log, project


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
    project_id: UUID | None = None,
) -> None:
    """Record a change, for example `("operator:<id>", "organization.created", "organization:<id>")`.

    `detail` is JSON and holds no secret: callers pass what was asked for, less credentials.
    """
    owner = {"organization_id": organization_id, "project_id": project_id}
    values = {"actor": actor, "action": action, "object": object, **owner}
    await connection.execute(insert(audit_log).values(created_at=now, detail=detail or {}, **values))


@dataclass(frozen=True, slots=True)
class OrganizationAuditFilter:
    """Which entries of one organization to list: all conditions together, None for no condition.

    `actions` are the only ones that are shown at all. Times are from `starts_at` (inclusive) to `ends_at` (exclusive).
    """

    actions: Collection[str]
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    actors: Collection[str] | None = None
    project_ids: Collection[UUID] | None = None
    subjects: Collection[str] | None = None


async def list_audit_of(
    connection: AsyncConnection, organization_id: UUID, wanted: OrganizationAuditFilter, page: Page
) -> tuple[list[AnyRow], bool]:
    """A page of the log of an organization, with the name of the project each entry is about."""
    subject_id = func.substr(audit_log.c.object, func.strpos(audit_log.c.object, ":") + 1)
    # Who operates is one actor here, whatever key was used.
    actor = case((audit_log.c.actor.startswith("operator:"), "operator"), else_=audit_log.c.actor)
    conditions = [audit_log.c.organization_id == organization_id, audit_log.c.action.in_(wanted.actions)]
    if wanted.starts_at is not None:
        conditions.append(audit_log.c.created_at >= wanted.starts_at)
    if wanted.ends_at is not None:
        conditions.append(audit_log.c.created_at < wanted.ends_at)
    if wanted.actors is not None:
        conditions.append(actor.in_(wanted.actors))
    if wanted.project_ids is not None:
        conditions.append(audit_log.c.project_id.in_(wanted.project_ids))
    if wanted.subjects is not None:
        conditions.append(subject_id.in_(wanted.subjects))
    statement = (
        select(audit_log, actor.label("shown_actor"), project.c.name.label("project_name"))
        .outerjoin(project, project.c.id == audit_log.c.project_id)
        .where(*conditions)
    )
    return await fetch_page(connection, statement, audit_log.c.id, page)


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
