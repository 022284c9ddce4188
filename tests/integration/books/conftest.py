"""The month with its documents, and a reader of its exports."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports import KINDS, Manifest, Wanted, begin_export, stream
from billing.hot.store import HotStore, make_hot_store
from billing.store.engine import make_engine
from gateway.embedded.redis import Redis, command
from tests.conftest import MakeDatabase
from tests.integration.book.conftest import engine, hot
from tests.integration.books.month import ISSUED, Document, Month
from tests.rooms import open_all_shards

__all__ = ["engine", "hot"]


class File(NamedTuple):
    """An export that was made."""

    body: bytes
    manifest: Manifest

    @property
    def rows(self) -> list[dict[str, str]]:
        """Its rows, where it is CSV; the guard of formulas undone."""
        read = csv.DictReader(io.StringIO(self.body.decode("utf-8-sig"), newline=""), strict=True)
        return [{name: cell.removeprefix("'") for name, cell in row.items()} for row in read]


Make: TypeAlias = Callable[..., Awaitable[File]]


class Books(NamedTuple):
    """The month and its documents."""

    month: Month
    postpaid: Document
    hybrid: Document
    voided: Document
    korean: Document
    note: Document
    make: Make


async def _made(engine: AsyncEngine, hot: HotStore) -> Books:
    """March with its invoices: one voided and issued again, one with a credit note, one paid in part."""
    await open_all_shards(engine, hot)
    month = Month(engine, hot)
    await month.make()
    voided = await month.invoice(month.hybrid, number=1)
    postpaid = await month.invoice(month.postpaid, number=2)
    korean = await month.invoice(month.korean, rate_ppm=100_000, number=3)
    await month.void(voided, ISSUED + timedelta(hours=2))
    hybrid = await month.invoice(month.hybrid, at=ISSUED + timedelta(hours=3), number=4)
    await month.pay(postpaid, postpaid.total, datetime(2026, 4, 10, tzinfo=UTC), "+wire 1")
    await month.pay(korean, 1_000_000, datetime(2026, 4, 12, tzinfo=UTC), "wire 2")
    note = await month.credit_note(korean, 1_000_000, 100_000, datetime(2026, 4, 20, tzinfo=UTC))

    async def make(kind: str, excel: bool = False, **wanted: Any) -> File:
        export = await begin_export(engine, KINDS[kind], Wanted(**wanted), excel=excel)
        manifest = Manifest(export)
        return File(b"".join([piece async for piece in stream(engine, export, manifest)]), manifest)

    return Books(month, postpaid, hybrid, voided, korean, note, make)


@pytest.fixture(scope="module")
async def books(make_database: MakeDatabase, redis_server: Redis) -> AsyncIterator[Books]:
    """The month, for tests that only read it."""
    engine = make_engine((await make_database("books")).app_url)
    command(redis_server, "FLUSHALL")
    hot = await make_hot_store(redis_server.url)
    try:
        yield await _made(engine, hot)
    finally:
        await hot.close()
        await engine.dispose()


@pytest.fixture
async def own_books(engine: AsyncEngine, hot: HotStore) -> Books:
    """The month, for a test that goes on with it."""
    return await _made(engine, hot)
