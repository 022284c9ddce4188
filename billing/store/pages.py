"""Rows out of statements: one, none, or a page of a list by keyset (rows after a cursor, never by offset)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Executable, Row, Select
from sqlalchemy.ext.asyncio import AsyncConnection

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
"""A row whose columns the type checker does not follow."""


@dataclass(frozen=True, slots=True)
class Page:
    """What to show: at most `limit` rows whose id comes after `after` in the order of the list; None starts it.

    With `before` it is the rows that come just before that one instead; with both, the first between the two.
    """

    after: Any = None
    limit: int = 20
    newest_first: bool = False
    before: Any = None


async def fetch_page(
    connection: AsyncConnection, statement: Select[*tuple[Any, ...]], cursor: ColumnElement[Any], page: Page
) -> tuple[list[AnyRow], bool]:
    """The rows of a page, and whether more follow in the direction of reading: one row more is read to know."""
    is_backwards = page.before is not None and page.after is None
    if page.after is not None:
        statement = statement.where(cursor < page.after if page.newest_first else cursor > page.after)
    if page.before is not None:
        statement = statement.where(cursor > page.before if page.newest_first else cursor < page.before)
    ordered = statement.order_by(cursor.desc() if page.newest_first != is_backwards else cursor).limit(page.limit + 1)
    rows = list((await connection.execute(ordered)).all())
    shown = rows[: page.limit]
    return shown[::-1] if is_backwards else shown, len(rows) > page.limit


async def fetch_one(connection: AsyncConnection, statement: Executable) -> AnyRow:
    """The only row of a statement, which must have one."""
    row: AnyRow = (await connection.execute(statement)).one()
    return row


async def fetch_optional(connection: AsyncConnection, statement: Executable) -> AnyRow | None:
    """The only row of a statement, or None."""
    row: AnyRow | None = (await connection.execute(statement)).one_or_none()
    return row
