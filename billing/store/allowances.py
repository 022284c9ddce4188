"""Free allowances in Postgres: money that a price book gives its organizations each month, until it is ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.ids import uuid7
from models.money import Units
from models.tables import allowance


@dataclass(frozen=True, slots=True)
class Due:
    """A month's allowance that an organization has not been granted yet; `month` is `YYYY-MM`."""

    organization_id: UUID
    timezone: str
    allowance_id: UUID
    currency: str
    amount: Units
    models: tuple[str, ...] | None
    month: str

    @property
    def key(self) -> str:
        """The idempotency key of its grant."""
        return f"allowance:{self.organization_id}:{self.allowance_id}:{self.month}"


_FIRST = UUID(int=0)

# The key of the posting is that of `settlement.grant_credit` for `Due.key`.
_DUE = text(
    """
    select organization.id as organization_id, organization.timezone, allowance.id as allowance_id,
        allowance.currency, allowance.amount, allowance.models, month.name as month
      from allowance
      join organization on organization.price_book = allowance.book and organization.currency = allowance.currency
      join unnest(cast(:timezones as text[]), cast(:months as text[])) as month (timezone, name)
        on month.timezone = organization.timezone
      where allowance.ended_at is null and organization.closed_at is null
        and (organization.id, allowance.id) > (:organization_id, :allowance_id)
        and not exists (
          select from posting where posting.idempotency_key = format('grant:%s:allowance:%s:%s:%s',
            organization.id, organization.id, allowance.id, month.name)
        )
      order by organization.id, allowance.id
      limit :limit
    """
)
_TIMEZONES = text(
    """
    select distinct organization.timezone
      from organization
      join allowance on organization.price_book = allowance.book and organization.currency = allowance.currency
      where allowance.ended_at is null and organization.closed_at is null
    """
)


async def timezones_with_allowances(connection: AsyncConnection) -> list[str]:
    """The time zones of all organizations that get an allowance."""
    return list((await connection.execute(_TIMEZONES)).scalars())


async def due_allowances(
    connection: AsyncConnection, months: Mapping[str, str], limit: int, after: Due | None = None
) -> list[Due]:
    """Allowances that are not granted yet, `limit` at most; `months` is the present month by time zone."""
    start = {
        "organization_id": _FIRST if after is None else after.organization_id,
        "allowance_id": _FIRST if after is None else after.allowance_id,
    }
    arrays = {"timezones": list(months), "months": list(months.values()), "limit": limit, **start}
    return [
        Due(
            row.organization_id,
            row.timezone,
            row.allowance_id,
            row.currency,
            Units(int(row.amount)),
            None if row.models is None else tuple(row.models),
            row.month,
        )
        for row in await connection.execute(_DUE, arrays)
    ]


async def create_allowance(
    connection: AsyncConnection,
    *,
    book: str,
    currency: str,
    amount: Units,
    models: Sequence[str] | None,
    created_by: str,
    now: datetime,
) -> AnyRow:
    """Store an allowance, in ledger units a month. Raises `IntegrityError` where there is no such book."""
    statement = insert(allowance).values(
        id=uuid7(now),
        book=book,
        currency=currency,
        amount=amount,
        models=None if models is None else sorted(set(models)),
        created_by=created_by,
        created_at=now,
    )
    return await fetch_one(connection, statement.returning(allowance))


async def end_allowance(connection: AsyncConnection, allowance_id: UUID, now: datetime) -> AnyRow | None:
    """Grant an allowance no more; its row, or None where there is none. One that has ended stays as it is."""
    await connection.execute(
        update(allowance).where(allowance.c.id == allowance_id, allowance.c.ended_at.is_(None)).values(ended_at=now)
    )
    return await fetch_optional(connection, select(allowance).where(allowance.c.id == allowance_id))


async def list_allowances(connection: AsyncConnection, book: str | None, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of allowances, oldest first, with those that have ended."""
    statement = select(allowance)
    if book is not None:
        statement = statement.where(allowance.c.book == book)
    return await fetch_page(connection, statement, allowance.c.id, page)
