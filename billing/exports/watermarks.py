"""Up to which posting the book is settled: whatever is at or below that id is there, and nothing comes in below it."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.store.charges import posting_watermark
from models.errors import Unavailable
from models.tables import posting

_PATIENCE_SECONDS: Final = 5
_LOOKS: Final = 250

# Whoever inserts a posting holds this lock from before it is given an id until its transaction ends.
_WRITERS: Final = text(
    """
    select virtualtransaction from pg_catalog.pg_locks
      where locktype = 'relation' and relation = cast('posting' as regclass) and mode = 'RowExclusiveLock' and granted
        and database = (select oid from pg_catalog.pg_database where datname = current_database())
    """
)


async def settled_watermark(engine: AsyncEngine, organization_id: UUID | None) -> int:
    """The highest posting id, of one organization or of all, below which none appears any more; 0 in an empty book.

    Ids are given in order but transactions end in any, so those that were writing at the look are waited for, without
    a lock that they would have to wait for. Raises `Unavailable` where one runs for more than 5 seconds.
    """
    newest = select(func.coalesce(func.max(posting.c.id), 0))
    if organization_id is not None:
        newest = newest.where(posting.c.organization_id == organization_id)
    async with engine.connect() as connection:
        watermark = int((await connection.execute(newest)).scalar_one())
        # In this order: who gave an id below the one that was read is among them, unless it has ended.
        running = await _writers(connection)
        for _ in range(_LOOKS):
            if not running:
                return watermark
            await asyncio.sleep(_PATIENCE_SECONDS / _LOOKS)
            running &= await _writers(connection)
    raise Unavailable("A booking takes long, and the export has to wait for it. Try again in a moment.")


async def charged_watermark(engine: AsyncEngine, organization_id: UUID | None) -> int:
    """The same of the postings that have charges; gives up after 5 seconds with the database's error."""
    async with engine.begin() as connection:
        return await posting_watermark(connection, organization_id)


async def _writers(connection: AsyncConnection) -> set[str]:
    return set((await connection.execute(_WRITERS)).scalars())
