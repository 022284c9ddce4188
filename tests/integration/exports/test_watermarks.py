"""A watermark is settled: no posting appears at or below it any more, and whoever posts never waits for an export."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.exports import watermarks
from billing.exports.watermarks import settled_watermark
from models.errors import Unavailable
from models.tables import posting
from tests.integration.book.conftest import book, engine
from tests.integration.book.shop import Shop

__all__ = ["book", "engine"]

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def _insert(connection: AsyncConnection, key: str) -> int:
    values = {"idempotency_key": key, "kind": "topup", "effective_at": datetime.now(UTC)}
    return int((await connection.execute(insert(posting).values(values).returning(posting.c.id))).scalar_one())


async def _post(engine: AsyncEngine, key: str) -> int:
    async with engine.begin() as connection:
        return await _insert(connection, key)


async def test_an_empty_book(engine: AsyncEngine) -> None:
    assert await settled_watermark(engine, None) == 0


async def test_it_waits_for_whoever_was_writing_below_it(engine: AsyncEngine) -> None:
    async with engine.connect() as slow:
        below = await _insert(slow, "slow")
        above = await _post(engine, "fast")
        assert below < above
        look = asyncio.create_task(settled_watermark(engine, None))
        assert (await asyncio.wait({look}, timeout=0.3))[0] == set()
        # Others go on meanwhile, and are not waited for: their ids are above.
        async with asyncio.timeout(5):
            newer = await _post(engine, "meanwhile")
        async with engine.connect() as another:
            await _insert(another, "another")
            await slow.commit()
            assert await look == above < newer


async def test_it_does_not_wait_for_what_was_given_up(engine: AsyncEngine) -> None:
    async with engine.connect() as slow:
        await _insert(slow, "slow")
        above = await _post(engine, "fast")
        look = asyncio.create_task(settled_watermark(engine, None))
        await asyncio.sleep(0.1)
        await slow.rollback()
        assert await look == above


async def test_it_gives_up_with_a_sentence(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks, "_LOOKS", 3)
    async with engine.connect() as slow:
        await _insert(slow, "slow")
        monkeypatch.setattr(watermarks, "_PATIENCE_SECONDS", 0.03)
        with pytest.raises(Unavailable, match="Try again"):
            await settled_watermark(engine, None)


async def test_of_an_organization_it_is_its_own(book: Shop) -> None:
    one, two = await book.tenant(paid=5), await book.tenant(paid=5)
    assert await settled_watermark(book.engine, one.organization_id) < await settled_watermark(
        book.engine, two.organization_id
    )
    assert await settled_watermark(book.engine, None) == await settled_watermark(book.engine, two.organization_id)
