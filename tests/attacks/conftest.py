"""One Tollgate for all attacks, in front of a scripted backend that counts its visitors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.embedded import postgres as embedded_postgres
from models.ids import uuid7
from models.money import parse_amount
from tests.conftest import APP, OWNER, PASSWORD, RedisProcess
from tests.scripted import PLAIN, Scripted, scripted_backend
from tests.stage import Stage, Tenant, raise_curtain


@dataclass(slots=True)
class Scene:
    """A stage with two tenants and a backend; `untouched` says that an attack cost nothing and reached nothing."""

    stage: Stage
    backend: Scripted
    alice: Tenant
    bob: Tenant

    async def post(self, path: str, **options: Any) -> httpx.Response:
        """Send a request as it is given."""
        return await self.stage.client.post(self.stage.base_url + path, **options)

    async def chat(self, tenant: Tenant | None = None, /, **more: Any) -> httpx.Response:
        """A chat call."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **more}
        return await self.post("/v1/chat/completions", json=body, headers=(tenant or self.alice).headers)

    async def untouched(self, asked: int, balance: dict[str, Any], tenant: Tenant | None = None) -> None:
        """Nothing is held, the balance is what it was, no backend was contacted."""
        await self.stage.quiet()
        assert len(self.backend.asked) == asked
        assert await self.stage.balance(tenant or self.alice) | {"as_of": None} == balance | {"as_of": None}
        assert parse_amount(balance["held"]["amount"], "USD") == 0


@pytest.fixture(scope="package")
def attacked_redis(scratch: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(scratch / "redis-attacks")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="package")
async def scene(
    postgres_server: embedded_postgres.Postgres, _migrated: str, attacked_redis: RedisProcess
) -> AsyncIterator[Scene]:
    # Its own name each time: with other packages in between this is set up again.
    name = f"attacks_{uuid7(datetime.now(UTC)).hex}"
    await embedded_postgres.create_database(postgres_server, name, OWNER, template=_migrated)
    url = postgres_server.url(name, APP, PASSWORD)
    async with (
        scripted_backend() as backend,
        raise_curtain(url, attacked_redis.url, max_body_bytes=1_000_000, body_timeout_seconds=1) as stage,
    ):
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield Scene(stage, backend, await stage.tenant(), await stage.tenant())


@pytest.fixture(autouse=True)
async def plain_backend(scene: Scene) -> None:
    scene.backend.script = PLAIN
    await asyncio.sleep(0)
