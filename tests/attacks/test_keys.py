"""Attacks A: on authentication. Every refusal has one shape, holds nothing, reaches no backend."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.keys import KeyKind, mint
from tests.attacks.conftest import Scene
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
JSON = ("content-type", "application/json")
GARBAGE = [
    "' OR 1=1--",
    "x' UNION SELECT 1", "$1", "%", "{{7*7}}", "x" * 8_000, "tg_live_", "tg_live_" + "A" * 33, "../../etc",
]  # fmt: skip


def unknown_key() -> str:
    return mint(KeyKind.API, b"another pepper").value


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="A01 no key"),
        pytest.param([("authorization", "Bearer")], id="A02 an empty key"),
        pytest.param([("authorization", "Basic dTpw")], id="another scheme"),
        pytest.param([("authorization", f"Bearer {unknown_key()[:-1]}x")], id="A03 a wrong checksum"),
        pytest.param([("authorization", f"Bearer {unknown_key()}")], id="A04 an unknown key"),
        pytest.param([("x-api-key", unknown_key())], id="A04 an unknown key as x-api-key"),
        pytest.param([("authorization", b"Bearer tg_live_\xff\xfe")], id="A07 not ASCII"),
        *(pytest.param([("authorization", f"Bearer {text}")], id=f"A07 {text[:16]}") for text in GARBAGE),
    ],
)
async def test_one_answer_for_every_wrong_key(scene: Scene, headers: list[tuple[str, Any]]) -> None:
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    answer = await scene.post("/v1/chat/completions", content=BODY, headers=[JSON, *headers])
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert error["message"] == (await scene.post("/v1/chat/completions", content=BODY)).json()["error"]["message"]
    await scene.untouched(asked, balance)


async def test_a08_two_different_keys(scene: Scene) -> None:
    two = [JSON, ("authorization", f"Bearer {scene.alice.api_key}"), ("x-api-key", scene.bob.api_key)]
    twice = [JSON, *[("authorization", f"Bearer {scene.alice.api_key}")] * 2]
    same = [JSON, ("authorization", f"Bearer {scene.alice.api_key}"), ("x-api-key", scene.alice.api_key)]
    assert (await scene.post("/v1/chat/completions", content=BODY, headers=two)).status_code == 400
    assert (await scene.post("/v1/chat/completions", content=BODY, headers=twice)).status_code == 400
    assert (await scene.post("/v1/chat/completions", content=BODY, headers=same)).status_code == 200


async def test_a09_a_key_in_the_query_is_no_key(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("api_key", "key", "access_token"):
        answer = await scene.post(f"/v1/chat/completions?{name}={scene.alice.api_key}", content=BODY, headers=[JSON])
        assert answer.status_code == 401
    assert scene.alice.api_key not in "".join(capfd.readouterr())


async def test_a05_and_a11_a_key_revoked_while_its_stream_runs(scene: Scene) -> None:
    tenant = await scene.stage.tenant()
    keys = await scene.stage.operate("GET", f"/projects/{tenant.project_id}/api_keys")
    assert (await scene.chat(tenant)).status_code == 200
    key = keys["data"][0]["id"]
    await scene.stage.operate("POST", f"/projects/{tenant.project_id}/api_keys/{key}/revoke")

    async def refused() -> bool:
        return (await scene.chat(tenant)).status_code == 401

    await eventually(refused, seconds=5)


@pytest.mark.parametrize("path", ["/v1/billing/balance", "/v1/models", "/operator/v1/organizations", "/v1/calls/x"])
async def test_control_routes_refuse_strangers(scene: Scene, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {unknown_key()}"}, {"cookie": f"session={scene.alice.api_key}"}):
        answer = await scene.stage.client.get(scene.stage.base_url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_b08_a_key_works_for_what_it_was_issued_for(scene: Scene) -> None:
    url, client = scene.stage.base_url, scene.stage.client
    for headers in (scene.alice.headers, scene.alice.admin_headers):
        assert (await client.get(f"{url}/operator/v1/organizations", headers=headers)).status_code == 403
    answer = await scene.post(
        "/v1/chat/completions", content=BODY, headers={**scene.alice.admin_headers, JSON[0]: JSON[1]}
    )
    assert answer.status_code == 403
    assert (await client.get(f"{url}/v1/models", headers=scene.stage.operator_headers)).status_code == 403
