"""Attacks D: on parsing and on resources. The right 4xx in the right shape; nothing held, nothing reached."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from models.money import parse_amount
from tests.attacks.conftest import Scene
from tests.scripted import Asked, open_stream, said, send
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

WRONG_NUMBERS: list[Any] = [-1, 0, 1.5, "1", [], {}, True]
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def body(**more: Any) -> bytes:
    return json.dumps({**CHAT, **more}).encode()


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        pytest.param(b"", {}, 400, id="no body"),
        pytest.param(b"null", {}, 400, id="null"),
        pytest.param(b"x" * 1_500_000, {}, 413, id="D01 too large"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, {}, 400, id="D03 100,000 nested arrays"),
        pytest.param(b'{"model":"m","messages":' + b"[" * 100_000, {}, 400, id="D03 nested in a field"),
        pytest.param(b'{"model":"m","seed":' + b"9" * 100_000 + b"}", {}, 400, id="D04 100,000 digits"),
        pytest.param(body()[:-1] + b',"max_tokens":NaN}', {}, 400, id="D05 NaN"),
        pytest.param(body()[:-1] + b',"max_tokens":Infinity}', {}, 400, id="D05 infinity"),
        *(
            pytest.param(body(**{name: value}), {}, 400, id=f"D05 {name}={value}")
            for name in ("max_tokens", "max_completion_tokens", "n")
            for value in WRONG_NUMBERS
        ),
        pytest.param(body(best_of=20), {}, 400, id="D06 best_of"),
        pytest.param(body(use_beam_search=True), {}, 400, id="D06 beam search"),
        pytest.param(body(n=100), {}, 400, id="D06 n=100"),
        pytest.param(b"\x1f\x8b" + b"0" * 50, {"content-encoding": "gzip"}, 415, id="D07 gzip"),
        pytest.param(b"x", {"content-encoding": "br"}, 415, id="D07 br"),
        pytest.param(body().replace(b"hi", b"\xff\xfe"), {}, 400, id="D08 invalid UTF-8"),
        pytest.param(body().replace(b"hi", b"\\ud800"), {}, 400, id="D08 a lone surrogate"),
        pytest.param(body(user="a\0b"), {}, 400, id="D08 NUL, which no receipt can hold"),
        pytest.param(b"\xef\xbb\xbf" + body(), {}, 400, id="D08 a byte order mark"),
        pytest.param(body(), {"content-type": "text/plain"}, 415, id="D09 text"),
        pytest.param(
            body(), {"content-type": "multipart/form-data; boundary=" + "-" * 20_000}, 415, id="D09 a long boundary"
        ),
        pytest.param(body(), {"x-big": "x" * 40_000}, 431, id="D10 a large header"),
        pytest.param(body(), {f"x-{number}": "1" for number in range(500)}, 431, id="D10 many headers"),
        pytest.param(body(stop=["x"] * 10_000), {}, 400, id="D16 stops"),
        pytest.param(body(logit_bias={str(n): 1 for n in range(20_000)}), {}, 400, id="D16 biases"),
        pytest.param(body(tools=[{"type": "function", "function": {"name": "f"}}] * 500), {}, 400, id="D16 tools"),
        pytest.param(body(model="no-such-model"), {}, 404, id="C03 an unknown model"),
        pytest.param(body(model="../../x"), {}, 404, id="C03 a path"),
        pytest.param(body(model="http://127.0.0.1/"), {}, 404, id="C03 an address"),
        pytest.param(body(model="m\r\nX: y"), {}, 404, id="C03 a header"),
        pytest.param(body(model="x" * 10_000), {}, 400, id="C03 10 kB"),
        pytest.param(body(model="모델"), {}, 404, id="C03 Unicode"),
        *(
            pytest.param(body(**{name: value}), {}, 400, id=f"wrong type of {name}")
            for name, value in {
                "messages": "hi", "stream": "yes", "temperature": "hot", "top_p": 2, "stop": 3, "tools": {},
                "tool_choice": 1, "response_format": "json", "user": 1, "seed": "x", "logprobs": 1,
            }.items()
        ),
    ],
)  # fmt: skip
async def test_bad_input_is_refused(scene: Scene, content: bytes, headers: dict[str, str], status: int) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    sent = {**scene.alice.headers, "content-type": "application/json", **headers}
    answer = await scene.post("/v1/chat/completions", content=content, headers=sent)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    await scene.untouched(asked, balance)


async def test_d02_a_chunked_body_without_end(scene: Scene) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 8_000_000:
            sent += 65_536
            yield b"x" * 65_536

    headers = {**scene.alice.headers, "content-type": "application/json"}
    answer = await scene.post("/v1/chat/completions", content=endless(), headers=headers)
    assert answer.status_code == 413


async def raw(scene: Scene, *pieces: bytes) -> bytes:
    host, port = scene.stage.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
        with suppress(ConnectionError):
            await writer.drain()
    answer = await asyncio.wait_for(reader.read(65_536), 15)
    writer.close()
    return answer


async def test_d12_a_body_that_does_not_arrive(scene: Scene) -> None:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
        f"authorization: Bearer {scene.alice.api_key}\r\n\r\n"
    )
    assert (await raw(scene, head.encode(), b"{")).startswith(b"HTTP/1.1 408")


async def test_what_is_no_http_gets_an_answer_in_json(scene: Scene) -> None:
    answer = await raw(scene, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error"' in answer


async def test_d10_a_header_of_a_megabyte(scene: Scene) -> None:
    with_start = b"POST /v1/chat/completions HTTP/1.1\r\nx: "
    answer = await raw(scene, with_start, *[b"x" * 65_536] * 4)
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions/", "/v1/chat/completions/../models", "/V1/chat/completions", "/v1/unknown", "/slots",
     "/metrics", "/docs", "/openapi.json", "/debug", "/v1/fine_tuning/jobs", "/.env"],
)  # fmt: skip
async def test_unknown_routes_are_never_passed_through(scene: Scene, path: str) -> None:
    asked = len(scene.backend.asked)
    for method in ("GET", "POST"):
        answer = await scene.stage.client.request(
            method, scene.stage.base_url + path, content=body(), headers=scene.alice.headers
        )
        assert answer.status_code in (401, 404, 405)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]
    assert len(scene.backend.asked) == asked


async def test_d13_a_client_that_never_reads(scene: Scene) -> None:
    tenant = await scene.stage.tenant(credit="5")
    produced = 0

    async def endless(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal produced
        await open_stream(writer)
        while True:
            await send(writer, said("x" * 60_000))
            produced += 60_000

    scene.backend.script = endless
    settings = scene.stage.app.running.settings
    scene.stage.app.running.settings = settings.model_copy(update={"write_timeout_seconds": 0.5})
    closed = scene.backend.closed
    host, port = scene.stage.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    content = body(stream=True, max_tokens=50)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nauthorization: Bearer {tenant.api_key}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    await writer.drain()
    try:
        (charge,) = await scene.stage.charges(tenant, 1)
    finally:
        scene.stage.app.running.settings = settings
        writer.close()
    assert charge["ending"] == "client_gone"
    assert charge["output_tokens"] > 0

    async def cancelled() -> bool:
        return scene.backend.closed > closed

    await eventually(cancelled)
    assert produced < 64_000_000, "the backend was held back"
    assert parse_amount((await scene.stage.balance(tenant))["held"]["amount"], "USD") == 0
    assert reader is not None


async def opened(scene: Scene, count: int, start: bytes) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = scene.stage.base_url.removeprefix("http://").split(":")
    pairs = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(count)))
    for _, writer in pairs:
        writer.write(start)
    return list(pairs)


async def test_d11_heads_that_do_not_arrive(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.HEADER_SECONDS", 1.0)
    pairs = await opened(scene, 500, b"POST /v1/chat/completions HTTP/1.1\r\nx-slow: ")
    assert (await scene.chat()).status_code == 200
    for reader, writer in pairs:
        answer = await asyncio.wait_for(reader.read(), 15)
        assert answer.startswith(b"HTTP/1.1 408")
        writer.close()


async def test_d14_connections_above_the_cap(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await scene.chat()).status_code == 200
    monkeypatch.setattr("gateway.server.MAX_CONNECTIONS", 100)
    pairs = await opened(scene, 200, b"")
    # Connections that are open already are served on, whoever knocks.
    assert (await scene.chat()).status_code == 200
    closed = 0
    for reader, writer in pairs:
        with suppress(TimeoutError, ConnectionError):
            closed += await asyncio.wait_for(reader.read(), 0.01) == b""
        writer.close()
    assert closed >= 90
