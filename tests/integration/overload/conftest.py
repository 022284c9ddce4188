"""One Tollgate for all tests of overload; each has models and tenants of its own, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.telemetry import REGISTRY
from models.money import parse_amount
from tests.conftest import MakeDatabase
from tests.scripted import DONE, Asked, Scripted, end, open_stream, said, send, usage
from tests.stage import PRICES, Stage, Tenant, eventually, own_stage

WAIT_SECONDS = 2.0
_numbers = itertools.count(1)


class Gate:
    """A backend's script whose answers begin at once and end when the test lets them, one by one or all."""

    def __init__(self, *, is_open: bool = False, says_hello: bool = True) -> None:
        self.running = 0
        self.most = 0
        self._says_hello = says_hello
        self._may_end = asyncio.Semaphore(1_000_000 if is_open else 0)

    def let(self, count: int = 1) -> None:
        """Let this many answers end."""
        for _ in range(count):
            self._may_end.release()

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self._says_hello:
                await open_stream(writer)
                await send(writer, said("hello"))
            await self._may_end.acquire()
            if not self._says_hello:
                await open_stream(writer)
        finally:
            # Before the last byte, since the next call may come as soon as that is read.
            self.running -= 1
        await send(writer, said(" there", finish="stop"), usage(5, 2), DONE)
        await end(writer)


@dataclass(frozen=True, slots=True)
class Sale:
    """A model on sale, and the names of the backends that serve it."""

    model: str
    backends: tuple[str, ...]


@dataclass(slots=True)
class House:
    """The stage, with what a test sells on it and to whom."""

    stage: Stage
    tenants: list[Tenant] = field(default_factory=list)

    async def tenant(self) -> Tenant:
        self.tenants.append(await self.stage.tenant())
        return self.tenants[-1]

    async def sell(
        self,
        *backends: Scripted | str,
        max_in_flight: int | None = None,
        kind: str = "openai",
        weights: tuple[int, ...] = (),
    ) -> Sale:
        """Sell a new model that these backends serve, or those at these addresses; the heaviest is tried first."""
        model = f"m{next(_numbers)}"
        names = tuple(f"{model}-{number}" for number in range(len(backends)))
        for name, backend in zip(names, backends, strict=True):
            url = backend if isinstance(backend, str) else backend.url
            body: dict[str, Any] = {"name": name, "kind": kind, "url": url, "max_in_flight": max_in_flight}
            await self.stage.operate("POST", "/backends", json=body)
        deployments = [
            {"backend": name, "backend_model": "x", "weight": weight}
            for name, weight in zip(names, weights or [1] * len(names), strict=True)
        ]
        body = {"id": model, "context_length": 4096, "deployments": deployments}
        await self.stage.operate("POST", "/models", json=body)
        await self.stage.price(model)

        async def is_known() -> bool:
            catalog = self.stage.app.parts.catalog.current
            return model in catalog.models and len(catalog.prices.get(("default", "USD", model), ())) == len(PRICES)

        await eventually(is_known)
        return Sale(model, names)

    async def chat(self, tenant: Tenant, sale: Sale, words: str = "hi", **more: Any) -> httpx.Response:
        body = {"model": sale.model, "messages": [{"role": "user", "content": words}], "max_tokens": 5, **more}
        url = f"{self.stage.base_url}/v1/chat/completions"
        return await self.stage.client.post(url, json=body, headers=tenant.headers)

    def begin(self, tenant: Tenant, sale: Sale, words: str = "hi", **more: Any) -> asyncio.Task[httpx.Response]:
        """Start a call; the task ends with its answer."""
        return asyncio.create_task(self.chat(tenant, sale, words, **more))

    async def held(self, tenant: Tenant) -> int:
        return parse_amount((await self.stage.balance(tenant))["held"]["amount"], "USD")

    async def paid(self, tenant: Tenant) -> int:
        """What a tenant has paid so far, in units, by the hot store, which knows at once."""
        return parse_amount("5", "USD") - parse_amount((await self.stage.balance(tenant))["balance"]["amount"], "USD")

    @property
    def waiting(self) -> int:
        return self.stage.app.running.capacity.room.waiting_calls

    async def wait_for(self, *, waiting: int) -> None:
        """Until this many calls wait."""

        async def is_so() -> bool:
            return self.waiting == waiting

        await eventually(is_so)

    async def is_over(self) -> None:
        """Nothing is left of any call: no driver, no slot, no hold."""
        await self.stage.quiet()
        running = self.stage.app.running
        assert not running.drivers
        assert running.capacity.room.running_calls == 0
        assert running.capacity.room.waiting_calls == 0
        assert metric("tollgate_calls_in_flight", endpoint="/v1/chat/completions") == 0
        for tenant in self.tenants:
            assert await self.held(tenant) == 0


async def asked(backend: Scripted, count: int) -> None:
    """Until the backend has been asked this many times."""

    async def is_so() -> bool:
        return len(backend.asked) >= count

    await eventually(is_so)
    assert len(backend.asked) == count


def metric(name: str, **labels: str) -> float:
    """What a scrape would tell now; 0 where it has not happened yet."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="package")
async def shared_stage(make_database: MakeDatabase, scratch: Path) -> AsyncIterator[Stage]:
    async with own_stage(make_database, scratch, "overload", wait_seconds=WAIT_SECONDS) as stage:
        yield stage


@pytest.fixture
async def house(shared_stage: Stage) -> AsyncIterator[House]:
    """The shared stage with a new retry budget; afterwards nothing may be left of the calls."""
    shared_stage.take_over()
    running = shared_stage.app.running
    settings, house = running.settings, House(shared_stage)
    try:
        yield house
        await house.is_over()
    finally:
        running.settings = settings
