"""Sealing postings: each seal has the hash of its posting and of the seal before, so that no past can be rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.store import seals
from billing.store.periods import hold_book, last_posting
from billing.store.seals import GENESIS, Seal

_BATCH: Final = 2_000
_LOCK_TIMEOUT: Final = "55P03"
_WAIT_MS: Final = 1_000
"""Bookings stand still while it waits; a seal can come later."""

_IS_NEWER = text("select exists (select from posting where id > :after)")


async def seal_postings(engine: AsyncEngine, limit: int = 20_000) -> int:
    """Seal what was posted since the last time, at most `limit` postings; how many were sealed.

    Only up to a posting below which none can appear any more: ids are given before transactions commit, so the chain
    would miss those that commit late. Does nothing where another worker seals, or where postings are under way for
    longer than is waited.
    """
    async with engine.connect() as connection:
        last = await seals.head(connection)
        newer = await connection.execute(_IS_NEWER, {"after": 0 if last is None else last.posting_id})
        if not newer.scalar_one():
            return 0
    watermark = await _watermark(engine)
    sealed = 0
    while watermark and sealed < limit:
        count = await _seal_batch(engine, watermark, min(_BATCH, limit - sealed))
        sealed += count
        if count < _BATCH:
            break
    return sealed


async def _watermark(engine: AsyncEngine) -> int:
    """The highest posting now that nobody posts; 0 where another seals, or that could not be waited for."""
    try:
        async with engine.begin() as connection:
            # Of many workers one makes the others wait.
            if not await seals.take_pen(connection):
                return 0
            await hold_book(connection, _WAIT_MS)
            return await last_posting(connection)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_TIMEOUT:
            raise
        return 0


async def _seal_batch(engine: AsyncEngine, watermark: int, count: int) -> int:
    async with engine.begin() as connection:
        if not await seals.take_pen(connection):
            return 0
        last = await seals.head(connection)
        after = 0 if last is None else last.posting_id
        rows = await seals.unsealed(connection, after, watermark, count)
        if rows:
            await seals.keep(connection, chain(last, rows))
    return len(rows)


def chain(last: Seal | None, contents: Iterable[tuple[int, str]]) -> list[Seal]:
    """Seals that follow `last`, for the ids of postings and what is sealed of each."""
    seq, previous = (0, GENESIS) if last is None else (last.seq, last.digest)
    made: list[Seal] = []
    for posting_id, content in contents:
        digest = sha256(previous + content.encode()).digest()
        seq += 1
        made.append(Seal(seq, posting_id, previous, digest))
        previous = digest
    return made
