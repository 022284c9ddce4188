"""E04: an organization and its keys are saved while calls run; its money is not part of what is saved."""

from __future__ import annotations

import asyncio

import pytest

from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.scripted import scripted_backend
from tests.stage import raise_curtain

pytestmark = pytest.mark.anyio

CALLS = 20


async def test_e04_saving_during_load_leaves_the_balance_alone(postgres: Database, redis: Redis) -> None:
    async with scripted_backend() as backend, raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant = await stage.tenant()

        async def save(number: int) -> None:
            path = f"/organizations/{tenant.organization_id}"
            await stage.operate(
                "POST", path, json={"name": f"Acme {number}", "limits": {"max_in_flight": 100 + number}}
            )
            await stage.operate("POST", f"/projects/{tenant.project_id}/api_keys", json={"name": f"key {number}"})

        answers, _ = await asyncio.gather(
            asyncio.gather(*(stage.chat(tenant) for _ in range(CALLS))), asyncio.gather(*map(save, range(5)))
        )
        assert {answer.status_code for answer in answers} == {200}
        charges = await stage.charges(tenant, CALLS)
        spent = sum(parse_amount(charge["amount"]["amount"], "USD") for charge in charges)
        await stage.verified(tenant)
        balance = parse_amount((await stage.balance(tenant))["balance"]["amount"], "USD")
        assert balance == parse_amount("5", "USD") - spent
        assert spent > 0
