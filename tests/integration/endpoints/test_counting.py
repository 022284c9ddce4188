"""Counting before a call: exact where a backend counts, an estimate that says so elsewhere, and never a charge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from gateway.api.counting import MOST_AT_ONCE, MOST_OF_A_PROJECT
from gateway.backends.tokenizing import TOKENIZING
from gateway.embedded.llamacpp import LlamaCpp
from tests.integration.endpoints.conftest import Shop
from tests.scripted import Asked, answer, scripted_backend
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

MESSAGES = [{"role": "user", "content": "hello there"}]
TOOL = {"name": "f", "description": "it", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
FAILS = answer(500, b'{"error":{"message":"no","type":"server_error","code":500}}')


def says(body: Any) -> Any:
    return answer(200, json.dumps(body).encode())


@pytest.fixture
async def real(shop: Shop, llamacpp: LlamaCpp) -> Shop:
    """The shop with the model `tiny`, on a real llama.cpp."""
    models = await shop.stage.operate("GET", "/models")
    if "tiny" not in [model["id"] for model in models["data"]]:
        await shop.stage.backend(llamacpp.url)
    return shop


async def test_a_count_is_what_the_call_is_charged_for(real: Shop) -> None:
    tools = [{"type": "function", **TOOL, "strict": False}]
    counted = await real.client.responses.input_tokens.count(model="tiny", input="hello there", tools=tools)  # type: ignore[arg-type]
    called = await real.client.responses.create(model="tiny", input="hello there", tools=tools, max_output_tokens=2)  # type: ignore[arg-type]
    assert called.usage is not None
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == called.usage.input_tokens == (await real.charge())["input_tokens"]


async def test_a_message_is_counted(real: Shop) -> None:
    reply = await real.post(
        "/v1/messages/count_tokens", json={"model": "tiny", "messages": MESSAGES, "system": "Be kind."}
    )
    call = {"model": "tiny", "messages": MESSAGES, "system": "Be kind.", "max_tokens": 2}
    usage = (await real.post("/v1/messages", json=call)).json()["usage"]
    assert reply.json() == {
        "input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"],
        "is_estimate": False,
    }


async def test_the_count_of_a_message_has_the_request_id_that_its_sdks_read(shop: Shop) -> None:
    counted = await shop.post("/v1/messages/count_tokens", json={"model": "ollama", "messages": MESSAGES})
    assert counted.status_code == 200
    assert counted.headers["request-id"] == counted.headers["x-request-id"]
    refused = await shop.post("/v1/messages/count_tokens", json={"model": "ollama"})
    assert refused.headers.get_list("request-id") == [refused.json()["request_id"]]
    of_openai = await shop.post("/v1/responses/input_tokens", json={"model": "ollama", "input": "hi"})
    assert "request-id" not in of_openai.headers


async def test_an_alias_counts_as_the_model_behind_it(real: Shop) -> None:
    body = {"id": "chat", "targets": [{"model": "tiny", "weight": 1}], "prices_of": "tiny"}
    await real.stage.operate("POST", "/aliases", json=body)

    async def is_counted() -> bool:
        reply = await real.post("/v1/tokenize", json={"model": "chat", "prompt": "hello there"})
        return reply.status_code == 200 and not reply.json()["is_estimate"]

    await eventually(is_counted)


async def test_a_text_that_is_counted_stays_in_its_region(shop: Shop) -> None:
    """What a call may not be sent to, its text may not be sent to either."""
    stage = shop.stage
    async with scripted_backend(says({"tokens": [5, 6], "count": 2})) as european:
        body = {"name": "eu", "kind": "vllm", "url": european.url, "region": "eu"}
        await stage.operate("POST", "/backends", json=body)
        served = [{"backend": name, "backend_model": "x"} for name in ("vllm-vllm", "eu")]
        await stage.operate("POST", "/models", json={"id": "both", "context_length": 4096, "deployments": served})
        await stage.price("both")
        path = f"/organizations/{shop.tenant.organization_id}/routing"
        await stage.operate("POST", path, json={"regions": ["eu"]})
        shop.backend.script = says({"tokens": [5], "count": 1})

        async def is_bound() -> bool:
            rules = stage.app.parts.catalog.current
            return "both" in rules.models and UUID(shop.tenant.organization_id) in rules.routing

        await eventually(is_bound)
        told = await shop.post("/v1/tokenize", json={"model": "both", "prompt": "secret"})
        assert (told.status_code, told.json()["count"]) == (200, 2), told.text
        counted = await shop.post("/v1/messages/count_tokens", json={"model": "both", "messages": MESSAGES})
        assert counted.json() == {"input_tokens": 2, "is_estimate": False}
        assert not shop.backend.asked


async def test_tokens_become_text_again(real: Shop) -> None:
    told = (await real.post("/v1/tokenize", json={"model": "tiny", "prompt": "hello there"})).json()
    assert (told["count"], told["max_model_len"], told["is_estimate"]) == (len(told["tokens"]), 4096, False)
    text = await real.post("/v1/detokenize", json={"model": "tiny", "tokens": told["tokens"]})
    assert text.json() == {"prompt": "hello there"}
    chat = (await real.post("/v1/tokenize", json={"model": "tiny", "messages": MESSAGES})).json()
    counted = await real.client.responses.input_tokens.count(model="tiny", input="hello there")
    assert chat["count"] == len(chat["tokens"]) == counted.input_tokens
    unknown = await real.post("/v1/detokenize", json={"model": "tiny", "tokens": [99_999_999]})
    assert unknown.status_code == 400
    await real.nothing_charged()


@pytest.mark.parametrize(
    ("kind", "reply", "path", "body"),
    [
        pytest.param(
            "vllm",
            {"count": 14, "max_model_len": 99, "tokens": [1] * 14},
            "/tokenize",
            {"model": "x", "messages": MESSAGES, "add_generation_prompt": True},
            id="vLLM",
        ),
        pytest.param(
            "llamacpp",
            {"object": "response.input_tokens", "input_tokens": 14},
            "/v1/chat/completions/input_tokens",
            {"model": "x", "messages": MESSAGES},
            id="llama.cpp",
        ),
        pytest.param(
            "tgi",
            {"tokenize_response": [{"id": 1, "text": "a", "start": 0, "stop": 1}] * 14, "templated_text": "x"},
            "/chat_tokenize",
            {"model": "x", "messages": MESSAGES},
            id="TGI",
        ),
    ],
)
async def test_each_engine_is_asked_in_its_own_way(shop: Shop, kind: str, reply: Any, path: str, body: Any) -> None:
    shop.backend.script = says(reply)
    counted = await shop.post("/v1/messages/count_tokens", json={"model": kind, "messages": MESSAGES})
    assert counted.json() == {"input_tokens": 14, "is_estimate": False}
    (asked,) = shop.backend.asked
    assert (asked.path, asked.body) == (path, body)
    assert shop.tenant.api_key not in str(asked.headers)


@pytest.mark.parametrize(
    ("kind", "path", "script"),
    [
        pytest.param("ollama", "", FAILS, id="an engine without a counter"),
        pytest.param("sglang", "", FAILS, id="one that counts texts alone"),
        pytest.param("vllm", "/tokenize", FAILS, id="one that fails"),
        pytest.param("vllm", "/tokenize", says({"count": -3}), id="one that tells nonsense"),
        pytest.param("vllm", "/tokenize", answer(200, b"<html>"), id="one that speaks no JSON"),
    ],
)
async def test_elsewhere_it_is_an_estimate_and_says_so(shop: Shop, kind: str, path: str, script: Any) -> None:
    shop.backend.script = script
    counted = await shop.client.responses.input_tokens.count(model=kind, input="hello there", instructions="Be kind.")
    # Two messages of three and two tokens, five for the template of each and of the answer.
    assert counted.model_dump()["is_estimate"] is True
    assert counted.input_tokens == 5 + 3 * 5
    assert {asked.path for asked in shop.backend.asked} == ({path} if path else set())
    await shop.nothing_charged()


@pytest.mark.parametrize(
    ("kind", "reply", "path"),
    [
        pytest.param("sglang", {"tokens": [5, 6], "count": 2, "max_model_len": 9}, "/v1/tokenize", id="SGLang"),
        pytest.param("tgi", [{"id": 5, "text": "a"}, {"id": 6, "text": "b"}], "/tokenize", id="TGI"),
        pytest.param("vllm", {"tokens": [5, 6], "count": 2}, "/tokenize", id="vLLM"),
        pytest.param("llamacpp", {"tokens": [5, 6]}, "/tokenize", id="llama.cpp"),
    ],
)
async def test_a_text_is_told_in_tokens(shop: Shop, kind: str, reply: Any, path: str) -> None:
    shop.backend.script = says(reply)
    told = await shop.post("/v1/tokenize", json={"model": kind, "prompt": "hello"})
    assert told.json() == {"count": 2, "max_model_len": 4096, "tokens": [5, 6], "is_estimate": False}
    assert [asked.path for asked in shop.backend.asked] == [path]


async def test_without_a_backend_that_tells_there_is_a_number_only(shop: Shop) -> None:
    told = await shop.post("/v1/tokenize", json={"model": "openai", "prompt": "hello there"})
    assert told.json() == {"count": 3, "max_model_len": 4096, "tokens": None, "is_estimate": True}
    text = await shop.post("/v1/detokenize", json={"model": "openai", "tokens": [1]})
    assert (text.status_code, text.json()["error"]["code"]) == (400, "unsupported_endpoint")
    assert not shop.backend.asked


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/tokenize", {"model": "vllm"}, "prompt"),
        ("/v1/tokenize", {"model": "vllm", "prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/v1/tokenize", {"model": "vllm", "prompt": "a", "api_base": "http://x"}, "api_base"),
        ("/v1/tokenize", {"prompt": "a"}, "model"),
        ("/v1/tokenize", {"model": "vllm", "messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ("/v1/detokenize", {"model": "vllm"}, "tokens"),
        ("/v1/detokenize", {"model": "vllm", "tokens": [-1]}, "tokens"),
        ("/v1/detokenize", {"model": "vllm", "tokens": ["a"]}, "tokens"),
        ("/v1/responses/input_tokens", {"model": "vllm"}, "input"),
        (
            "/v1/responses/input_tokens",
            {"model": "vllm", "input": "a", "previous_response_id": "r"},
            "previous_response_id",
        ),
        ("/v1/responses/input_tokens", {"model": "vllm", "input": "a", "conversation": "c"}, "conversation"),
    ],
)
async def test_wrong_parameters(shop: Shop, path: str, body: dict[str, Any], param: str) -> None:
    reply = await shop.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not shop.backend.asked


async def test_only_so_many_at_once(shop: Shop) -> None:
    gate, other = asyncio.Event(), await shop.stage.tenant()

    async def waits(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await says({"count": 14})(asked, writer)

    shop.backend.script = waits
    body = {"model": "vllm", "messages": MESSAGES}
    counts = [asyncio.create_task(shop.post("/v1/messages/count_tokens", json=body)) for _ in range(9)]
    done: set[asyncio.Task[Any]] = set()
    while len(done) < 5:
        done, _ = await asyncio.wait(counts, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.01)
    for count in done:
        assert count.result().status_code == 429
        assert count.result().json()["error"]["type"] == "rate_limit_error"
        assert count.result().headers["retry-after"] == "1"
    # Others are not kept from it.
    theirs = asyncio.create_task(shop.post("/v1/messages/count_tokens", json=body, headers=other.headers))
    await asyncio.sleep(0.05)
    gate.set()
    assert (await theirs).status_code == 200
    assert sorted(reply.status_code for reply in await asyncio.gather(*counts)) == [200] * 4 + [429] * 5


async def test_bodies_that_come_slowly_keep_nobody_from_counting(shop: Shop) -> None:
    shop.backend.script = says({"count": 14})
    gate, begun = asyncio.Event(), 0
    whole = json.dumps({"model": "vllm", "messages": MESSAGES}).encode()

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal begun
        yield whole[:9]
        begun += 1
        await gate.wait()
        yield whole[9:]

    async def all_are_begun() -> bool:
        return begun == MOST_AT_ONCE

    path, counts = "/v1/messages/count_tokens", []
    for _ in range(MOST_AT_ONCE // MOST_OF_A_PROJECT):
        headers = (await shop.stage.tenant()).headers | {"content-type": "application/json"}
        for _ in range(MOST_OF_A_PROJECT):
            counts.append(asyncio.create_task(shop.post(path, content=slowly(), headers=headers)))
    await eventually(all_are_begun)
    await asyncio.sleep(0.2)
    counted = await shop.post(path, content=whole)
    gate.set()
    assert {reply.status_code for reply in await asyncio.gather(*counts)} == {200}
    assert counted.status_code == 200, counted.text


async def test_a_body_as_large_as_that_of_a_call(shop: Shop) -> None:
    shop.backend.script = says({"count": 14})
    big = [{"role": "user", "content": "x" * 3_000_000}]
    counted = await shop.post("/v1/messages/count_tokens", json={"model": "vllm", "messages": big})
    assert counted.status_code == 200


def test_no_path_is_one_that_stops_an_engine() -> None:
    paths = set().union(*(engine.paths for engine in TOKENIZING.values()))
    assert paths == {
        "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/chat_tokenize", "/apply-template",
        "/v1/chat/completions/input_tokens",
    }  # fmt: skip
