"""One Tollgate for these tests, in front of scripted backends of several kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from models.money import parse_amount
from tests.conftest import MakeDatabase
from tests.scripted import Scripted, scripted_backend
from tests.stage import ALWAYS, Stage, Tenant, own_stage

KINDS = ("openai", "vllm", "sglang", "llamacpp", "ollama", "tgi")


@dataclass(slots=True)
class Shop:
    """A stage whose model `<kind>` is served by a backend of that kind, sold by tokens, image and second."""

    stage: Stage
    backend: Scripted
    tenant: Tenant = field(init=False)
    client: AsyncOpenAI = field(init=False)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        """Send a request of the tenant."""
        headers = self.tenant.headers | options.pop("headers", {})
        return await self.stage.client.post(self.stage.base_url + path, headers=headers, **options)

    async def charge(self) -> dict[str, Any]:
        """The receipt of the one call that was charged."""
        (charge,) = await self.stage.charges(self.tenant, 1)
        receipt = await self.stage.client.get(
            f"{self.stage.base_url}/v1/calls/{charge['call_id']}", headers=self.tenant.headers
        )
        assert receipt.status_code == 200
        return dict(receipt.json())

    async def nothing_charged(self) -> None:
        """Nothing is held, nothing was charged."""
        await self.stage.quiet()
        balance = await self.stage.balance(self.tenant)
        assert parse_amount(balance["held"]["amount"], "USD") == 0
        assert parse_amount(balance["balance"]["amount"], "USD") == parse_amount("5", "USD")


@pytest.fixture(scope="package")
async def open_shop(make_database: MakeDatabase, scratch: Path) -> AsyncIterator[Shop]:
    hosts = frozenset({"img.example"})
    async with (
        scripted_backend() as backend,
        own_stage(make_database, scratch, "endpoints", media_hosts=hosts) as stage,
    ):
        for kind in KINDS:
            await stage.backend(backend.url, kind=kind, model=kind, known_as="x")
            for meter, price in (("image", "0.02"), ("audio_second", "0.0001")):
                row = {"book": "default", "model": kind, "meter": meter, "currency": "USD", "price_each": price}
                await stage.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})
        yield Shop(stage, backend)


@pytest.fixture
async def shop(open_shop: Shop) -> AsyncIterator[Shop]:
    """The shop with a new customer."""
    open_shop.tenant = await open_shop.stage.tenant()
    open_shop.backend.asked.clear()
    base_url, key = f"{open_shop.stage.base_url}/v1", open_shop.tenant.api_key
    async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as open_shop.client:
        yield open_shop
