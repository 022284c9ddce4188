"""Attacks with keys that are bound to endpoints: what they may call, what they may count, what they may change."""

from __future__ import annotations

from typing import Any

import pytest

from models.call import Endpoint
from tests.attacks.conftest import Scene
from tests.attacks.routes import CALLS, ROUTES, Route
from tests.attacks.test_routes import filled, is_error, send
from tests.stage import Tenant

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CHATS = {Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES}
TEXTS = set(Endpoint) - {Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS}
HI = [{"role": "user", "content": "hi"}]
CHANGES = [route for route in ROUTES if route.who == "key" and route.method != "GET"]


@pytest.fixture(scope="package")
async def bound(scene: Scene) -> dict[str, Tenant]:
    """By endpoint a tenant whose key is for this one alone."""
    return {each: await scene.stage.tenant(endpoints=[each]) for each in Endpoint}


@pytest.fixture(scope="package")
async def reader(scene: Scene) -> Tenant:
    """A tenant whose key may only read."""
    return await scene.stage.tenant(endpoints=[])


@pytest.mark.parametrize("route", [pytest.param(route, id=route.name) for route in CALLS])
async def test_b08_a_key_calls_the_endpoints_it_is_for(scene: Scene, route: Route, bound: dict[str, Tenant]) -> None:
    asked = len(scene.backend.asked)
    for endpoint, tenant in bound.items():
        if endpoint != route.path:
            answer = await send(scene, route, tenant.headers)
            is_error(answer, 403)
            assert f"may not call {route.path}" in answer.text
            await scene.untouched(asked, await scene.stage.balance(tenant), tenant)


@pytest.mark.parametrize(
    ("path", "body", "permitted"),
    [
        pytest.param("/v1/responses/input_tokens", {"input": "hi"}, {Endpoint.RESPONSES}, id="a response"),
        pytest.param("/v1/messages/count_tokens", {"messages": HI}, {Endpoint.MESSAGES}, id="a message"),
        pytest.param("/v1/tokenize", {"messages": HI}, CHATS, id="a chat"),
        pytest.param("/v1/tokenize", {"prompt": "hi"}, TEXTS, id="a text"),
        pytest.param("/v1/detokenize", {"tokens": [1]}, TEXTS, id="tokens"),
    ],
)
async def test_b08_a_key_counts_what_it_may_call(
    scene: Scene, path: str, body: dict[str, Any], permitted: set[Endpoint], bound: dict[str, Tenant]
) -> None:
    asked = len(scene.backend.asked)
    # The backend of these tests tells no text of a token.
    done = 400 if "tokens" in body else 200
    for endpoint, tenant in bound.items():
        answer = await scene.post(path, json={"model": "m", **body}, headers=tenant.headers)
        if endpoint in permitted:
            assert answer.status_code == done, answer.text
        else:
            is_error(answer, 403)
            assert f"may not call {path}" in answer.text
    assert (await scene.post(path, json={"model": "m", **body}, headers=scene.alice.headers)).status_code == done
    assert len(scene.backend.asked) == asked


@pytest.mark.parametrize(
    "content", [pytest.param(b"{", id="a body that is none"), pytest.param(b"x" * 900_000, id="a large body")]
)
async def test_b08_a_key_for_something_else_is_refused_before_its_body_is_read(
    scene: Scene, content: bytes, bound: dict[str, Tenant]
) -> None:
    headers = bound[Endpoint.TRANSCRIPTIONS].headers | {"content-type": "application/json"}
    for path in ("/v1/responses/input_tokens", "/v1/messages/count_tokens", "/v1/tokenize", "/v1/detokenize"):
        is_error(await scene.post(path, content=content, headers=headers), 403)


@pytest.mark.parametrize("route", [pytest.param(route, id=route.name) for route in CHANGES])
async def test_b08_a_key_that_only_reads_changes_nothing(scene: Scene, route: Route, reader: Tenant) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(reader)
    is_error(await send(scene, route, reader.headers), 403)
    await scene.untouched(asked, balance, reader)


async def test_a_key_that_only_reads_reads(scene: Scene, reader: Tenant) -> None:
    for route in ROUTES:
        if route.method == "GET" and route.who != "admin" and "{" not in route.path:
            assert (await send(scene, route, reader.headers)).status_code == 200, filled(route)


@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")],
    ids=["read", "delete", "cancel", "items"],
)
async def test_b08_what_is_kept_of_responses_is_for_keys_that_may_make_them(
    scene: Scene, method: str, rest: str, bound: dict[str, Tenant], reader: Tenant
) -> None:
    url = f"{scene.stage.base_url}/v1/responses/resp_{'0' * 32}{rest}"
    for endpoint, tenant in bound.items():
        answer = await scene.stage.client.request(method, url, headers=tenant.headers)
        if endpoint is Endpoint.RESPONSES:
            is_error(answer, 404)
        else:
            is_error(answer, 403)
            assert "may not call /v1/responses" in answer.text
    is_error(await scene.stage.client.request(method, url, headers=reader.headers), 404 if method == "GET" else 403)


async def test_b08_a_batch_is_for_an_endpoint_of_its_key(scene: Scene, bound: dict[str, Tenant]) -> None:
    body = {"input_file_id": "file-" + "0" * 32, "endpoint": Endpoint.EMBEDDINGS, "completion_window": "24h"}
    refused = await scene.post("/v1/batches", json=body, headers=bound[Endpoint.CHAT_COMPLETIONS].headers)
    is_error(refused, 403)
    # There is no such file.
    is_error(await scene.post("/v1/batches", json=body, headers=bound[Endpoint.EMBEDDINGS].headers), 400, 404)
