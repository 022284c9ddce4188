"""Price books in Postgres: each inherits from one parent at most, which is said when it is made and never changed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.tables import price_book


async def create_book(
    connection: AsyncConnection,
    book: str,
    parent: str | None,
    created_by: str,
    now: datetime,
    batch_book: str | None = None,
) -> AnyRow:
    """Store a book. Raises `IntegrityError` where the name is taken or there is no such parent or batch book."""
    values = {"id": book, "parent": parent, "created_by": created_by, "created_at": now, "batch_book": batch_book}
    return await fetch_one(connection, insert(price_book).values(values).returning(price_book))


async def set_batch_book(connection: AsyncConnection, book: str, batch_book: str | None) -> AnyRow | None:
    """Name the book that calls of a batch are priced by from now on; None where there is no such `book`."""
    statement = update(price_book).where(price_book.c.id == book).values(batch_book=batch_book).returning(price_book)
    return await fetch_optional(connection, statement)


async def find_book(connection: AsyncConnection, book: str) -> AnyRow | None:
    """A book by its name."""
    return await fetch_optional(connection, select(price_book).where(price_book.c.id == book))


async def list_books(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of books, by name."""
    return await fetch_page(connection, select(price_book), price_book.c.id, page)


async def book_parents(connection: AsyncConnection) -> dict[str, str | None]:
    """The parent of each book that has been made."""
    return {row.id: row.parent for row in await connection.execute(select(price_book.c.id, price_book.c.parent))}


async def batch_books(connection: AsyncConnection) -> dict[str, str]:
    """The book that each book names for calls of a batch, where it names one."""
    statement = select(price_book.c.id, price_book.c.batch_book).where(price_book.c.batch_book.is_not(None))
    return {row.id: row.batch_book for row in await connection.execute(statement)}
