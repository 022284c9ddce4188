"""One Tollgate for all tests of routing; each has models and tenants of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.embedded import postgres as embedded_postgres
from gateway.retries import RetryBudget
from gateway.telemetry import BACKENDS
from tests.conftest import APP, OWNER, PASSWORD, RedisProcess
from tests.scripted import Scripted
from tests.stage import ALWAYS, PRICES, Stage, Tenant, eventually, raise_curtain

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
        await self.price(model, PRICES if prices is None else prices)
        return model

    async def price(self, model: str, prices: dict[str, str]) -> None:
        """Publish prices."""
        for meter, price in prices.items():
            row = {"book": "default", "model": model, "meter": meter, "currency": "USD", "price_per_million": price}
            await self.stage.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})

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
def routing_redis(scratch: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(scratch / "redis-routing")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="package")
async def routing_stage(
    postgres_server: embedded_postgres.Postgres, _migrated: str, routing_redis: RedisProcess
) -> AsyncIterator[Stage]:
    await embedded_postgres.create_database(postgres_server, "routing", OWNER, template=_migrated)
    url = postgres_server.url("routing", APP, PASSWORD)
    async with raise_curtain(url, routing_redis.url, wait_seconds=0.5, health_check_seconds=CHECK_SECONDS) as stage:
        yield stage


@pytest.fixture
async def town(routing_stage: Stage) -> AsyncIterator[Town]:
    """The shared stage with a new retry budget; afterwards the ledger must be whole."""
    running = routing_stage.app.running
    # Metrics are those of a process; another stage in this one may have taken them over.
    BACKENDS.read = running.capacity.gauges
    running.capacity.budget = RetryBudget(1.0, floor=1_000)
    yield Town(routing_stage)
    await routing_stage.quiet()
    assert running.capacity.room.running_calls == 0
