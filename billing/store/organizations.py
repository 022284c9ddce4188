"""Organizations and projects in Postgres: who pays, and the parts they divide their use into."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.tables import credit_grant, organization, project


async def create_organization(
    connection: AsyncConnection, organization_id: UUID, shard: int, now: datetime, values: dict[str, Any]
) -> AnyRow:
    """Store an organization; `values` are columns. Its accounts are opened by `billing.settlement.open_accounts`."""
    statement = insert(organization).values(id=organization_id, shard=shard, created_at=now, **values)
    return await fetch_one(connection, statement.returning(organization))


async def find_organization(
    connection: AsyncConnection, organization_id: UUID, *, for_update: bool = False
) -> AnyRow | None:
    """An organization, open or closed; `for_update` keeps others from changing it until the transaction ends."""
    statement = select(organization).where(organization.c.id == organization_id)
    if for_update:
        statement = statement.with_for_update(key_share=True)
    return await fetch_optional(connection, statement)


async def update_organization(connection: AsyncConnection, organization_id: UUID, values: dict[str, Any]) -> AnyRow:
    """Change columns of an organization that exists, but not `credit_limit`: that is `billing.settlement`'s."""
    assert "credit_limit" not in values, "a credit limit changes together with the version of the balance"
    statement = update(organization).where(organization.c.id == organization_id).values(values)
    return await fetch_one(connection, statement.returning(organization))


async def list_organizations(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of organizations, oldest first."""
    return await fetch_page(connection, select(organization), organization.c.id, page)


async def create_project(
    connection: AsyncConnection, organization_id: UUID, now: datetime, values: dict[str, Any]
) -> AnyRow:
    """Store a project; `values` are columns. Raises `IntegrityError` where there is no such organization."""
    statement = insert(project).values(id=uuid7(now), organization_id=organization_id, created_at=now, **values)
    return await fetch_one(connection, statement.returning(project))


async def find_project(connection: AsyncConnection, project_id: UUID) -> AnyRow | None:
    """A project, archived or not."""
    return await fetch_optional(connection, select(project).where(project.c.id == project_id))


async def update_project(connection: AsyncConnection, project_id: UUID, values: dict[str, Any]) -> AnyRow | None:
    """Change columns of a project; answers the new row, or None where there is none."""
    statement = update(project).where(project.c.id == project_id).values(values).returning(project)
    return await fetch_optional(connection, statement)


async def list_projects(
    connection: AsyncConnection, organization_id: UUID, page: Page, *, with_archived: bool = True
) -> tuple[list[AnyRow], bool]:
    """A page of an organization's projects, oldest first."""
    statement = select(project).where(project.c.organization_id == organization_id)
    if not with_archived:
        statement = statement.where(project.c.archived_at.is_(None))
    return await fetch_page(connection, statement, project.c.id, page)


async def list_grants(connection: AsyncConnection, organization_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of an organization's credit grants, oldest first, whatever became of them."""
    statement = select(credit_grant).where(credit_grant.c.organization_id == organization_id)
    return await fetch_page(connection, statement, credit_grant.c.id, page)


async def find_grant(connection: AsyncConnection, organization_id: UUID, grant_id: UUID) -> AnyRow | None:
    """A credit grant of an organization, whatever became of it."""
    statement = select(credit_grant).where(
        credit_grant.c.organization_id == organization_id, credit_grant.c.id == grant_id
    )
    return await fetch_optional(connection, statement)
