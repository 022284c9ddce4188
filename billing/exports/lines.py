"""Tables of CSV whose lines Postgres makes: columns as expressions, read in pages by key.

A page is one value of bytes with its sums, so that what Python does with a row is nothing. Pages are transactions of
their own, so that a slow reader holds no connection and no snapshot: rows under a watermark never change.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports.cells import sql_moment, sql_text
from billing.exports.frame import Export, Piece, Wanted
from models.money import CURRENCIES

ROWS_PER_PAGE: Final = 5_000
"""Some two megabytes: little to hold, and enough that planning the statement does not count."""


class Column(NamedTuple):
    """A column, and the expression that makes its cell; none may be null, because a null would leave the cell out."""

    name: str
    sql: str


def plain(name: str, sql: str | None = None) -> Column:
    """Ids, numbers and words of ours, which need no quotes."""
    return Column(name, sql or name)


def optional(name: str, sql: str | None = None) -> Column:
    """The same, where it may be null: the cell is empty then."""
    return Column(name, f"coalesce(cast({sql or name} as text), '')")


def worded(name: str, sql: str | None = None, first: str | None = None) -> Column:
    """Text that others wrote: quoted and guarded."""
    return Column(name, sql_text(f"coalesce({sql or name}, '')", first and f"coalesce({first}, '')"))


def amount(name: str, sql: str | None = None) -> Column:
    """An amount in ledger units; the rows have the `unit` of their currency."""
    return Column(name, f"({sql or name}) * unit")


def moment(name: str, sql: str | None = None) -> Column:
    """A time."""
    return Column(name, sql_moment(sql or name))


class Rows(NamedTuple):
    """A select with named parameters whose rows are the lines, and the values of its parameters."""

    sql: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lines:
    """A table: its columns, the rows, and the key (column and type) that orders them and is unique.

    The rows have `currency` and `unit`; `total` and `moment` are expressions on them. Two pages are made at a time
    where `pairs` says that it is worth a second connection.
    """

    columns: tuple[Column, ...]
    rows: Callable[[Wanted], Rows]
    key: tuple[tuple[str, str], ...]
    total: str
    moment: str
    pairs: bool = False

    @property
    def head(self) -> bytes:
        """The header line."""
        return ",".join(column.name for column in self.columns).encode() + b"\r\n"

    async def pieces(self, engine: AsyncEngine, export: Export) -> AsyncIterator[Piece]:
        """All lines, in the order of the key."""
        rows = self.rows(export.wanted)
        after: tuple[Any, ...] | None = None
        running: deque[asyncio.Task[Piece]] = deque()
        try:
            is_last = False
            while running or not is_last:
                while not is_last and len(running) < 1 + self.pairs:
                    until = await self._end_of_page(engine, rows, after)
                    is_last = until is None
                    running.append(asyncio.create_task(self._page(engine, rows, after, until)))
                    after = until
                piece = await running.popleft()
                if piece.rows:
                    yield piece
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def count(self, engine: AsyncEngine, export: Export) -> int:
        """How many lines there are."""
        rows = self.rows(export.wanted)
        statement = text(f"select count(*) from ({rows.sql}) source")  # noqa: S608 - made of constants
        async with engine.connect() as connection:
            return int((await connection.execute(statement, rows.parameters)).scalar_one())

    async def _end_of_page(
        self, engine: AsyncEngine, rows: Rows, after: tuple[Any, ...] | None
    ) -> tuple[Any, ...] | None:
        """The key of the last row of the page after a key; None where it is the last page."""
        names = ", ".join(name for name, _ in self.key)
        statement = text(
            f"select {names} from ({rows.sql}) source where {self._bounds(after, None)}"  # noqa: S608 - made of constants
            f" order by {names} offset :rows_before limit 1"
        )
        bound = rows.parameters | self._values("after", after) | {"rows_before": ROWS_PER_PAGE - 1}
        async with engine.connect() as connection:
            found = (await connection.execute(statement, bound)).one_or_none()
        return None if found is None else tuple(found)

    async def _page(
        self, engine: AsyncEngine, rows: Rows, after: tuple[Any, ...] | None, until: tuple[Any, ...] | None
    ) -> Piece:
        statement = self._statement(rows, self._bounds(after, until))
        bound = rows.parameters | self._values("after", after) | self._values("until", until)
        async with engine.connect() as connection:
            found = (await connection.execute(statement, bound)).one()
        totals = {code: int(units) for code in CURRENCIES if (units := getattr(found, f"total_{code}")) is not None}
        return Piece(found.body or b"", found.rows, totals, found.first, found.last)

    def _statement(self, rows: Rows, bounds: str) -> TextClause:
        sums = ", ".join(f"""sum(total) filter (where currency = '{code}') as "total_{code}\"""" for code in CURRENCIES)
        cells = ", ".join(column.sql for column in self.columns)
        return text(
            f"""
            select convert_to(string_agg(line, E'\\r\\n') || E'\\r\\n', 'UTF8') as body, count(*) as rows,
                min(moment) as first, max(moment) as last, {sums}
              from (
                select concat_ws(',', {cells}) as line, {self.total} as total, currency, {self.moment} as moment
                  from ({rows.sql}) source where {bounds} order by {", ".join(name for name, _ in self.key)}
              ) page
            """  # noqa: S608 - made of constants
        )

    def _bounds(self, after: tuple[Any, ...] | None, until: tuple[Any, ...] | None) -> str:
        names = ", ".join(name for name, _ in self.key)
        conditions = ["true"]
        for word, sign, given in (("after", ">", after), ("until", "<=", until)):
            if given is not None:
                values = ", ".join(f"cast(:{word}_{name} as {type_})" for name, type_ in self.key)
                conditions.append(f"({names}) {sign} ({values})")
                # Through a join a comparison of rows finds no index; one of the first column does.
                first, type_ = self.key[0]
                conditions.append(f"{first} {sign.rstrip('=')}= cast(:{word}_{first} as {type_})")
        return " and ".join(conditions)

    def _values(self, word: str, key: tuple[Any, ...] | None) -> dict[str, Any]:
        names = [name for name, _ in self.key]
        return {} if key is None else {f"{word}_{name}": value for name, value in zip(names, key, strict=True)}


def conditions(wanted: Wanted, **columns: str) -> tuple[str, dict[str, Any]]:
    """The usual conditions, on the columns that a source has for them; `id` is the posting's."""
    posting, at, owner = columns["id"], columns["at"], columns["organization_id"]
    found = [f"{posting} <= :watermark"]
    values: dict[str, Any] = {"watermark": wanted.watermark}
    for name, condition, value in (
        ("since", f"{posting} > :since", wanted.since),
        ("start", f"{at} >= :start", wanted.start),
        ("end", f"{at} < :end", wanted.end),
        ("organization_id", f"{owner} = :organization_id", wanted.organization_id),
    ):
        if value is not None:
            found.append(condition)
            values[name] = value
    return " and ".join(found), values
