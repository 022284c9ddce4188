"""FLUSHALL under a running Tollgate: nothing is served from a blank Redis, and balances come back right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.embedded import redis as embedded_redis
from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.scripted import scripted_backend
from tests.stage import Stage, Tenant, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.fixture
async def stage(postgres: Database, redis: Redis, tmp_path: Path) -> AsyncIterator[Stage]:
    async with scripted_backend() as backend, raise_curtain(postgres.app_url, redis.url, journal_dir=tmp_path) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


async def chat(stage: Stage, tenant: Tenant) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return await stage.client.post(f"{stage.base_url}/v1/chat/completions", json=body, headers=tenant.headers)


async def test_refused_then_right_then_served(stage: Stage, redis: Redis) -> None:
    tenant = await stage.tenant()
    for _ in range(5):
        assert (await chat(stage, tenant)).status_code == 200
    charges = await stage.charges(tenant, 5)
    spent = sum(parse_amount(charge["amount"]["amount"], "USD") for charge in charges)

    await stage.stop_worker()
    embedded_redis.command(redis, "FLUSHALL")
    answer = await chat(stage, tenant)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert (await stage.client.get(f"{stage.base_url}/readyz")).status_code == 503

    await stage.start_worker()
    await stage.ready()
    balance = await stage.balance(tenant)
    assert parse_amount(balance["balance"]["amount"], "USD") == parse_amount("5", "USD") - spent
    assert parse_amount(balance["held"]["amount"], "USD") == 0

    async def served() -> bool:
        return (await chat(stage, tenant)).status_code == 200

    await eventually(served)
    await stage.charges(tenant, 6)


async def test_calls_that_run_through_a_flush_are_charged_once(stage: Stage, redis: Redis) -> None:
    tenant = await stage.tenant()
    answers: list[httpx.Response] = []
    stop = asyncio.Event()

    async def customer() -> None:
        while not stop.is_set():
            answers.append(await chat(stage, tenant))

    customers = [asyncio.create_task(customer()) for _ in range(8)]

    async def served(count: int) -> bool:
        return sum(answer.status_code == 200 for answer in answers) >= count

    await eventually(lambda: served(20))
    embedded_redis.command(redis, "FLUSHALL")
    await stage.ready()
    more = sum(answer.status_code == 200 for answer in answers) + 20
    await eventually(lambda: served(more))
    stop.set()
    await asyncio.gather(*customers)
    assert {answer.status_code for answer in answers} <= {200, 503}
    charges = await stage.charges(tenant, sum(answer.status_code == 200 for answer in answers))
    spent = sum(parse_amount(charge["amount"]["amount"], "USD") for charge in charges)

    async def settled() -> bool:
        balance = await stage.balance(tenant)
        return parse_amount(balance["balance"]["amount"], "USD") == parse_amount("5", "USD") - spent

    await eventually(settled)
    report = await stage.operate("GET", "/verify")
    assert report["ok"], report
