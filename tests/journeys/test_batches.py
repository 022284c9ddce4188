"""A developer runs a night's work with the official OpenAI SDK, unmodified, on a real model server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from openai.types import Batch

from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.stage import Stage, Tenant, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
BODIES: dict[Endpoint, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
    "/v1/completions": {"model": "tiny", "prompt": "once", "max_tokens": 4},
    "/v1/embeddings": {"model": "tiny", "input": ["one", "two"]},
}
WRONG: list[tuple[dict[str, Any], int]] = [({"model": "no-such-model"}, 404), ({"user": 5}, 400)]
"""What is wrong with the last lines of each file, and what that is answered with."""


@pytest.fixture
async def stage(postgres: Database, redis: Redis, llamacpp: LlamaCpp) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(llamacpp.url)
        yield stage


def client_of(stage: Stage, tenant: Tenant) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.base_url}/v1", api_key=tenant.api_key)


def written(endpoint: Endpoint, good: int) -> bytes:
    bodies = [BODIES[endpoint]] * good + [BODIES[endpoint] | wrong for wrong, _ in WRONG]
    lines = [
        {"custom_id": f"{endpoint} {number}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async def is_over() -> Batch | None:
        now = await client.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "expired", "cancelled") else None

    found: Batch = await eventually(is_over, 120)
    return found


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


async def test_a_hundred_lines_in_three_batches(stage: Stage) -> None:
    tenant = await stage.tenant()
    async with client_of(stage, tenant) as client:
        batches = []
        for endpoint, good in zip(BODIES, (40, 34, 20), strict=True):
            file = await client.files.create(file=("night.jsonl", written(endpoint, good)), purpose="batch")
            assert (file.purpose, file.status, file.filename) == ("batch", "processed", "night.jsonl")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"kind": endpoint}
            )
            assert batch.status == "validating"
            batches.append((batch, good))
        receipts: dict[str, dict[str, Any]] = {}
        for created, good in batches:
            batch = await ended(client, created)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (good + 2, good, 2)
            assert batch.metadata == {"kind": batch.endpoint}
            lines = await lines_of(client, batch.output_file_id)
            assert [line["custom_id"] for line in lines] == [f"{batch.endpoint} {number}" for number in range(good)]
            receipts |= {line["response"]["request_id"]: line["response"]["body"] for line in lines}
            bad = await lines_of(client, batch.error_file_id)
            assert [line["response"]["status_code"] for line in bad] == [status for _, status in WRONG]
            assert batch.usage is not None
            told = [line["response"]["body"]["usage"] for line in lines]
            assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in told)
            assert batch.usage.output_tokens == sum(usage.get("completion_tokens", 0) for usage in told)
        assert len(receipts) == 94

        # Each line is a call with a receipt, and they are all that was paid.
        charges = await stage.charges(tenant, 94)
        assert {charge["call_id"] for charge in charges} == receipts.keys()
        spent = sum(parse_amount(charge["amount"]["amount"], "USD") for charge in charges)
        balance = parse_amount((await stage.balance(tenant))["balance"]["amount"], "USD")
        assert spent == parse_amount("5", "USD") - balance > 0
        await stage.verified(tenant)

        assert len([one async for one in client.batches.list(limit=2)]) == 3
        files = [one async for one in client.files.list()]
        assert sorted(one.purpose for one in files) == ["batch"] * 3 + ["batch_output"] * 6
        for one in files:
            assert (await client.files.delete(one.id)).deleted
        assert [one async for one in client.files.list()] == []


async def test_the_sdk_understands_what_goes_wrong(stage: Stage) -> None:
    async with client_of(stage, await stage.tenant()) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(file=b"x", purpose="fine-tune")
        assert refused.value.param == "purpose"
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
        file = await client.files.create(
            file=b"no json\n", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        batch = await ended(client, batch)
        assert batch.status == "failed"
        assert batch.errors is not None
        assert batch.errors.data is not None
        assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 1)]
        with pytest.raises(openai.ConflictError):
            await client.with_options(max_retries=0).batches.cancel(batch.id)
