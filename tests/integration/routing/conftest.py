"""One Tollgate for all tests of routing; each has models and tenants of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import MakeDatabase
from tests.scripted import Scripted
from tests.stage import PRICES, Stage, Tenant, eventually, own_stage

CHECK_SECONDS = 0.1
_numbers = itertools.count(1)


@dataclass(slots=True)
class Town:
    """The stage, and what a test sells on it."""

    stage: Stage

    async def backend(self, server: Scripted | str, **more: Any) -> str:
        """A new backend at this server; its name."""
        name = f"b{next(_numbers)}"
        url = server if isinstance(server, str) else server.url
        await self.stage.operate("POST", "/backends", json={"name": name, "kind": "openai", "url": url, **more})
        return name

    async def model(self, *deployments: dict[str, Any], prices: dict[str, str] | None = None, **more: Any) -> str:
        """A new model with these deployments, at the usual prices; its id."""
        model = f"m{next(_numbers)}"
        served = [{"backend_model": f"{model}-as-served"} | each for each in deployments]
        body = {"id": model, "context_length": 4096, "deployments": served, **more}
        await self.stage.operate("POST", "/models", json=body)
        await self.stage.price(model, PRICES if prices is None else prices)
        return model

    async def chat(self, tenant: Tenant, model: str, words: str = "hi", **more: Any) -> httpx.Response:
        """A chat call."""
        body = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 5, **more}
        url = f"{self.stage.base_url}/v1/chat/completions"
        return await self.stage.client.post(url, json=body, headers=tenant.headers)

    async def receipt(self, tenant: Tenant, reply: httpx.Response) -> dict[str, Any]:
        """The receipt of a call, once it is booked."""
        wanted = reply.headers["x-request-id"]

        async def find() -> dict[str, Any] | None:
            url = f"{self.stage.base_url}/v1/calls/{wanted}"
            answer = await self.stage.client.get(url, headers=tenant.headers)
            return dict(answer.json()) if answer.status_code == 200 else None

        return dict(await eventually(find))


@pytest.fixture(scope="package")
async def routing_stage(make_database: MakeDatabase, scratch: Path) -> AsyncIterator[Stage]:
    waits = {"wait_seconds": 0.5, "health_check_seconds": CHECK_SECONDS}
    async with own_stage(make_database, scratch, "routing", **waits) as stage:
        yield stage


@pytest.fixture
async def town(routing_stage: Stage) -> AsyncIterator[Town]:
    """The shared stage with a new retry budget; afterwards the ledger must be whole."""
    routing_stage.take_over()
    yield Town(routing_stage)
    await routing_stage.quiet()
    assert routing_stage.app.running.capacity.room.running_calls == 0
