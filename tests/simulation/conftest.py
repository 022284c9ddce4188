"""The servers of the test session, as a simulation takes them."""

from __future__ import annotations

import pytest

from gateway.embedded.postgres import Postgres
from gateway.embedded.redis import Redis
from tests.conftest import APP, OWNER, PASSWORD
from tests.simulation.book import Databases
from tests.simulation.run import Servers


@pytest.fixture
def servers(postgres_server: Postgres, _migrated: str, redis: Redis) -> Servers:
    """A migrated database to copy, and an empty Redis."""
    assert redis.socket_path is not None
    return Servers(redis.socket_path, PASSWORD, Databases(postgres_server, _migrated, OWNER, APP, PASSWORD))
