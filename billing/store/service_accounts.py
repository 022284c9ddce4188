"""Service accounts in Postgres: the programs that own API keys of a project."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.tables import service_account


async def create_service_account(
    connection: AsyncConnection, organization_id: UUID, project_id: UUID, name: str, role: str, now: datetime
) -> AnyRow:
    """Store a service account of a project."""
    owner = {"organization_id": organization_id, "project_id": project_id}
    statement = insert(service_account).values(id=uuid7(now), name=name, role=role, created_at=now, **owner)
    return await fetch_one(connection, statement.returning(service_account))


async def find_service_account(connection: AsyncConnection, project_id: UUID, account_id: UUID) -> AnyRow | None:
    """A service account of a project that was not deleted."""
    statement = select(service_account).where(
        service_account.c.project_id == project_id,
        service_account.c.id == account_id,
        service_account.c.deleted_at.is_(None),
    )
    return await fetch_optional(connection, statement)


async def update_service_account(connection: AsyncConnection, account_id: UUID, values: dict[str, Any]) -> AnyRow:
    """Change columns of a service account that exists."""
    statement = update(service_account).where(service_account.c.id == account_id).values(values)
    return await fetch_one(connection, statement.returning(service_account))


async def list_service_accounts(connection: AsyncConnection, project_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of the service accounts of a project, oldest first."""
    statement = select(service_account).where(
        service_account.c.project_id == project_id, service_account.c.deleted_at.is_(None)
    )
    return await fetch_page(connection, statement, service_account.c.id, page)


async def service_accounts_by_id(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, AnyRow]:
    """Service accounts, deleted or not."""
    if not ids:
        return {}
    rows = await connection.execute(select(service_account).where(service_account.c.id.in_(ids)))
    return {row.id: row for row in rows}
