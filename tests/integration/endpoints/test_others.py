"""Moderations, charged by tokens, and images, charged one by one, as the official client asks for them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import BadRequestError, InternalServerError

from tests.integration.endpoints.conftest import Shop
from tests.scripted import DONE, Asked, answer, chunk, said, stream
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

JUDGED = {"id": "modr-1", "model": "x", "results": [{"flagged": False, "categories": {}, "category_scores": {}}]}
PAINTED = {"created": 5, "data": [{"b64_json": "AAAA", "url": None}, {"b64_json": "BBBB", "revised_prompt": "a cat"}]}


async def test_a_text_is_judged(shop: Shop) -> None:
    shop.backend.script = answer(200, json.dumps({**JUDGED, "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode())
    judged = await shop.client.moderations.create(model="openai", input="hello there")
    assert (judged.model, judged.results[0].flagged) == ("openai", False)
    (asked,) = shop.backend.asked
    assert (asked.path, asked.body) == ("/v1/moderations", {"input": "hello there", "model": "x"})
    charge = await shop.charge()
    assert (charge["input_tokens"], charge["usage_source"]) == (8, "backend")


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        pytest.param("hello there", 3, id="a text"),
        pytest.param(["hello there", "bye"], 4, id="texts"),
        pytest.param([{"type": "text", "text": "hello there"}], 3, id="parts"),
        pytest.param(
            [
                {"type": "text", "text": "hello there"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "image_url", "image_url": {"url": "https://img.example/a.png"}},
            ],
            3,
            id="parts with pictures",
        ),
    ],
)
async def test_without_usage_our_own_count_is_charged(shop: Shop, value: Any, tokens: int) -> None:
    shop.backend.script = answer(200, json.dumps(JUDGED).encode())
    await shop.client.moderations.create(model="openai", input=value)
    charge = await shop.charge()
    assert (charge["input_tokens"], charge["usage_source"]) == (tokens, "estimate")


async def test_only_other_servers_judge(shop: Shop) -> None:
    for kind in ("vllm", "sglang", "llamacpp", "ollama", "tgi"):
        with pytest.raises(BadRequestError) as caught:
            await shop.client.moderations.create(model=kind, input="hello")
        assert caught.value.code == "unsupported_endpoint"
    assert not shop.backend.asked


async def test_a_server_without_the_path_is_told_as_such(shop: Shop) -> None:
    shop.backend.script = answer(404, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}')
    with pytest.raises(BadRequestError) as caught:
        await shop.client.moderations.create(model="openai", input="hello")
    assert caught.value.code == "unsupported_endpoint"
    await shop.nothing_charged()


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        pytest.param(None, (0, 0), id="no usage"),
        pytest.param({"input_tokens": 9, "output_tokens": 1_056, "total_tokens": 1_065}, (9, 1_056), id="tokens"),
    ],
)
async def test_images_are_charged_one_by_one(shop: Shop, usage: Any, tokens: tuple[int, int]) -> None:
    shop.backend.script = answer(200, json.dumps(PAINTED | ({"usage": usage} if usage else {})).encode())
    painted = await shop.client.images.generate(model="openai", prompt="a cat", n=3, size="512x512")
    assert painted.data is not None
    assert [(image.b64_json, image.url) for image in painted.data] == [("AAAA", None), ("BBBB", None)]
    assert (painted.usage is None) == (usage is None)
    (asked,) = shop.backend.asked
    assert asked.path == "/v1/images/generations"
    assert asked.body == {"prompt": "a cat", "n": 3, "size": "512x512", "response_format": "b64_json", "model": "x"}
    charge = await shop.charge()
    # Two came, of three that were asked for and held.
    assert (charge["images"], charge["input_tokens"], charge["output_tokens"]) == (2, *tokens)
    assert (charge["usage_source"], charge["flags"]) == ("backend", [])


async def test_more_images_than_asked_for_are_not_charged(shop: Shop) -> None:
    shop.backend.script = answer(200, json.dumps(PAINTED).encode())
    await shop.client.images.generate(model="openai", prompt="a cat")
    charge = await shop.charge()
    assert (charge["images"], charge["flags"]) == (1, ["above_bound"])
    assert charge["amount"] == charge["hold"] | {"amount": "0.020000000"}


async def test_an_address_of_the_backend_is_no_image(shop: Shop) -> None:
    shop.backend.script = answer(200, json.dumps({"data": [{"url": f"{shop.backend.url}/a.png"}]}).encode())
    with pytest.raises(InternalServerError) as caught:
        await shop.client.images.generate(model="openai", prompt="a cat")
    assert shop.backend.url not in str(caught.value)
    await shop.nothing_charged()


async def test_who_leaves_pays_for_the_images_that_are_made(shop: Shop) -> None:
    entered = asyncio.Event()

    async def paints(asked: Asked, writer: asyncio.StreamWriter) -> None:
        entered.set()
        await asyncio.sleep(60)

    shop.backend.script = paints
    call = asyncio.create_task(shop.client.images.generate(model="openai", prompt="a cat", n=2))
    await entered.wait()
    call.cancel()
    charge = await shop.charge()
    assert (charge["ending"], charge["images"]) == ("client_gone", 2)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        pytest.param({"n": 11}, "n", id="too many"),
        pytest.param({"n": 0}, "n", id="none"),
        pytest.param({"size": "9999x9999"}, "size", id="too large"),
        pytest.param({"size": "1024x"}, "size", id="no size"),
        pytest.param({"response_format": "url"}, "response_format", id="an address"),
        pytest.param({"stream": True}, "stream", id="a stream"),
        pytest.param({"prompt": "x" * 32_001}, "prompt", id="a long prompt"),
        pytest.param({"num_inference_steps": 10_000}, "num_inference_steps", id="unknown"),
    ],
)
async def test_wrong_parameters_of_images(shop: Shop, more: dict[str, Any], param: str) -> None:
    reply = await shop.post("/v1/images/generations", json={"model": "openai", "prompt": "a cat", **more})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not shop.backend.asked


async def test_a_text_with_nul_in_a_backends_usage_makes_no_call_free(shop: Shop) -> None:
    numbers = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "note": "a\0b"}
    shop.backend.script = stream(said("ab", finish="stop"), chunk(id="c", choices=[], usage=numbers), DONE)
    body = {"model": "openai", "messages": [{"role": "user", "content": "hi"}]}
    assert (await shop.post("/v1/chat/completions", json=body)).status_code == 200

    async def is_booked() -> bool:
        return len(await shop.stage.listed(shop.tenant)) == 1

    await eventually(is_booked)
