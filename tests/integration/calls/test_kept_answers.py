"""Idempotency-Key on calls, responses that are stored and gone on from, the cost in the answer, CORS, keep-alive."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from tests.scripted import DONE, PLAIN, Asked, Scripted, answer, end, open_stream, said, send, stream, usage
from tests.stage import Stage, Tenant, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}


async def post(stage: Stage, tenant: Tenant, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{stage.base_url}/v1/chat/completions"
    return await stage.client.post(url, json=CHAT | (body or {}), headers=tenant.headers | named)


async def replayed(stage: Stage, tenant: Tenant, body: dict[str, Any] | None = None) -> httpx.Response:
    """The answer to a repeated call, once the first one is kept."""
    for _ in range(100):
        again = await post(stage, tenant, body, idempotency_key="k")
        if again.status_code != 409 or "still running" not in again.text:
            return again
        await asyncio.sleep(0.02)
    raise AssertionError("the first call is never kept")


@pytest.mark.parametrize("is_stream", [pytest.param(False, id="whole"), pytest.param(True, id="streamed")])
async def test_a_repeated_call_is_one_charge_and_one_answer(
    stage: Stage, tenant: Tenant, backend: Scripted, is_stream: bool
) -> None:
    body = {"stream": is_stream}
    first = await post(stage, tenant, body, idempotency_key="k")
    again = await replayed(stage, tenant, body)
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert len(backend.asked) == 1
    assert len(await stage.charges(tenant, 1)) == 1


async def test_a_key_is_of_one_request_and_one_project(stage: Stage, tenant: Tenant, backend: Scripted) -> None:
    await post(stage, tenant, idempotency_key="k")
    other = await replayed(stage, tenant, {"max_tokens": 4})
    assert other.status_code == 409
    assert "another request" in other.json()["error"]["message"]
    stranger = await stage.tenant()
    theirs = await post(stage, stranger, idempotency_key="k")
    assert theirs.status_code == 200
    assert "idempotent-replayed" not in theirs.headers
    assert len(backend.asked) == 2


async def test_the_second_of_two_at_once_is_told_to_wait(stage: Stage, tenant: Tenant, backend: Scripted) -> None:
    go_on = asyncio.Event()

    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hel"))
        await go_on.wait()
        await send(writer, said("lo", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    backend.script = slow
    first = asyncio.create_task(post(stage, tenant, idempotency_key="k"))

    async def is_asked() -> bool:
        return bool(backend.asked)

    await eventually(is_asked)
    second = await post(stage, tenant, idempotency_key="k")
    assert second.status_code == 409
    assert "still running" in second.json()["error"]["message"]
    go_on.set()
    assert (await first).status_code == 200
    assert (await replayed(stage, tenant)).content == first.result().content
    assert len(await stage.charges(tenant, 1)) == 1


async def test_what_was_not_charged_may_be_repeated(stage: Stage, tenant: Tenant, backend: Scripted) -> None:
    backend.script = answer(400, b'{"error":{"message":"no","type":"x","param":null,"code":null}}')
    assert (await post(stage, tenant, idempotency_key="k")).status_code == 400
    backend.script = PLAIN
    again = await replayed(stage, tenant)
    assert again.status_code == 200
    assert "idempotent-replayed" not in again.headers
    assert (await post(stage, tenant, {"nonsense": 1}, idempotency_key="n")).status_code == 400
    assert (await post(stage, tenant, idempotency_key="n")).status_code == 200
    assert (await post(stage, tenant, idempotency_key="x" * 256)).status_code == 400


async def test_a_charged_answer_that_nobody_kept_is_told_by_its_receipt(
    stage: Stage, tenant: Tenant, backend: Scripted
) -> None:
    backend.script = stream(said("x" * 1_100_000, finish="stop"), usage(5, 2), DONE)
    first = await post(stage, tenant, idempotency_key="k")
    again = await replayed(stage, tenant)
    assert again.status_code == 409
    assert f"/v1/calls/{first.headers['x-request-id']}" in again.json()["error"]["message"]
    assert len(await stage.charges(tenant, 1)) == 1


async def test_a_charged_call_whose_process_died_is_told_by_its_receipt(
    stage: Stage, tenant: Tenant, backend: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = stage.app.parts.memory

    async def dies(*_: Any) -> None:
        """Nothing is kept."""

    monkeypatch.setattr(memory, "keep", dies)
    first = await post(stage, tenant, idempotency_key="k")
    await stage.charges(tenant, 1)
    assert "still running" in (await post(stage, tenant, idempotency_key="k")).text
    monkeypatch.setattr(memory, "_longest_call", timedelta(0))
    again = await post(stage, tenant, idempotency_key="k")
    assert again.status_code == 409
    assert f"/v1/calls/{first.headers['x-request-id']}" in again.json()["error"]["message"]
    assert len(backend.asked) == 1


async def test_the_cost_is_told_to_who_asks(stage: Stage, tenant: Tenant) -> None:
    whole = await post(stage, tenant, x_tollgate_cost="true")
    # 5 tokens at $0.15 and 2 at $0.60 a million.
    assert whole.headers["x-tollgate-cost"] == "0.000001950 USD"
    assert whole.json()["usage"]["cost"] == {"amount": "0.000001950", "currency": "USD"}
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await post(stage, tenant, asked, x_tollgate_cost="true")
    assert '"cost":{"amount":"0.000001950","currency":"USD"}' in streamed.text
    plain = await post(stage, tenant)
    assert "cost" not in plain.text
    assert "x-tollgate-cost" not in plain.headers
    assert int(plain.headers["openai-processing-ms"]) >= 0


async def test_a_silent_backend_is_bridged_by_comments(stage: Stage, tenant: Tenant, backend: Scripted) -> None:
    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.7)
        await PLAIN(asked, writer)

    backend.script = slow
    streamed = await post(stage, tenant, {"stream": True})
    assert streamed.status_code == 200
    assert streamed.text.startswith(": keep-alive\n\n")
    assert streamed.text.endswith("data: [DONE]\n\n")
    whole = await post(stage, tenant)
    assert whole.json()["choices"][0]["message"]["content"] == "hello"


async def test_an_error_after_a_comment_comes_in_the_stream(stage: Stage, tenant: Tenant, backend: Scripted) -> None:
    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.7)
        await answer(500, b"{}")(asked, writer)

    backend.script = slow
    streamed = await post(stage, tenant, {"stream": True})
    assert streamed.status_code == 200
    assert "event: error" in streamed.text
    assert "[DONE]" not in streamed.text
    await stage.verified(tenant)


async def test_pages_that_are_named_may_call(stage: Stage, tenant: Tenant) -> None:
    asked = await stage.client.options(
        f"{stage.base_url}/v1/chat/completions",
        headers={
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        },
    )
    assert asked.headers["access-control-allow-origin"] == "https://app.example"
    answered = await post(stage, tenant, origin="https://app.example")
    assert answered.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in answered.headers["access-control-expose-headers"]
    refused = await post(stage, tenant, {"nonsense": 1}, origin="https://app.example")
    assert refused.status_code == 400
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in (await post(stage, tenant, origin="https://evil.example")).headers


async def test_a_stored_response_is_gone_on_from(stage: Stage, tenant: Tenant, backend: Scripted) -> None:
    async with AsyncOpenAI(base_url=f"{stage.base_url}/v1", api_key=tenant.api_key, max_retries=0) as client:
        first = await client.responses.create(model="m", input="hi", instructions="be kind", store=True)
        assert first.to_dict()["store"] is True
        assert first.output_text == "hello"
        assert (await client.responses.retrieve(first.id)).output_text == "hello"
        second = await client.responses.create(model="m", input="more", previous_response_id=first.id, store=True)
        # The instructions were those of the first request only.
        assert backend.asked[-1].body["messages"] == [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "more"},
        ]
        listed = await client.responses.input_items.list(second.id, order="asc", limit=2)
        assert [item.type for item in listed.data] == ["message", "message"]
        assert listed.has_more
        stranger = await stage.tenant()
        with pytest.raises(NotFoundError):
            await client.with_options(api_key=stranger.api_key).responses.retrieve(first.id)
        with pytest.raises(NotFoundError):
            await client.with_options(api_key=stranger.api_key).responses.create(
                model="m", input="x", previous_response_id=first.id
            )
        await client.responses.delete(first.id)
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(first.id)
        kept_nowhere = await client.responses.create(model="m", input="hi")
        assert kept_nowhere.to_dict()["store"] is False
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(kept_nowhere.id)
    assert len(await stage.charges(tenant, 3)) == 3


async def test_pages_of_items_reach_their_end_also_where_items_have_the_same_id(stage: Stage, tenant: Tenant) -> None:
    async with AsyncOpenAI(base_url=f"{stage.base_url}/v1", api_key=tenant.api_key, max_retries=0) as client:
        item: Any = {"type": "message", "role": "user", "content": "hi", "id": "msg_1"}
        told = await client.responses.create(model="m", input=[item, item, item | {"id": None}], store=True)
        seen = []
        async for each in await client.responses.input_items.list(told.id, order="asc", limit=1):
            seen.append(each.id)
            assert len(seen) <= 3, "the same item again"
    assert len(seen) == len(set(seen)) == 3
    assert all(isinstance(id, str) for id in seen)


async def test_a_response_that_cannot_be_stored_says_so(
    stage: Stage, tenant: Tenant, backend: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A text that Postgres does not take stands for all reasons.
    backend.script = stream(said("a\0b", finish="stop"), usage(5, 2), DONE)
    async with AsyncOpenAI(base_url=f"{stage.base_url}/v1", api_key=tenant.api_key, max_retries=0) as client:
        told = await client.responses.create(model="m", input="hi", store=True)
    assert told.output_text == "a\0b"
    assert told.to_dict()["store"] is False
    assert len(await stage.charges(tenant, 1)) == 1


async def test_a_repeated_message_has_the_id_of_the_first(stage: Stage, tenant: Tenant) -> None:
    headers = tenant.headers | {"idempotency-key": "k"}
    told: list[str | None] = []
    while len(told) < 2:
        reply = await stage.client.post(f"{stage.base_url}/v1/messages", json=CHAT, headers=headers)
        if reply.status_code == 200:
            told.append(reply.headers.get("request-id"))
        await asyncio.sleep(0.02)
    assert told[0]
    assert told[1] == told[0]
