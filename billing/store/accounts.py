"""Reading the ledger as finance does: accounts with balances, what moved one, postings with transfers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_optional, fetch_page
from models.tables import account, account_balance, posting, posting_seal, transfer

_ACCOUNT = select(
    account.c.id,
    account.c.organization_id,
    account.c.kind,
    account.c.currency,
    func.coalesce(account_balance.c.debits, 0).label("debits"),
    func.coalesce(account_balance.c.credits, 0).label("credits"),
).outerjoin(account_balance, account_balance.c.account_id == account.c.id)


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts: all conditions together, None for no condition; `is_sellers` for those of no organization."""

    organization_id: UUID | None = None
    kind: str | None = None
    currency: str | None = None
    is_sellers: bool = False


@dataclass(frozen=True, slots=True)
class PostingFilter:
    """Which postings: all conditions together; dates from `starts_at` (inclusive) to `ends_at` (exclusive)."""

    organization_id: UUID | None = None
    kind: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None


async def list_accounts(connection: AsyncConnection, wanted: AccountFilter, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of accounts with all that was ever debited and credited, in ledger units."""
    statement = _ACCOUNT
    for column, value in (
        (account.c.organization_id, wanted.organization_id),
        (account.c.kind, wanted.kind),
        (account.c.currency, wanted.currency),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if wanted.is_sellers:
        statement = statement.where(account.c.organization_id.is_(None))
    return await fetch_page(connection, statement, account.c.id, page)


async def find_account(connection: AsyncConnection, account_id: int) -> AnyRow | None:
    """An account with its balance."""
    return await fetch_optional(connection, _ACCOUNT.where(account.c.id == account_id))


# Each side reads no more than a page by its own index; the seller's revenue account is in every posting.
_ENTRIES = text(
    """
    with debited as (
      select posting_id, sum(amount) as debits from transfer
        where debit_account = :account and posting_id > :after group by posting_id order by posting_id limit :count
    ), credited as (
      select posting_id, sum(amount) as credits from transfer
        where credit_account = :account and posting_id > :after group by posting_id order by posting_id limit :count
    )
    select posting_id as id, posting.organization_id, posting.kind, posting.effective_at, posting.booked_at,
        coalesce(debits, 0) as debits, coalesce(credits, 0) as credits
      from debited
      full join credited using (posting_id)
      join posting on posting.id = posting_id
      order by posting_id limit :count
    """
)


async def list_entries(
    connection: AsyncConnection, account_id: int, after: int, limit: int
) -> tuple[list[AnyRow], bool]:
    """A page of what postings did to an account, in their order, and whether more follow."""
    values = {"account": account_id, "after": after, "count": limit + 1}
    rows = list((await connection.execute(_ENTRIES, values)).all())
    return rows[:limit], len(rows) > limit


async def list_postings(connection: AsyncConnection, wanted: PostingFilter, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of postings with their seals, where they have one."""
    statement = select(posting, posting_seal.c.seq.label("seal"), posting_seal.c.digest).outerjoin(
        posting_seal, posting_seal.c.posting_id == posting.c.id
    )
    if wanted.organization_id is not None:
        statement = statement.where(posting.c.organization_id == wanted.organization_id)
    if wanted.kind is not None:
        statement = statement.where(posting.c.kind == wanted.kind)
    if wanted.starts_at is not None:
        statement = statement.where(posting.c.effective_at >= wanted.starts_at)
    if wanted.ends_at is not None:
        statement = statement.where(posting.c.effective_at < wanted.ends_at)
    return await fetch_page(connection, statement, posting.c.id, page)


async def transfers_of(connection: AsyncConnection, posting_ids: Collection[int]) -> dict[int, list[AnyRow]]:
    """The transfers of postings, in their order, with both accounts."""
    debit, credit = account.alias("debit"), account.alias("credit")
    rows = await connection.execute(
        select(
            transfer.c.posting_id,
            transfer.c.amount,
            debit.c.id.label("debit_id"),
            debit.c.kind.label("debit_kind"),
            debit.c.organization_id.label("debit_organization_id"),
            credit.c.id.label("credit_id"),
            credit.c.kind.label("credit_kind"),
            credit.c.organization_id.label("credit_organization_id"),
            debit.c.currency,
        )
        .join(debit, debit.c.id == transfer.c.debit_account)
        .join(credit, credit.c.id == transfer.c.credit_account)
        .where(transfer.c.posting_id.in_(posting_ids))
        .order_by(transfer.c.posting_id, transfer.c.seq)
    )
    found: dict[int, list[AnyRow]] = {}
    for row in rows:
        found.setdefault(row.posting_id, []).append(row)
    return found
