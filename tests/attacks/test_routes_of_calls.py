"""Attacks B, C and D on the routes that say where calls go: aliases, maintenance, routing, markups, discovery."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.attacks.conftest import Scene
from tests.scripted import Asked, answer, scripted_backend

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

UNKNOWN = UUID(int=7)
ROUTES = [
    ("GET", "/aliases"),
    ("POST", "/aliases"),
    ("GET", "/aliases/chat"),
    ("POST", "/aliases/chat"),
    ("GET", "/maintenance"),
    ("POST", "/maintenance"),
    ("POST", f"/maintenance/{UNKNOWN}/cancel"),
    ("GET", f"/organizations/{UNKNOWN}/routing"),
    ("POST", f"/organizations/{UNKNOWN}/routing"),
    ("POST", "/prices/markup"),
    ("GET", "/backends/openai-m/discovery"),
    ("POST", "/backends/openai-m/models"),
]
NAMES = [f"{method} {path}".replace(str(UNKNOWN), "{id}") for method, path in ROUTES]


async def ask(scene: Scene, method: str, path: str, headers: dict[str, str], **options: Any) -> httpx.Response:
    url = f"{scene.stage.base_url}/operator/v1{path}"
    return await scene.stage.client.request(method, url, headers=headers, **options)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=NAMES)
async def test_b08_none_but_the_operator_says_where_calls_go(scene: Scene, method: str, path: str) -> None:
    asked = len(scene.backend.asked)
    body: dict[str, Any] = {} if method == "GET" else {"json": {}}
    for headers in ({}, scene.alice.headers, scene.alice.admin_headers, {"authorization": "Bearer x' OR 1=1--"}):
        reply = await ask(scene, method, path, headers, **body)
        assert reply.status_code in (401, 403)
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert len(scene.backend.asked) == asked


BODIES: dict[str, dict[str, Any]] = {
    "/aliases": {"id": "x", "targets": [{"model": "m"}]},
    "/aliases/chat": {"disabled": True},
    "/maintenance": {"backend": "openai-m", "starts_at": "2030-01-01T00:00:00Z", "ends_at": "2030-01-01T01:00:00Z"},
    f"/organizations/{UNKNOWN}/routing": {"pool": "x"},
    "/prices/markup": {"model": "m", "markup_ppm": 0, "costs": {"input": "1"}},
    "/backends/openai-m/models": {"models": ["m"]},
}


@pytest.mark.parametrize("path", BODIES)
async def test_b06_fields_that_are_not_known_are_refused(scene: Scene, path: str) -> None:
    body = BODIES[path] | {"balance": "1000"}
    reply = await ask(scene, "POST", path, scene.stage.operator_headers, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "balance")


@pytest.mark.parametrize("name", ["..%2f..%2fx", "%00", "a%0d%0aX:y", "x" * 10_000, "{{7*7}}", "'%20OR%201=1--"])
async def test_c03_odd_names_are_not_found(scene: Scene, name: str) -> None:
    for path in (f"/aliases/{name}", f"/backends/{name}/discovery", f"/maintenance/{name}/cancel"):
        method = "POST" if path.endswith("/cancel") else "GET"
        reply = await ask(scene, method, path, scene.stage.operator_headers)
        assert reply.status_code in (400, 404, 422), (path, reply.status_code)


@pytest.mark.parametrize("query", ["limit=0", "limit=1e9", "after=(select 1)", "sort=id;drop table alias", "order=x"])
async def test_b10_queries_are_typed(scene: Scene, query: str) -> None:
    for path in ("/aliases", "/maintenance"):
        reply = await ask(scene, "GET", f"{path}?{query}", scene.stage.operator_headers)
        assert reply.status_code == 422


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://[::ffff:169.254.169.254]",
        "http://[fe80::1]",
        "http://0.0.0.0",
        "http://user:secret@127.0.0.1",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379",
    ],
)
async def test_c02_a_backend_is_found_neither_in_the_cloud_nor_in_a_file(scene: Scene, url: str) -> None:
    reply = await ask(scene, "POST", "/backends", scene.stage.operator_headers, json={"url": url})
    assert reply.status_code == 422
    assert "secret" not in reply.text


async def test_c02_discovery_follows_nobody(scene: Scene) -> None:
    async with scripted_backend() as canary:

        async def sends_on(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await answer(302, b"{}", f"location: {canary.url}/v1/models")(asked, writer)

        async with scripted_backend(sends_on) as trap:
            body = {"url": trap.url, "credential": "s3cr3t", "create_models": True}
            reply = await ask(scene, "POST", "/backends", scene.stage.operator_headers, json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "kind")
            assert "s3cr3t" not in reply.text
        assert canary.connections == 0


@pytest.mark.parametrize(
    "listing",
    [
        pytest.param({"data": [{"id": 7}, None, [], {"id": "x" * 10_000}, {"id": "../../x"}]}, id="odd ids"),
        pytest.param({"data": [{"id": "a\r\nX: y", "max_model_len": -1}]}, id="a header"),
        pytest.param({"data": [{"id": "evil<script>", "max_model_len": 10**30}]}, id="a script"),
        pytest.param({"data": [{"id": "", "meta": {"n_ctx": "NaN"}}]}, id="nothing"),
    ],
)
async def test_d04_a_server_that_lies_makes_no_model(scene: Scene, listing: dict[str, Any]) -> None:
    before = await scene.stage.operate("GET", "/models?limit=100")
    async with scripted_backend(answer(200, json.dumps(listing).encode())) as liar:
        body = {"url": liar.url, "name": f"liar-{uuid4().hex}", "create_models": True}
        reply = await ask(scene, "POST", "/backends", scene.stage.operator_headers, json=body)
        assert reply.status_code == 200, reply.text
    assert await scene.stage.operate("GET", "/models?limit=100") == before


async def test_d02_a_listing_without_end_is_left(scene: Scene) -> None:
    async def without_end(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while True:
            writer.write(b" " * 1_000_000)
            await writer.drain()

    async with scripted_backend(without_end) as hose:
        reply = await ask(scene, "POST", "/backends", scene.stage.operator_headers, json={"url": hose.url})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "kind")


async def test_b07_an_alias_is_called_by_those_who_may(scene: Scene) -> None:
    body = {"id": "any", "targets": [{"model": "m"}], "prices_of": "m"}
    await scene.stage.operate("POST", "/aliases", json=body)
    asked = len(scene.backend.asked)
    bound = await scene.stage.tenant(models=["m"])
    reply = await scene.chat(bound, model="any")
    assert (reply.status_code, len(scene.backend.asked)) == (403, asked)
    listed = await scene.stage.client.get(f"{scene.stage.base_url}/v1/models", headers=bound.headers)
    assert [each["id"] for each in listed.json()["data"]] == ["m"]
    assert (await scene.chat(model="any")).status_code == 200


@pytest.mark.parametrize("field", ["deployment", "backend", "backend_model", "version", "region", "pool", "fallback"])
async def test_c01_no_client_chooses_its_version(scene: Scene, field: str) -> None:
    asked = len(scene.backend.asked)
    reply = await scene.chat(**{field: "another"})
    if reply.status_code == 200:
        assert scene.backend.asked[-1].body["model"] == "x", "what the operator said"
    else:
        assert (reply.status_code, len(scene.backend.asked)) == (400, asked)
