"""One Tollgate for all attacks, in front of a scripted backend that counts its visitors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.money import parse_amount
from tests.conftest import MakeDatabase
from tests.scripted import PLAIN, Scripted, scripted_backend
from tests.stage import Stage, Tenant, own_stage


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
async def scene(make_database: MakeDatabase, scratch: Path) -> AsyncIterator[Scene]:
    limits = {"max_body_bytes": 1_000_000, "body_timeout_seconds": 1}
    async with scripted_backend() as backend, own_stage(make_database, scratch, "attacks", **limits) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield Scene(stage, backend, await stage.tenant(), await stage.tenant())


@pytest.fixture(autouse=True)
async def plain_backend(scene: Scene) -> None:
    scene.backend.script = PLAIN
    await asyncio.sleep(0)
