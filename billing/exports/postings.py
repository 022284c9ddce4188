"""The book by date, for files that other ledgers read: its accounts, postings in order, and balances at month ends.

Balances are asked of the database for themselves and not summed up on the way: the ledger that reads the file sums
up the postings, and the two must agree.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports.frame import Wanted
from billing.exports.journal import MEMO, SOURCE_DOCUMENT
from billing.exports.lines import conditions
from billing.months import next_month
from models.ledger import Account, AccountKind

POSTINGS_PER_PAGE: Final = 500
_COLUMNS: Final = {"id": "posting.id", "at": "effective_at", "organization_id": "posting.organization_id"}
_SIDES: Final = """
    from posting
    join transfer on transfer.posting_id = posting.id
    cross join (values (0), (1)) side (number)
    join account on account.id = case side.number when 0 then transfer.debit_account else transfer.credit_account end
"""


class Entry(NamedTuple):
    """One side of a transfer; a credit is negative."""

    account: Account
    units: int


class Booked(NamedTuple):
    """A posting with its entries, which sum to nothing."""

    id: int
    effective_at: datetime
    memo: str
    source_document: str
    organization_id: UUID | None
    entries: tuple[Entry, ...]


class Balances(NamedTuple):
    """What accounts hold after the last posting of a day."""

    day: date
    entries: tuple[Entry, ...]


async def accounts_of(engine: AsyncEngine, wanted: Wanted) -> list[Account]:
    """The accounts that are moved, by kind, organization and currency."""
    condition, values = conditions(replace(wanted, start=None), **_COLUMNS)
    sql = f"""
      select distinct account.kind collate "C" as kind, account.organization_id,
          account.currency collate "C" as currency
        {_SIDES} where {condition} order by 1, 2 nulls first, 3
    """
    return [_account(row) for row in await _rows(engine, sql, values)]


async def opening(engine: AsyncEngine, wanted: Wanted) -> Balances | None:
    """What there was before the first posting that is wanted; None where that is nothing."""
    if wanted.start is None:
        return None
    found = await _balances(engine, replace(wanted, start=None, end=wanted.start))
    return Balances(wanted.start.astimezone(UTC).date(), found) if found else None


async def read(engine: AsyncEngine, wanted: Wanted) -> AsyncIterator[list[Booked] | Balances]:
    """The postings in pages, in the order of their dates; after each month, and at the end, what accounts then hold."""
    last: datetime | None = None
    async for page in _pages(engine, wanted):
        ready: list[Booked] = []
        for posting in page:
            if last is not None and _month(last) < _month(posting.effective_at):
                if ready:
                    yield ready
                    ready = []
                month = _month(last)
                turn = datetime.combine(next_month(month), datetime.min.time(), UTC)
                found = await _balances(engine, replace(wanted, start=None, end=turn), moved_since=month)
                yield Balances(next_month(month) - timedelta(days=1), found)
            ready.append(posting)
            last = posting.effective_at
        if ready:
            yield ready
    if last is not None:
        found = await _balances(engine, replace(wanted, start=None), moved_since=_month(last))
        yield Balances(last.astimezone(UTC).date(), found)


async def _pages(engine: AsyncEngine, wanted: Wanted) -> AsyncIterator[list[Booked]]:
    condition, values = conditions(wanted, **_COLUMNS)
    after = ""
    while True:
        sql = f"""
          select id, effective_at, organization_id, {MEMO} as memo, {SOURCE_DOCUMENT} as source_document,
              (
                select coalesce(jsonb_agg(
                    jsonb_build_array(account.kind, account.organization_id, account.currency,
                      (case side.number when 0 then transfer.amount else -transfer.amount end)::text)
                    order by transfer.seq, side.number), '[]')
                  from transfer
                  cross join (values (0), (1)) side (number)
                  join account on account.id
                    = case side.number when 0 then transfer.debit_account else transfer.credit_account end
                  where transfer.posting_id = posting.id
              ) as entries
            from posting where {condition} {after} order by effective_at, id limit {POSTINGS_PER_PAGE}
        """  # noqa: S608 - made of constants
        rows = await _rows(engine, sql, values)
        if rows:
            yield [_booked(row) for row in rows]
        if len(rows) < POSTINGS_PER_PAGE:
            return
        after = "and (effective_at, id) > (:after_at, :after_id)"
        values |= {"after_at": rows[-1].effective_at, "after_id": rows[-1].id}


async def _balances(engine: AsyncEngine, wanted: Wanted, moved_since: date | None = None) -> tuple[Entry, ...]:
    """What accounts hold in the end: all that hold something, or those that moved since a day."""
    condition, values = conditions(wanted, **_COLUMNS)
    having = "sum(case side.number when 0 then transfer.amount else -transfer.amount end) <> 0"
    if moved_since is not None:
        having = "bool_or(effective_at >= :moved_since)"
        values["moved_since"] = datetime.combine(moved_since, datetime.min.time(), UTC)
    sql = f"""
      select account.kind collate "C" as kind, account.organization_id, account.currency collate "C" as currency,
          sum(case side.number when 0 then transfer.amount else -transfer.amount end) as units
        {_SIDES} where {condition} group by 1, 2, 3 having {having} order by 1, 2 nulls first, 3
    """
    return tuple(Entry(_account(row), int(row.units)) for row in await _rows(engine, sql, values))


async def _rows(engine: AsyncEngine, sql: str, values: dict[str, Any]) -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(sql), values)).all())


def _booked(row: Any) -> Booked:
    entries = tuple(
        Entry(Account(None if owner is None else UUID(owner), AccountKind(kind), currency), int(units))
        for kind, owner, currency, units in row.entries
    )
    return Booked(row.id, row.effective_at, row.memo, row.source_document, row.organization_id, entries)


def _account(row: Any) -> Account:
    return Account(row.organization_id, AccountKind(row.kind), row.currency)


def _month(moment: datetime) -> date:
    return moment.astimezone(UTC).date().replace(day=1)
