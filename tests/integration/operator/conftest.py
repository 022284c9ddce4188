"""An application with the operator's rooms, on a fresh database and an empty Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI

from billing.hot.store import make_hot_store
from billing.rebuild import ensure_epoch
from billing.store.engine import make_engine
from gateway.api import errors, operator
from gateway.auth import KeyRing
from gateway.catalog import CatalogCache
from gateway.clock import Clock
from gateway.embedded.redis import Redis
from gateway.keys import issue_operator_key
from gateway.memory import Memory
from gateway.parts import Parts
from gateway.settings import Settings
from tests.conftest import Database
from tests.integration.operator.world import PEPPER, World


class MovableClock(Clock):
    """The billing clock, which a test moves on."""

    def move(self, step: timedelta) -> None:
        """Move on by `step`."""
        self._offset += step


@pytest.fixture
def clock() -> MovableClock:
    """The billing clock of the application."""
    return MovableClock()


@pytest.fixture
async def parts(postgres: Database, redis: Redis, clock: MovableClock) -> AsyncIterator[Parts]:
    """The parts of a gateway."""
    settings = Settings.model_validate(
        {"database_url": postgres.app_url, "redis_url": redis.url, "key_pepper": PEPPER.decode()}
    )
    engine = make_engine(postgres.app_url)
    hot = await make_hot_store(redis.url)
    try:
        yield Parts(
            settings,
            clock,
            engine,
            hot,
            KeyRing(engine, PEPPER, clock, 3),
            CatalogCache(engine, 1),
            Memory(engine, clock, 60),
        )
    finally:
        await hot.close()
        await engine.dispose()


@pytest.fixture
def app(parts: Parts) -> FastAPI:
    """The application under test."""
    app = FastAPI()
    app.state.parts = parts
    errors.install(app)
    app.include_router(operator.router)
    return app


@pytest.fixture
async def world(app: FastAPI, parts: Parts) -> AsyncIterator[World]:
    """A client with an operator key."""
    async with parts.engine.begin() as connection:
        _, operator_key = await issue_operator_key(connection, "test", PEPPER)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield World(client, parts, operator_key)


@pytest.fixture
async def open_shards(parts: Parts) -> None:
    """All shards of the empty Redis are open, as a worker leaves them."""
    for shard in range(16):
        assert await ensure_epoch(parts.engine, parts.hot, shard)
