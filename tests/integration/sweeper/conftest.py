"""Stores of gateways that live and die, on one Redis, and a raw connection to set the clock of their last sign."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from billing.hot.connection import HotConnection
from billing.hot.store import HotStore, make_hot_store
from gateway.embedded.redis import Redis
from tests.integration.hot.nouns import Tenant


@pytest.fixture
async def gateway(redis: Redis) -> AsyncIterator[HotStore]:
    """The store of a gateway named `one`."""
    hot = await make_hot_store(redis.url, instance="one")
    yield hot
    await hot.close()


@pytest.fixture
async def other(redis: Redis) -> AsyncIterator[HotStore]:
    """The store of a gateway named `two`."""
    hot = await make_hot_store(redis.url, instance="two")
    yield hot
    await hot.close()


@pytest.fixture
async def worker(redis: Redis) -> AsyncIterator[HotStore]:
    """The store of a worker, which holds nothing."""
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
