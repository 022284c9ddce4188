"""A developer's first calls against the real llama.cpp, and what they cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.stage import Stage, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.fixture
async def stage(postgres: Database, redis: Redis, llamacpp: LlamaCpp) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(llamacpp.url)
        yield stage


def counters(llamacpp: LlamaCpp) -> tuple[int, int]:
    """Prompt and generated tokens by llama.cpp's own count."""
    values = {}
    for line in httpx.get(f"{llamacpp.url}/metrics", trust_env=False).text.splitlines():
        if line.startswith("llamacpp:"):
            name, value = line.split()
            values[name.removeprefix("llamacpp:")] = int(float(value))
    prompts = values["prompt_tokens_total"] + values["prompt_tokens_cached_total"]
    return prompts, values["tokens_predicted_total"]


def mixed_call(number: int) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": f"tell me the story number {number} of {number * 7}"}]
    match number % 6:
        case 0:
            return "/v1/chat/completions", {"messages": messages, "max_tokens": 12}
        case 1:
            return "/v1/chat/completions", {"messages": messages, "max_tokens": 12, "stream": True}
        case 2:
            return "/v1/chat/completions", {"messages": messages, "max_tokens": 8, "n": 3, "stream": number % 4 == 0}
        case 3:
            return "/v1/completions", {"prompt": [f"one {number}", "two", f"three {number}"], "max_tokens": 6}
        case 4:
            return "/v1/completions", {"prompt": [5, 6, 7, number], "max_tokens": 6, "n": 2, "stream": True}
        case _:
            return "/v1/embeddings", {"input": [f"some text {number}", "more"]}


async def test_a_hundred_mixed_calls_are_charged_to_the_token(stage: Stage, llamacpp: LlamaCpp) -> None:
    tenant = await stage.tenant()
    before = counters(llamacpp)
    eight = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        path, body = mixed_call(number)
        async with eight:
            answer = await stage.client.post(
                stage.base_url + path, json={"model": "tiny", **body}, headers=tenant.headers
            )
        assert answer.status_code == 200, answer.text

    await asyncio.gather(*(one(number) for number in range(100)))
    charges = await stage.charges(tenant, 100)
    after = counters(llamacpp)
    assert sum(charge["input_tokens"] for charge in charges) == after[0] - before[0]
    assert sum(charge["output_tokens"] for charge in charges) == after[1] - before[1]
    total = 0
    for charge in charges:
        fresh = charge["input_tokens"] - charge["cached_tokens"]
        exact = fresh * 150 + charge["cached_tokens"] * 75 + charge["output_tokens"] * 600
        assert parse_amount(charge["amount"]["amount"], "USD") == exact
        assert charge["usage_source"] == "backend"
        total += exact
    balance = await stage.balance(tenant)
    assert parse_amount(balance["balance"]["amount"], "USD") == parse_amount("5", "USD") - total
    assert parse_amount(balance["held"]["amount"], "USD") == 0


async def test_three_hundred_calls_on_a_balance_for_ten(stage: Stage) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
    rich = await stage.tenant()
    answer = await stage.client.post(f"{stage.base_url}/v1/chat/completions", json=body, headers=rich.headers)
    (charge,) = await stage.charges(rich, 1)
    hold = parse_amount(charge["hold"]["amount"], "USD")
    ten = f"{hold * 10 / 10**9:.9f}"
    poor = await stage.tenant(credit=ten)

    async def call() -> httpx.Response:
        return await stage.client.post(f"{stage.base_url}/v1/chat/completions", json=body, headers=poor.headers)

    answers = await asyncio.gather(*(call() for _ in range(300)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 402}
    assert statuses.count(200) >= 10
    for answer in answers:
        if answer.status_code == 402:
            assert answer.headers["x-should-retry"] == "false"
            assert answer.json()["error"]["code"] == "insufficient_balance"
    await stage.charges(poor, statuses.count(200))
    balance = await stage.balance(poor)
    assert parse_amount(balance["balance"]["amount"], "USD") >= 0
    assert parse_amount(balance["held"]["amount"], "USD") == 0


async def test_a_stream_and_its_receipt(stage: Stage) -> None:
    tenant = await stage.tenant()
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 10,
        "user": "ann",
    }
    async with stage.client.stream(
        "POST", f"{stage.base_url}/v1/chat/completions", json=body, headers=tenant.headers
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = (await answer.aread()).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert "timings" not in text
    told = json.loads(text.split("data: ")[-2])["usage"]
    await stage.charges(tenant, 1)
    url = f"{stage.base_url}/v1/calls/{answer.headers['x-request-id']}"
    receipt = (await stage.client.get(url, headers=tenant.headers)).json()
    assert receipt["input_tokens"] == told["prompt_tokens"]
    assert receipt["output_tokens"] == told["completion_tokens"]
    assert (receipt["ending"], receipt["end_user"], receipt["streamed"]) == ("finished", "ann", True)
