"""A developer with the official OpenAI SDK, unmodified: only the base URL and the key are ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.stage import Stage, Tenant, raise_curtain

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.fixture
async def stage(postgres: Database, redis: Redis, llamacpp: LlamaCpp) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(llamacpp.url)
        yield stage


def client_of(stage: Stage, tenant: Tenant, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.base_url}/v1", api_key=tenant.api_key, **options)


async def test_the_sdk_works_as_it_is(stage: Stage) -> None:
    tenant = await stage.tenant()
    async with client_of(stage, tenant) as client:
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).owned_by == "tollgate"

        # The random model says something at once only where nothing is left to chance.
        answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, temperature=0)
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 8
        assert answer._request_id

        pieces = []
        usage = None
        stream = await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            usage = chunk.usage or usage
        assert "".join(pieces)
        assert usage is not None

        text = await client.completions.create(model="tiny", prompt=["one", "two"], max_tokens=4)
        assert [choice.index for choice in text.choices] == [0, 1]

        logprobs = await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=3,
            logprobs=True,
            top_logprobs=2,
        )
        assert logprobs.choices[0].logprobs is not None
        assert logprobs.choices[0].logprobs.content

        vectors = await client.embeddings.create(model="tiny", input=["a", "b"])
        assert len(vectors.data) == 2
        assert len(vectors.data[0].embedding) > 10
    charges = await stage.charges(tenant, 5)
    assert {charge["ending"] for charge in charges} == {"finished"}


async def test_the_sdk_understands_our_errors(stage: Stage) -> None:
    poor = await stage.tenant(credit=None)
    async with client_of(stage, poor) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert refused.value.status_code == 402
        assert refused.value.code == "insufficient_balance"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="no-such-model", messages=MESSAGES)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
        assert bad.value.param == "temperature"
    async with client_of(stage, poor, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="tg_live_wrong").models.list()


async def test_messages_tell_limits_as_anthropic_does(stage: Stage) -> None:
    tenant = await stage.tenant(limits={"requests_per_minute": 1, "tokens_per_minute": 100_000})
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}
    url, began = f"{stage.base_url}/v1/messages", datetime.now(UTC)
    for status in (200, 429):
        answer = await stage.client.post(url, json=body, headers=tenant.headers)
        assert answer.status_code == status
        told = {name[20:]: value for name, value in answer.headers.items() if name.startswith("anthropic-ratelimit-")}
        resets = [datetime.fromisoformat(told.pop(f"{kind}-reset")) for kind in ("requests", "tokens")]
        assert all(began <= reset <= began + timedelta(minutes=2) for reset in resets)
        # As many as there are, where the bucket has filled again meanwhile.
        assert 99_000 < int(told.pop("tokens-remaining")) <= 100_000
        assert told == {"requests-limit": "1", "requests-remaining": "0", "tokens-limit": "100000"}


async def test_rate_limits_hold_and_say_when(stage: Stage) -> None:
    tenant = await stage.tenant(limits={"requests_per_minute": 3})
    async with client_of(stage, tenant, max_retries=0) as client:
        for left in (2, 1, 0):
            answer = await client.chat.completions.with_raw_response.create(
                model="tiny",
                messages=MESSAGES,
                max_tokens=2,
            )
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
        assert 0 < int(limited.value.response.headers["retry-after"]) <= 20
    await stage.charges(tenant, 3)


async def test_a_developer_who_leaves_in_mid_stream_pays_for_what_was_generated(stage: Stage) -> None:
    tenant = await stage.tenant()
    body = {"model": "tiny", "prompt": "once", "max_tokens": 3_000, "ignore_eos": True, "stream": True}
    url = f"{stage.base_url}/v1/completions"
    async with stage.client.stream("POST", url, json=body, headers=tenant.headers) as answer:
        received = 0
        async for line in answer.aiter_lines():
            received += line.startswith("data: ")
            if received == 20:
                break
    (charge,) = await stage.charges(tenant, 1)
    assert charge["ending"] == "client_gone"
    assert charge["usage_source"] == "backend_partial"
    assert 19 <= charge["output_tokens"] < 3_000
