"""Accounting periods in Postgres, months in UTC: those that are closed, and the row whose lock keeps postings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, fetch_optional
from billing.store.shards import hold_all
from billing.store.trial_balance import Line, digest_of
from models.tables import accounting_period, book, posting


@dataclass(frozen=True, slots=True)
class Closing:
    """A period that is about to be closed: `last_posting` is the highest posting there is."""

    id: str
    starts_at: datetime
    ends_at: datetime
    closed_at: datetime
    closed_by: str
    lines: Sequence[Line]
    last_posting: int


async def hold_book(connection: AsyncConnection, wait_ms: int = 5_000) -> None:
    """Wait for all who post, and let nobody post until the transaction ends; gives up with the database's error.

    Every posting is made under a shared lock of this row, which is taken before its id is. Bookings are kept out by
    their shards first: one after the other they would share the row for ever.
    """
    await hold_all(connection, wait_ms)
    await connection.execute(select(book.c.id).with_for_update())


async def closed_until(connection: AsyncConnection) -> datetime:
    """Nothing is posted before this moment any more; no period closes until the transaction ends."""
    rows = await connection.execute(select(book.c.closed_until).with_for_update(read=True))
    moment: datetime = rows.scalar_one()
    return moment


async def find_period(connection: AsyncConnection, period: str) -> AnyRow | None:
    """A closed period."""
    return await fetch_optional(connection, select(accounting_period).where(accounting_period.c.id == period))


async def closed_periods(connection: AsyncConnection) -> list[AnyRow]:
    """All closed periods, oldest first."""
    return list((await connection.execute(select(accounting_period).order_by(accounting_period.c.id))).all())


async def last_closed(connection: AsyncConnection) -> str | None:
    """The id of the newest closed period."""
    period: str | None = (await connection.execute(select(func.max(accounting_period.c.id)))).scalar_one()
    return period


async def first_posted(connection: AsyncConnection) -> datetime | None:
    """The date of the oldest posting."""
    moment: datetime | None = (await connection.execute(select(func.min(posting.c.effective_at)))).scalar_one()
    return moment


async def last_posting(connection: AsyncConnection) -> int:
    """The highest id of a posting; 0 in an empty book."""
    return int((await connection.execute(select(func.coalesce(func.max(posting.c.id), 0)))).scalar_one())


async def keep_closed(connection: AsyncConnection, closing: Closing) -> None:
    """Note that a period is closed, and refuse what would be posted before its end."""
    await connection.execute(
        insert(accounting_period).values(
            id=closing.id,
            starts_at=closing.starts_at,
            ends_at=closing.ends_at,
            closed_at=closing.closed_at,
            closed_by=closing.closed_by,
            trial_balance=[line.as_json() for line in closing.lines],
            digest=digest_of(closing.lines),
            last_posting=closing.last_posting,
        )
    )
    await connection.execute(update(book).values(closed_until=func.greatest(book.c.closed_until, closing.ends_at)))
