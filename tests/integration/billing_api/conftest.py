"""An application with only the rooms under test, on the real Postgres and Redis of the session."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from billing.hot.store import make_hot_store
from billing.store.engine import make_engine
from gateway.api import billing, errors, probes
from gateway.auth import KeyRing
from gateway.catalog import CatalogCache
from gateway.clock import Clock
from gateway.embedded.redis import Redis
from gateway.memory import Memory
from gateway.parts import Parts
from gateway.settings import Settings
from tests.conftest import Database
from tests.integration.billing_api.world import PEPPER, World, add_operator, add_tenant, open_shards


@pytest.fixture
async def parts(postgres: Database, redis: Redis) -> AsyncIterator[Parts]:
    """The parts of a gateway on a fresh database and an empty Redis."""
    urls = {"database_url": postgres.app_url, "redis_url": redis.url}
    settings = Settings.model_validate({**urls, "key_pepper": PEPPER.decode()})
    engine = make_engine(postgres.app_url)
    hot = await make_hot_store(redis.url)
    clock = Clock()
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
    app.state.readiness = probes.Readiness(parts)
    errors.install(app)
    for router in (billing.router, probes.router):
        app.include_router(router)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a network."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def world(parts: Parts, client: httpx.AsyncClient) -> World:
    """Two tenants and an operator, with all shards open."""
    now = parts.clock.now()
    ours = await add_tenant(parts.engine, "Ours", now)
    theirs = await add_tenant(parts.engine, "Theirs", now)
    operator_key = await add_operator(parts.engine, now)
    await open_shards(parts.engine, parts.hot, ours, theirs)
    await parts.catalog.refresh(force=True)
    return World(parts.engine, parts.hot, client, parts.clock, ours, theirs, operator_key)
