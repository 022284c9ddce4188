"""Attacks C and E: on where calls go and what they cost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from models.money import parse_amount
from tests.attacks.conftest import Scene
from tests.scripted import DONE, answer, chunk, said, scripted_backend, stream, usage
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.mark.parametrize(
    "name",
    ["api_base", "base_url", "api_key", "custom_llm_provider", "extra_headers", "headers", "timeout", "extra_body"],
)
async def test_c01_no_client_chooses_a_destination(scene: Scene, name: str) -> None:
    asked = len(scene.backend.asked)
    async with scripted_backend() as canary:
        reply = await scene.chat(None, **{name: canary.url})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == name
        assert canary.connections == 0
    assert len(scene.backend.asked) == asked


async def test_c02_no_backend_fetches_for_a_client(scene: Scene) -> None:
    async with scripted_backend() as canary:
        for url in (canary.url, "http://169.254.169.254/latest", "file:///etc/passwd", "//x", "ftp://x", " data:x"):
            part = {"type": "image_url", "image_url": {"url": url}}
            reply = await scene.chat(messages=[{"role": "user", "content": [part]}])
            assert reply.status_code == 400
        assert canary.connections == 0


async def test_c04_headers_stay_on_their_side(scene: Scene) -> None:
    scene.backend.script = stream(
        said("x", finish="stop"), usage(3, 1), DONE, headers=("set-cookie: a=b", "x-internal: 1", "server: secret")
    )
    headers = {
        **scene.alice.headers,
        "x-conversation-id": "steal",
        "x-data-parallel-rank": "3",
        "x-forwarded-for": "1.2.3.4",
        "cookie": "a=b",
        "x-request-id": "mine",
    }
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    reply = await scene.post("/v1/chat/completions", json=body, headers=headers)
    assert reply.status_code == 200
    assert not {"set-cookie", "x-internal", "server"} & set(reply.headers)
    assert reply.headers["x-request-id"] != "mine"
    upstream = scene.backend.asked[-1].headers
    assert set(upstream) == {"host", "content-type", "accept", "connection", "content-length"}
    assert scene.alice.api_key not in json.dumps(upstream)


@pytest.mark.parametrize(
    "text",
    ["connect to {url} failed", "bad key s3cr3t at 10.0.0.7", "Traceback (most recent call last)"],
)
async def test_c05_backends_do_not_tell_on_themselves(scene: Scene, text: str) -> None:
    message = text.format(url=scene.backend.url)
    for status in (400, 500):
        scene.backend.script = answer(status, json.dumps({"error": {"message": message}}).encode())
        reply = await scene.chat()
        assert reply.status_code in (400, 502)
        assert message not in reply.text
        assert scene.backend.url.removeprefix("http://") not in reply.text


async def test_the_request_that_goes_upstream_is_ours(scene: Scene) -> None:
    await scene.chat(user="ann", store=False, metadata={"a": "b"})
    asked = scene.backend.asked[-1]
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    }


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        pytest.param(-100, -100, id="negative"),
        pytest.param(10**9, 10**9, id="huge"),
        pytest.param("many", None, id="no numbers"),
        pytest.param(0.5, 1e400, id="fractions and infinity"),
        pytest.param(None, None, id="missing"),
    ],
)
async def test_e03_wrong_usage_never_costs_more_than_the_hold(scene: Scene, prompt: Any, completion: Any) -> None:
    tenant = await scene.stage.tenant()
    last = b"" if prompt is None else usage(prompt, completion)
    scene.backend.script = stream(said("hello there", finish="stop"), last, DONE)
    assert (await scene.chat(tenant)).status_code == 200
    (charge,) = await scene.stage.charges(tenant, 1)
    amount, hold = (parse_amount(charge[name]["amount"], "USD") for name in ("amount", "hold"))
    assert 0 < amount <= hold
    balance = await scene.stage.balance(tenant)
    assert parse_amount(balance["balance"]["amount"], "USD") == parse_amount("5", "USD") - amount
    assert parse_amount(balance["held"]["amount"], "USD") == 0


async def test_e01_exactly_as_many_calls_as_the_balance_covers(scene: Scene) -> None:
    rich = await scene.stage.tenant()
    await scene.chat(rich)
    (charge,) = await scene.stage.charges(rich, 1)
    hold = parse_amount(charge["hold"]["amount"], "USD")
    poor = await scene.stage.tenant(credit=f"{7 * hold / 10**9:.9f}")
    gate = asyncio.Event()

    async def waits(asked: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await stream(said("x", finish="stop"), usage(5, 2), DONE)(asked, writer)

    scene.backend.script = waits
    calls = [asyncio.create_task(scene.chat(poor)) for _ in range(70)]

    async def refused() -> bool:
        return sum(call.done() for call in calls) == 63

    await eventually(refused)
    gate.set()
    statuses = [reply.status_code for reply in await asyncio.gather(*calls)]
    assert (statuses.count(200), statuses.count(402)) == (7, 63)
    await scene.stage.charges(poor, 7)
    assert parse_amount((await scene.stage.balance(poor))["balance"]["amount"], "USD") >= 0


async def test_e05_the_price_of_admission_applies(scene: Scene) -> None:
    tenant = await scene.stage.tenant()
    gate, entered = asyncio.Event(), asyncio.Event()

    async def waits(asked: Any, writer: asyncio.StreamWriter) -> None:
        entered.set()
        await gate.wait()
        await stream(said("x", finish="stop"), usage(5, 2), DONE)(asked, writer)

    scene.backend.script = waits
    call = asyncio.create_task(scene.chat(tenant))
    await entered.wait()
    price = {"book": "default", "model": "m", "meter": "output", "currency": "USD", "price_per_million": "99"}
    await scene.stage.operate("POST", "/prices", json=price)
    gate.set()
    assert (await call).status_code == 200
    (charge,) = await scene.stage.charges(tenant, 1)
    assert parse_amount(charge["amount"]["amount"], "USD") == 5 * 150 + 2 * 600
    price["price_per_million"] = "0.60"
    await scene.stage.operate("POST", "/prices", json=price)


async def test_b01_to_b05_nobody_sees_anothers_calls(scene: Scene) -> None:
    tenant = await scene.stage.tenant()
    reply = await scene.chat(tenant)
    await scene.stage.charges(tenant, 1)
    url, client = scene.stage.base_url, scene.stage.client
    call = reply.headers["x-request-id"]
    assert (await client.get(f"{url}/v1/calls/{call}", headers=tenant.headers)).status_code == 200
    for stranger in (scene.bob.headers, scene.bob.admin_headers):
        for method in ("GET", "PATCH", "DELETE"):
            answer = await client.request(method, f"{url}/v1/calls/{call}", headers=stranger)
            assert answer.status_code in (404, 405)
        listed = await client.get(f"{url}/v1/billing/charges", headers=stranger)
        assert call not in listed.text
        assert call not in (await client.get(f"{url}/v1/billing/charges.csv", headers=stranger)).text


async def test_an_error_before_the_first_byte_costs_nothing(scene: Scene) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    scene.backend.script = stream(chunk(error={"message": "out of memory", "code": 500}))
    reply = await scene.chat(stream=True)
    assert reply.status_code == 502
    await scene.untouched(asked + 1, balance)
