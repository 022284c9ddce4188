"""Price versions in Postgres: published, closed by their successor, never edited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Uuid, any_, exists, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_page
from models.catalog import Meter, PriceVersion
from models.errors import Conflict
from models.ids import first_uuid7, uuid7
from models.money import MilliUnits
from models.tables import charge, price_version


@dataclass(frozen=True, slots=True)
class NewPrice:
    """A price to publish, in milli-units per token, from `effective_from` until `effective_to` or its successor."""

    book: str
    model: str
    meter: Meter
    currency: str
    price: MilliUnits
    effective_from: datetime
    effective_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class PriceFilter:
    """Which versions to list; None is any. `at` keeps those in force at a moment."""

    book: str | None = None
    model: str | None = None
    meter: str | None = None
    currency: str | None = None
    at: datetime | None = None


async def publish(connection: AsyncConnection, price: NewPrice, created_by: str, now: datetime) -> PriceVersion:
    """Store a new version and close the open one it succeeds at its start.

    Raises `Conflict` where that would change a price that calls were already charged by, and `IntegrityError` where
    the new version overlaps one that has an end.
    """
    await _close_open(connection, price)
    statement = (
        insert(price_version)
        .values(
            id=uuid7(now),
            book=price.book,
            model_id=price.model,
            meter=price.meter,
            currency=price.currency,
            price=price.price,
            effective=Range(price.effective_from, price.effective_to, bounds="[)"),
            created_by=created_by,
            created_at=now,
        )
        .returning(price_version)
    )
    return price_version_of((await connection.execute(statement)).one())


async def _close_open(connection: AsyncConnection, price: NewPrice) -> None:
    lower, upper = func.lower(price_version.c.effective), func.upper_inf(price_version.c.effective)
    statement = select(price_version).where(
        price_version.c.book == price.book,
        price_version.c.model_id == price.model,
        price_version.c.meter == price.meter,
        price_version.c.currency == price.currency,
        upper,
        lower < price.effective_from,
    )
    row = (await connection.execute(statement.with_for_update(key_share=True))).one_or_none()
    # An open version that starts later is left alone: where it overlaps, the exclusion constraint says so.
    if row is None:
        return
    if await _was_charged(connection, row.id, price.effective_from):
        raise Conflict(
            "Calls after effective_from were already charged by the price in force. Start the new price later."
        )
    closed = Range(row.effective.lower, price.effective_from, bounds="[)")
    await connection.execute(update(price_version).where(price_version.c.id == row.id).values(effective=closed))


async def _was_charged(connection: AsyncConnection, version_id: UUID, since: datetime) -> bool:
    # Call ids carry their time: only the partitions from `since` on are read, and none for a price of the future.
    statement = select(
        exists().where(
            charge.c.call_id >= first_uuid7(since),
            literal(version_id, Uuid) == any_(charge.c.price_version_ids),
        )
    )
    return bool((await connection.execute(statement)).scalar_one())


async def list_prices(connection: AsyncConnection, wanted: PriceFilter, page: Page) -> tuple[list[PriceVersion], bool]:
    """A page of price versions in the order of their publication."""
    statement = select(price_version)
    for column, value in (
        (price_version.c.book, wanted.book),
        (price_version.c.model_id, wanted.model),
        (price_version.c.meter, wanted.meter),
        (price_version.c.currency, wanted.currency),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if wanted.at is not None:
        statement = statement.where(price_version.c.effective.contains(wanted.at))
    rows, more = await fetch_page(connection, statement, price_version.c.id, page)
    return [price_version_of(row) for row in rows], more


def price_version_of(row: AnyRow) -> PriceVersion:
    """The value that a row of `price_version` holds."""
    return PriceVersion(
        id=row.id,
        book=row.book,
        model=row.model_id,
        meter=Meter(row.meter),
        currency=row.currency,
        price=MilliUnits(row.price),
        effective_from=row.effective.lower,
        effective_to=row.effective.upper,
    )
