"""Reading credit grants as people see them, voided and spent ones among them, and what was drawn from each."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_page
from models.tables import credit_grant, grant_draw, posting


async def list_grants(connection: AsyncConnection, organization_id: UUID, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of an organization's grants, and whether more follow; amounts are in ledger units."""
    statement = select(credit_grant).where(credit_grant.c.organization_id == organization_id)
    return await fetch_page(connection, statement, credit_grant.c.id, page)


async def list_draws(
    connection: AsyncConnection, organization_id: UUID, grant_id: UUID, page: Page
) -> tuple[list[AnyRow], bool] | None:
    """A page of what postings took from a grant, below zero where they gave back; None for no grant of this owner."""
    mine = select(credit_grant.c.id).where(
        credit_grant.c.id == grant_id, credit_grant.c.organization_id == organization_id
    )
    if (await connection.execute(mine)).one_or_none() is None:
        return None
    statement = (
        select(
            grant_draw.c.posting_id.label("id"),
            posting.c.kind,
            posting.c.effective_at,
            posting.c.booked_at,
            grant_draw.c.amount,
            credit_grant.c.currency,
        )
        .join(posting, posting.c.id == grant_draw.c.posting_id)
        .join(credit_grant, credit_grant.c.id == grant_draw.c.grant_id)
        .where(grant_draw.c.grant_id == grant_id)
    )
    return await fetch_page(connection, statement, grant_draw.c.posting_id, page)
