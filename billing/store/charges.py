"""Reading charges from the book: one by its call id, and pages of a list."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.booking import correction_id
from billing.store.pages import AnyRow, Page, fetch_page
from billing.store.shards import hold_all
from models.call import Charge
from models.ids import first_uuid7
from models.tables import charge
from models.usage import Ending, UsageSource

_CLOCK_SLACK: Final = timedelta(days=1)
"""How far the time in a call's id may lie from its `created_at`: far more than it ever does."""


@dataclass(frozen=True, slots=True)
class BookedCharge:
    """A charge as it is in the book.

    `funding` says who paid how much: (id of a credit grant or "unbilled", ledger units); it sums to the amount.
    """

    charge: Charge
    funding: tuple[tuple[str, int], ...]
    posting_id: int


@dataclass(frozen=True, slots=True)
class ChargeFilter:
    """Which charges: all conditions together, None for no condition.

    The times are those of `created_at`: from `created_after` (inclusive) to `created_before` (exclusive).
    `watermark` is the highest posting id that is seen.
    """

    organization_id: UUID | None = None
    project_id: UUID | None = None
    api_key_id: UUID | None = None
    model: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    watermark: int | None = None


async def find_charge(connection: AsyncConnection, call_id: UUID, wanted: ChargeFilter) -> BookedCharge | None:
    """The charge of one call, if it is booked and among the `wanted` ones: another tenant's is not found."""
    row = (await connection.execute(_matching(wanted).where(charge.c.call_id == call_id))).one_or_none()
    return None if row is None else _booked(row)


async def list_charges(
    connection: AsyncConnection, wanted: ChargeFilter, page: Page
) -> tuple[list[BookedCharge], bool]:
    """A page of charges by call id, which is the order of their making, and whether more follow."""
    rows, more = await fetch_page(connection, _matching(wanted), charge.c.call_id, page)
    return [_booked(row) for row in rows], more


async def corrections_of(connection: AsyncConnection, call_ids: Collection[UUID]) -> dict[UUID, list[UUID]]:
    """The ids of the charges that correct these calls, by call; calls that are not corrected are left out.

    The id of a call's correction follows from the call's, so these are a few reads of the primary key.
    """
    wanted = [correction_id(call_id) for call_id in call_ids]
    rows = await connection.execute(select(charge.c.call_id, charge.c.corrects).where(charge.c.call_id.in_(wanted)))
    found: dict[UUID, list[UUID]] = {}
    for row in rows:
        found.setdefault(row.corrects, []).append(row.call_id)
    return found


async def posting_watermark(connection: AsyncConnection, organization_id: UUID | None) -> int:
    """The highest posting id with charges such that none at or below it is still being booked; 0 in an empty book.

    Must run in a transaction; gives up after 5 seconds with the database's error.
    """
    newest = select(func.coalesce(func.max(charge.c.posting_id), 0))
    if organization_id is not None:
        # Bookings of one organization follow one another under its lock, so its ids become visible in their order.
        newest = newest.where(charge.c.organization_id == organization_id)
    else:
        # Over several organizations they do not: an id is given before its transaction commits, so the maximum may
        # have a gap that fills later. Sharing the rows of the shards for a moment waits for the bookings that run.
        await hold_all(connection)
    return int((await connection.execute(newest)).scalar_one())


def _matching(wanted: ChargeFilter) -> Select[*tuple[Any, ...]]:
    return select(charge).where(*_conditions(wanted))


def _conditions(wanted: ChargeFilter) -> list[ColumnElement[bool]]:
    columns = charge.c
    conditions = [
        columns[name] == value
        for name in ("organization_id", "project_id", "api_key_id", "model")
        if (value := getattr(wanted, name)) is not None
    ]
    # The table is partitioned by id: bounds on it keep a query out of the months it has no business in.
    if wanted.created_after is not None:
        conditions.append(columns.created_at >= wanted.created_after)
        conditions.append(columns.call_id >= first_uuid7(wanted.created_after - _CLOCK_SLACK))
    if wanted.created_before is not None:
        conditions.append(columns.created_at < wanted.created_before)
        conditions.append(columns.call_id < first_uuid7(wanted.created_before + _CLOCK_SLACK))
    if wanted.watermark is not None:
        conditions.append(columns.posting_id <= wanted.watermark)
    return conditions


def _booked(row: AnyRow) -> BookedCharge:
    return BookedCharge(
        charge=Charge(
            call_id=row.call_id,
            organization_id=row.organization_id,
            project_id=row.project_id,
            api_key_id=row.api_key_id,
            currency=row.currency,
            endpoint=row.endpoint,
            model=row.model,
            deployment=row.deployment,
            streamed=row.streamed,
            ending=Ending(row.ending),
            usage_source=UsageSource(row.usage_source),
            input_tokens=row.input_tokens,
            cached_tokens=row.cached_tokens,
            cache_write_tokens=row.cache_write_tokens,
            output_tokens=row.output_tokens,
            reasoning_tokens=row.reasoning_tokens,
            amount=row.amount,
            hold=row.hold,
            price_version_ids=tuple(row.price_version_ids),
            created_at=row.created_at,
            ended_at=row.ended_at,
            end_user=row.end_user,
            reported=row.reported,
            counted=row.counted,
            flags=tuple(row.flags),
            corrects=row.corrects,
            version=row.version,
            images=row.images,
            audio_seconds=row.audio_seconds,
            batch=row.batch,
        ),
        funding=tuple((str(source), int(amount)) for source, amount in row.funding),
        posting_id=row.posting_id,
    )
