"""Engines of the program's own role and of the owner, a hot store, and a shop with its prices."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.keys import SHARDS
from billing.hot.store import HotStore, make_hot_store
from billing.rebuild import ensure_epoch
from billing.store.engine import make_engine
from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.integration.book.shop import Shop


@pytest.fixture
async def engine(postgres: Database) -> AsyncIterator[AsyncEngine]:
    """The program's own role."""
    engine = make_engine(postgres.app_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def owner(postgres: Database) -> AsyncIterator[AsyncEngine]:
    """The owner of the tables."""
    engine = make_engine(postgres.owner_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def hot(redis: Redis) -> AsyncIterator[HotStore]:
    """A store on an empty Redis."""
    store = await make_hot_store(redis.url)
    yield store
    await store.close()


@pytest.fixture
async def book(engine: AsyncEngine) -> Shop:
    """A shop without a Redis."""
    shop = Shop(engine)
    await shop.open()
    return shop


@pytest.fixture
async def shop(engine: AsyncEngine, hot: HotStore) -> Shop:
    """A shop with a Redis that shows every epoch."""
    for shard in range(SHARDS):
        assert await ensure_epoch(engine, hot, shard)
    shop = Shop(engine, hot)
    await shop.open()
    return shop
