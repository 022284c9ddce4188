"""Usage and costs of one organization in buckets of time: from the sums of hours, or by the minute from the charges."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Table, func, literal_column, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.invoicing import UsageGroup
from billing.line_items import LineItem, line_items, merged
from billing.store.prices import price_version_of
from models.catalog import PriceVersion
from models.errors import InvalidRequest
from models.ids import first_uuid7
from models.tables import api_key, charge, organization, price_version, project, usage_hour

MOST_ROWS: Final = 50_000
"""Results of one page; nobody reads more at a time, and an answer must end."""

_LONGEST_CALL: Final = timedelta(days=1)
"""How long before its end a call that is looked for may have begun: far longer than the longest there is. Charges are
found by their ids, which tell when calls began; buckets are by when they ended."""

_TIME: Final = text("set local statement_timeout = '20s'")
_CANCELLED: Final = "57014"
_NOBODY: Final = UUID(int=0)
_USED: Final = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_COUNTED: Final = (*_USED, "images", "audio_seconds")


class Width(StrEnum):
    """How long a bucket is, in UTC. Minutes are read from the charges, the others from the sums of hours."""

    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"

    @property
    def seconds(self) -> int:
        """The length of a bucket."""
        return {Width.MINUTE: 60, Width.HOUR: 3_600, Width.DAY: 86_400}[self]


@dataclass(frozen=True, slots=True)
class Report:
    """What is asked: calls that ended from `start` to `end` (exclusive), whole minutes or hours, in buckets.

    `by` names columns; None or nothing in a filter is no filter. Of `endpoints` either those or, with `is_rest`, all
    others are meant.
    """

    organization_id: UUID
    width: Width
    start: datetime
    end: datetime
    by: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    is_rest: bool = True
    project_ids: tuple[UUID, ...] = ()
    api_key_ids: tuple[UUID, ...] = ()
    models: tuple[str, ...] = ()
    batch: bool | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """A result of a bucket: the columns that it is grouped by, and the sums of `billing.usage.Sums`."""

    bucket: datetime
    by: Mapping[str, Any]
    sums: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """A result of a bucket of costs; `item` has the amount, and a name where costs are told by line item."""

    bucket: datetime
    by: Mapping[str, Any]
    item: LineItem


async def usage_of(connection: AsyncConnection, report: Report) -> list[Used]:
    """Sums by bucket and by what is asked, in that order; buckets without a call are left out.

    Raises `InvalidRequest` where there are too many results, or too many charges to read by the minute.
    """
    return [
        Used(row.bucket, _by(report.by, row), {name: int(getattr(row, name)) for name in ("calls", *_COUNTED)})
        for row in await _rows(connection, report, report.by)
    ]


async def costs_of(
    connection: AsyncConnection, report: Report, *, by_item: bool = False, items: Collection[str] = ()
) -> list[Cost]:
    """Amounts by bucket and by what is asked, and `by_item` by line item; `items` are the names of those wanted.

    They add up to the charges to the unit, however they are grouped. Raises as `usage_of` does.
    """
    if not by_item and not items:
        rows = await _rows(connection, report, report.by)
        return [Cost(row.bucket, _by(report.by, row), LineItem("", int(row.amount))) for row in rows]
    priced = dict.fromkeys((*report.by, "model", "price_version_ids"))
    rows = await _rows(connection, report, tuple(priced))
    prices = await _prices(connection, {name for row in rows for name in row.price_version_ids})
    found: dict[tuple[object, ...], Cost] = {}
    for row in rows:
        by = _by(report.by, row)
        for item in line_items(_group(row), prices):
            if items and item.name not in items:
                continue
            key = (row.bucket, *by.values(), item.name if by_item else "")
            known = found.get(key)
            found[key] = Cost(row.bucket, by, item if known is None else merged(known.item, item))
    return list(found.values())


async def foreign_ids(
    connection: AsyncConnection, organization_id: UUID, project_ids: Sequence[UUID], api_key_ids: Sequence[UUID]
) -> tuple[set[UUID], set[UUID]]:
    """Those of the projects and of the keys that the organization has not."""
    missing = []
    for table, ids in ((project, project_ids), (api_key, api_key_ids)):
        own: set[UUID] = set()
        if ids:
            statement = select(table.c.id).where(table.c.organization_id == organization_id, table.c.id.in_(ids))
            own = set((await connection.execute(statement)).scalars())
        missing.append(set(ids) - own)
    return missing[0], missing[1]


async def currency_of(connection: AsyncConnection, organization_id: UUID) -> str:
    """The currency in which an organization is charged."""
    found = await connection.execute(select(organization.c.currency).where(organization.c.id == organization_id))
    return str(found.scalar_one())


async def _rows(connection: AsyncConnection, report: Report, by: Sequence[str]) -> Sequence[Any]:
    await connection.execute(_TIME)
    try:
        rows = (await connection.execute(_statement(report, by))).all()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _CANCELLED:
            raise
        raise InvalidRequest(
            "That is too much to add up at once. Ask for fewer buckets with limit, or for longer ones.", param="limit"
        ) from error
    if len(rows) > MOST_ROWS:
        raise InvalidRequest(
            f"That is more than {MOST_ROWS} results. Ask for fewer buckets with limit, or group by less.", param="limit"
        )
    return rows


def _statement(report: Report, by: Sequence[str]) -> Select[*tuple[Any, ...]]:
    source, ended, calls = _source(report.width)
    unit = {Width.MINUTE: "minute", Width.HOUR: "hour", Width.DAY: "day"}[report.width]
    bucket = func.date_trunc(literal_column(f"'{unit}'"), ended, literal_column("'UTC'")).label("bucket")
    groups = [source.c[name] for name in by]
    sums = [func.sum(source.c[name]).label(name) for name in (*_COUNTED, "amount")]
    return (
        select(bucket, *groups, calls.label("calls"), *sums)
        .where(*_conditions(report, source, ended))
        .group_by(bucket, *groups)
        .order_by(bucket, *groups)
        .limit(MOST_ROWS + 1)
    )


def _source(width: Width) -> tuple[Table, ColumnElement[datetime], ColumnElement[int]]:
    """The table, when its calls ended, and how many they are: corrections are none."""
    if width is Width.MINUTE:
        return charge, charge.c.ended_at, func.count().filter(charge.c.corrects.is_(None))
    return usage_hour, usage_hour.c.hour, func.sum(usage_hour.c.calls)


def _conditions(report: Report, source: Table, ended: ColumnElement[datetime]) -> Iterator[ColumnElement[bool]]:
    yield source.c.organization_id == report.organization_id
    yield ended >= report.start
    yield ended < report.end
    if source is charge:
        yield charge.c.call_id >= first_uuid7(report.start - _LONGEST_CALL)
        yield charge.c.call_id < first_uuid7(report.end + _LONGEST_CALL)
    if report.endpoints:
        named = source.c.endpoint.in_(report.endpoints)
        yield ~named if report.is_rest else named
    for column, wanted in (("project_id", report.project_ids), ("api_key_id", report.api_key_ids)):
        if wanted:
            yield source.c[column].in_(wanted)
    if report.models:
        yield source.c.model.in_(report.models)
    if report.batch is not None:
        yield source.c.batch.is_(report.batch)


def _by(names: Sequence[str], row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _group(row: Any) -> UsageGroup:
    return UsageGroup(
        project_id=_NOBODY,
        project_name=None,
        model=row.model,
        price_version_ids=tuple(row.price_version_ids),
        calls=int(row.calls),
        amount=int(row.amount),
        unbilled=0,
        **{name: int(getattr(row, name)) for name in _COUNTED},
    )


async def _prices(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, PriceVersion]:
    rows = await connection.execute(select(price_version).where(price_version.c.id.in_(ids)))
    return {row.id: price_version_of(row) for row in rows}
