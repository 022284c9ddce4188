"""An application with only the rooms under test, on the real Postgres and Redis of the session."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from gateway.api import billing, probes
from gateway.embedded.redis import Redis
from gateway.parts import Parts
from tests.conftest import Database
from tests.integration.billing_api.world import World, add_operator, add_tenant, open_shards
from tests.rooms import application, open_parts


@pytest.fixture
async def parts(postgres: Database, redis: Redis) -> AsyncIterator[Parts]:
    """The parts of a gateway on a fresh database and an empty Redis."""
    async with open_parts(postgres, redis) as parts:
        yield parts


@pytest.fixture
def app(parts: Parts) -> FastAPI:
    """The application under test."""
    app = application(parts, billing.router, probes.router)
    app.state.readiness = probes.Readiness(parts)
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
