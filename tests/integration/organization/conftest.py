"""One trade for all tests of this package: they only read it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.embedded.redis import Redis
from tests.conftest import MakeDatabase
from tests.integration.organization.trade import Trade, opened


@pytest.fixture(scope="package")
async def trade(make_database: MakeDatabase, redis_server: Redis) -> AsyncIterator[Trade]:
    database = await make_database("trade")
    async with opened(database, redis_server) as trade:
        yield trade
