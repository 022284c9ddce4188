"""Closing the books: accounting periods are months in UTC, closed one after the other and never opened again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from billing.hot.entries import decode_charge
from billing.hot.store import HotStore
from billing.months import bounds_of, month_of, next_month
from billing.store import periods as stored
from billing.store.pages import AnyRow
from billing.store.periods import Closing
from billing.store.shards import epochs, positions
from billing.store.trial_balance import trial_balance
from models.errors import Conflict, InvalidRequest, Unavailable

_ID: Final = re.compile(r"(20\d\d|21\d\d)-(0[1-9]|1[0-2])", re.ASCII)
_LOOK: Final = 1_000
"""Entries of a shard's stream that are looked through; a longer one is booked first anyway."""


@dataclass(frozen=True, slots=True)
class Period:
    """A month of the books; `closed` is its row once it is closed."""

    month: date
    closed: AnyRow | None = None

    @property
    def id(self) -> str:
        """Such as 2026-11."""
        return period_id(self.month)

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """When it begins and when the next one does."""
        return bounds_of(self.month, "UTC")


def period_id(month: date) -> str:
    """The id of the period that begins on `month`."""
    return f"{month:%Y-%m}"


def parse_period(period: str) -> date:
    """The first day of a period. Raises `InvalidRequest` for what is no month."""
    if _ID.fullmatch(period) is None:
        raise InvalidRequest("A period is a month, such as 2026-11.", param="period")
    return date.fromisoformat(f"{period}-01")


async def list_periods(connection: AsyncConnection, now: datetime) -> list[Period]:
    """All closed periods and all open ones to the present, oldest first; none where nothing was ever posted."""
    closed = [Period(parse_period(row.id), row) for row in await stored.closed_periods(connection)]
    month = next_month(closed[-1].month) if closed else await _first_month(connection)
    present = month_of(now, "UTC")
    opened: list[Period] = []
    while month is not None and month <= present:
        opened.append(Period(month))
        month = next_month(month)
    return [*closed, *opened]


async def close_period(
    connection: AsyncConnection, hot: HotStore | None, period: str, actor: str, now: datetime
) -> AnyRow:
    """Close a period in this transaction, and keep its trial balance; what was closed before stays as it is.

    From then on nothing is posted in it: what comes late is posted in the next one. Raises `Conflict` where an earlier
    one is open, it has not ended, or charges of it wait on a stream (looked at where there is `hot`), `InvalidRequest`
    for what is no period of these books, `Unavailable` where Redis cannot tell.
    """
    month = parse_period(period)
    found = await stored.find_period(connection, period)
    if found is not None:
        return found
    # Before anything is decided: two who close wait for each other, and nobody posts meanwhile.
    await stored.hold_book(connection)
    found = await stored.find_period(connection, period)
    if found is not None:
        return found
    starts_at, ends_at = bounds_of(month, "UTC")
    _refuse_unended(period, ends_at, now)
    await _refuse_unordered(connection, month)
    if hot is not None:
        await _refuse_unbooked(connection, hot, period, ends_at)

    lines = await trial_balance(connection, ends_at)
    assert sum(line.debits for line in lines) == sum(line.credits for line in lines), "a transfer has two sides"
    last = await stored.last_posting(connection)
    await stored.keep_closed(connection, Closing(period, starts_at, ends_at, now, actor, lines, last))
    row = await stored.find_period(connection, period)
    assert row is not None, "it was just inserted"
    return row


def _refuse_unended(period: str, ends_at: datetime, now: datetime) -> None:
    if now < ends_at:
        raise Conflict(f"{period} has not ended yet. Close it after {ends_at:%Y-%m-%d %H:%M} UTC.")


async def _refuse_unordered(connection: AsyncConnection, month: date) -> None:
    """Periods close in order, from the month of the first posting on."""
    last = await stored.last_closed(connection)
    due = await _first_month(connection) if last is None else next_month(parse_period(last))
    if due is None:
        raise Conflict("Nothing was ever posted, so there is no period to close.")
    if month > due:
        raise Conflict(f"Periods are closed in order. Close {period_id(due)} first.")
    if month < due:
        raise InvalidRequest(f"The books begin with {period_id(due)}. Close that period first.", param="period")


async def _refuse_unbooked(connection: AsyncConnection, hot: HotStore, period: str, ends_at: datetime) -> None:
    """No settled call of the period waits for its booking; the shards are held, so none is being booked now."""
    at, expected = await positions(connection), await epochs(connection)
    waiting = 0
    for shard, position in at.items():
        if await hot.epoch(shard) != expected[shard]:
            raise Unavailable(
                "Redis is being rebuilt, so it cannot tell what waits to be booked. Try again in a minute."
            )
        entries = await hot.read(shard, position, _LOOK)
        is_long = len(entries) == _LOOK
        waiting += sum(is_long or _ended_before(entry.charge, ends_at) for entry in entries)
    if waiting:
        raise Conflict(
            f"{waiting:,} charges that may be of {period} wait to be booked. See that a worker runs"
            " (`tollgate worker`), and close the period again in a moment."
        )


def _ended_before(payload: bytes, moment: datetime) -> bool:
    try:
        return decode_charge(payload).ended_at < moment
    except ValueError:
        # It is set aside when its turn comes; a person books what it was, and may want to do so first.
        return True


async def _first_month(connection: AsyncConnection) -> date | None:
    first = await stored.first_posted(connection)
    return None if first is None else month_of(first, "UTC")
