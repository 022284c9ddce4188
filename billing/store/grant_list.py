"""Reading credit grants as people see them, voided and spent ones among them."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_page
from models.tables import credit_grant


async def list_grants(connection: AsyncConnection, organization_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of an organization's grants, and whether more follow; amounts are in ledger units."""
    statement = select(credit_grant).where(credit_grant.c.organization_id == organization_id)
    return await fetch_page(connection, statement, credit_grant.c.id, page)
