"""One Tollgate in front of a scripted backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.scripted import Scripted, scripted_backend
from tests.stage import Stage, Tenant, raise_curtain


@pytest.fixture
async def backend() -> AsyncIterator[Scripted]:
    async with scripted_backend() as backend:
        yield backend


@pytest.fixture
async def stage(postgres: Database, redis: Redis, backend: Scripted) -> AsyncIterator[Stage]:
    changes = {"keep_alive_seconds": 0.2, "cors_origins": ("https://app.example",)}
    async with raise_curtain(postgres.app_url, redis.url, **changes) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.tenant()
