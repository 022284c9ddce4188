"""An application with the operator's rooms, on a fresh database and an empty Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from gateway.api import operator
from gateway.embedded.redis import Redis
from gateway.keys import issue_operator_key
from gateway.parts import Parts
from tests.conftest import Database
from tests.integration.operator.world import World
from tests.rooms import PEPPER, MovableClock, application, open_all_shards, open_parts


@pytest.fixture
def clock() -> MovableClock:
    """The billing clock of the application."""
    return MovableClock()


@pytest.fixture
async def parts(postgres: Database, redis: Redis, clock: MovableClock) -> AsyncIterator[Parts]:
    """The parts of a gateway."""
    async with open_parts(postgres, redis, clock) as parts:
        yield parts


@pytest.fixture
def app(parts: Parts) -> FastAPI:
    """The application under test."""
    return application(parts, operator.router)


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
    await open_all_shards(parts.engine, parts.hot)
