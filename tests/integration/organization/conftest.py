"""One trade for all tests of this package: they only read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from gateway.embedded import postgres as embedded_postgres
from gateway.embedded.redis import Redis
from models.ids import uuid7
from tests.conftest import APP, OWNER, PASSWORD
from tests.integration.organization.trade import Trade, opened


@pytest.fixture(scope="package")
async def trade(
    postgres_server: embedded_postgres.Postgres, _migrated: str, redis_server: Redis
) -> AsyncIterator[Trade]:
    # Its own name each time: with other packages in between this is set up again.
    name = f"trade_{uuid7(datetime.now(UTC)).hex}"
    await embedded_postgres.create_database(postgres_server, name, OWNER, template=_migrated)
    async with opened(postgres_server.url(name, APP, PASSWORD), redis_server.url) as trade:
        yield trade
