"""Price versions in Postgres: published, closed by their successor, never edited."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, any_, exists, func, insert, literal, select, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_page
from models.catalog import Meter, PriceDraft, PriceVersion, Scheme, Tier, TiersOver
from models.errors import Conflict, InvalidRequest
from models.ids import first_uuid7, uuid7
from models.money import MilliUnits
from models.tables import charge, price_book, price_version

NewPrice: TypeAlias = PriceDraft


@dataclass(frozen=True, slots=True)
class PriceFilter:
    """Which versions to list; None is any. `at` keeps those in force at a moment."""

    book: str | None = None
    model: str | None = None
    meter: str | None = None
    currency: str | None = None
    at: datetime | None = None


async def publish(connection: AsyncConnection, price: PriceDraft, created_by: str, now: datetime) -> PriceVersion:
    """Store a new version and close the open one it succeeds at its start. A book that is not there yet is made.

    Raises `Conflict` where that would change a price that calls were already charged by, `InvalidRequest` where it ends
    before it begins, and `IntegrityError` where the new version overlaps one that has an end.
    """
    start = price.effective_from or now
    if price.effective_to is not None and price.effective_to <= start:
        raise InvalidRequest("effective_to must be later than effective_from.", param="effective_to")
    await connection.execute(
        upsert(price_book).values(id=price.book, created_by=created_by, created_at=now).on_conflict_do_nothing()
    )
    await _close_open(connection, price, start)
    statement = (
        insert(price_version)
        .values(
            id=uuid7(now),
            book=price.book,
            model_id=price.model,
            meter=price.meter,
            currency=price.currency,
            scheme=price.scheme,
            price=price.price,
            tiers=[{"up_to": tier.up_to, "price": tier.price} for tier in price.tiers] or None,
            package_size=price.package_size,
            tiers_over=price.tiers_over,
            effective=Range(start, price.effective_to, bounds="[)"),
            created_by=created_by,
            created_at=now,
        )
        .returning(price_version)
    )
    return price_version_of((await connection.execute(statement)).one())


async def _close_open(connection: AsyncConnection, price: PriceDraft, start: datetime) -> None:
    lower, upper = func.lower(price_version.c.effective), func.upper_inf(price_version.c.effective)
    statement = select(price_version).where(*_same_thing(price), upper, lower < start)
    row = (await connection.execute(statement.with_for_update(key_share=True))).one_or_none()
    # An open version that starts later is left alone: where it overlaps, the exclusion constraint says so.
    if row is not None:
        await end_version(connection, price_version_of(row), start)


def _same_thing(price: PriceDraft) -> tuple[ColumnElement[bool], ...]:
    return (
        price_version.c.book == price.book,
        price_version.c.model_id == price.model,
        price_version.c.meter == price.meter,
        price_version.c.currency == price.currency,
    )


async def end_version(connection: AsyncConnection, version: PriceVersion, end: datetime) -> None:
    """Close an open version at `end`. Raises `Conflict` where calls after that were charged by it."""
    if await _was_charged(connection, version.id, end):
        raise Conflict("Calls after that moment were already charged by the price in force. Start the new price later.")
    closed = Range(version.effective_from, end, bounds="[)")
    await connection.execute(update(price_version).where(price_version.c.id == version.id).values(effective=closed))


async def versions_like(connection: AsyncConnection, price: PriceDraft) -> list[PriceVersion]:
    """All versions of the same book, model, meter and currency, locked against a change; earliest first."""
    statement = select(price_version).where(*_same_thing(price)).order_by(func.lower(price_version.c.effective))
    rows = await connection.execute(statement.with_for_update(key_share=True))
    return [price_version_of(row) for row in rows]


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


async def all_versions(
    connection: AsyncConnection, book: str | None = None, at: datetime | None = None
) -> list[PriceVersion]:
    """Every version, of one book and in force at a moment where these are given, in the order of a price list."""
    columns = price_version.c
    statement = select(price_version)
    if book is not None:
        statement = statement.where(columns.book == book)
    if at is not None:
        statement = statement.where(columns.effective.contains(at))
    meters = {meter: place for place, meter in enumerate(Meter)}
    versions = [price_version_of(row) for row in await connection.execute(statement)]

    def place(one: PriceVersion) -> tuple[Any, ...]:
        return one.book, one.model, one.currency, meters[one.meter], one.effective_from is not None, one.effective_from

    # Here and not in SQL, whose order of texts depends on the server's locale.
    return sorted(versions, key=place)


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
        scheme=Scheme(row.scheme),
        tiers=tuple(Tier(tier["up_to"], MilliUnits(tier["price"])) for tier in row.tiers or ()),
        package_size=row.package_size,
        tiers_over=TiersOver(row.tiers_over),
    )
