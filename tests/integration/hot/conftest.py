"""A store on the test's Redis, a raw connection beside it to look and tamper, and an organization."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from billing.hot.connection import HotConnection
from billing.hot.store import HotStore, make_hot_store
from gateway.embedded.redis import Redis
from tests.integration.hot.nouns import Tenant


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[HotStore]:
    """A store on an empty Redis."""
    hot = await make_hot_store(redis.url)
    yield hot
    await hot.close()


@pytest.fixture
async def raw(redis: Redis) -> AsyncIterator[HotConnection]:
    """A connection for commands that the store does not have."""
    connection = await HotConnection.connect(redis.url)
    yield connection
    await connection.close()


@pytest.fixture
def tenant() -> Tenant:
    """An organization of this test alone."""
    return Tenant()
