"""One Tollgate for the tests of batches, in front of a scripted backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.integration.batches.desk import Desk
from tests.scripted import Scripted, scripted_backend
from tests.stage import Stage, raise_curtain


@pytest.fixture
async def backend() -> AsyncIterator[Scripted]:
    async with scripted_backend() as backend:
        yield backend


@pytest.fixture
async def stage(postgres: Database, redis: Redis, backend: Scripted) -> AsyncIterator[Stage]:
    changes = {"batch_lease_seconds": 2, "max_file_bytes": 2_000_000, "max_organization_file_bytes": 3_000_000}
    async with raise_curtain(postgres.app_url, redis.url, **changes) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


@pytest.fixture
async def desk(stage: Stage) -> Desk:
    return Desk(stage, await stage.tenant())
