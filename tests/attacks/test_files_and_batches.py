"""Attacks on files and batches: other tenants' objects, other kinds of keys, forms and lines that are traps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.attacks.conftest import Scene
from tests.integration.batches.desk import Desk, jsonl, task

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

ROUTES = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file}"),
    ("GET", "/v1/files/{file}/content"),
    ("DELETE", "/v1/files/{file}"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/{batch}"),
    ("POST", "/v1/batches/{batch}/cancel"),
]
OF_AN_OBJECT = [route for route in ROUTES if "{" in route[1]]


async def _of_alice(scene: Scene) -> tuple[Desk, dict[str, Any]]:
    desk = Desk(scene.stage, scene.alice)
    return desk, await desk.ended(await desk.create(jsonl(task("a"))))


@pytest.mark.parametrize(("method", "path"), OF_AN_OBJECT)
async def test_b01_another_tenants_object_is_not_there(scene: Scene, method: str, path: str) -> None:
    alice, batch = await _of_alice(scene)
    bob = Desk(scene.stage, scene.bob)
    known = path.format(file=batch["input_file_id"], batch=batch["id"])
    unknown = path.format(file="file-" + "0" * 32, batch="batch_" + "0" * 32)
    answers = [await bob.ask(method, one) for one in (known, unknown)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    assert (await alice.look(batch))["status"] == "completed"
    assert (await alice.ask("GET", f"/v1/files/{batch['input_file_id']}")).status_code == 200


async def test_b01_another_project_of_the_same_tenant_sees_nothing(scene: Scene) -> None:
    _, batch = await _of_alice(scene)
    path = f"/organizations/{scene.alice.organization_id}/projects"
    project = await scene.stage.operate("POST", path, json={"name": "two"})
    key = await scene.stage.operate("POST", f"/projects/{project['id']}/api_keys", json={"name": "dev"})
    headers = {"authorization": f"Bearer {key['value']}"}
    url = scene.stage.base_url
    for path in (f"/v1/batches/{batch['id']}", f"/v1/files/{batch['output_file_id']}/content"):
        assert (await scene.stage.client.get(url + path, headers=headers)).status_code == 404
    for path in ("/v1/files", "/v1/batches"):
        assert (await scene.stage.client.get(url + path, headers=headers)).json()["data"] == []


async def test_another_tenants_file_is_no_input(scene: Scene) -> None:
    _, batch = await _of_alice(scene)
    body = {"input_file_id": batch["input_file_id"], "endpoint": batch["endpoint"], "completion_window": "24h"}
    bob = Desk(scene.stage, scene.bob)
    assert (await bob.ask("POST", "/v1/batches", json=body)).status_code == 404
    assert (await bob.ask("GET", "/v1/batches")).json()["data"] == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a01_b08_only_an_api_key_opens(scene: Scene, method: str, path: str) -> None:
    url = scene.stage.base_url + path.format(file="file-" + "0" * 32, batch="batch_" + "0" * 32)
    keys = [({}, 401), ({"authorization": "Bearer x"}, 401)]
    keys += [(scene.alice.admin_headers, 403), (scene.stage.operator_headers, 403)]
    for headers, status in keys:
        answer = await scene.stage.client.request(method, url, headers=headers, content=b"x" * 200_000)
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("file-' OR 1=1--", id="SQL"),
        pytest.param("..%2f..%2fetc%2fpasswd", id="F10 a path"),
        pytest.param("file-%00", id="NUL"),
        pytest.param("x" * 5_000, id="long"),
        pytest.param("FILE-" + "0" * 32, id="another case"),
        pytest.param("file-" + "٣" * 32, id="digits of another script"),
    ],
)
async def test_a_name_that_is_none_is_not_there(scene: Scene, name: str) -> None:
    alice = Desk(scene.stage, scene.alice)
    for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{name}"):
        assert (await alice.ask("GET", path)).status_code == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=100000", "limit=x", "order=(select 1)", "sort=id;drop", "purpose=" + "x" * 100],
)
async def test_b10_parameters_of_a_list(scene: Scene, query: str) -> None:
    answer = await Desk(scene.stage, scene.alice).ask("GET", f"/v1/files?{query}")
    assert answer.status_code == 422, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"completion_window": "1h"}, id="another window"),
        pytest.param({"endpoint": "/v1/files"}, id="an endpoint that is none"),
        pytest.param({"endpoint": "http://127.0.0.1/"}, id="C01 an address"),
        pytest.param({"api_base": "http://127.0.0.1/"}, id="C01 a destination"),
        pytest.param({"metadata": {str(n): "x" for n in range(17)}}, id="too many pairs"),
        pytest.param({"metadata": {"a": "x" * 513}}, id="a long value"),
        pytest.param({"metadata": {"a": "\0"}}, id="NUL"),
        pytest.param({"metadata": {"a": 1}}, id="no text"),
        pytest.param({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, id="a short life"),
        pytest.param({"organization_id": "x", "status": "completed"}, id="B06 columns"),
    ],
)
async def test_wrong_batches_are_refused(scene: Scene, change: dict[str, Any]) -> None:
    alice = Desk(scene.stage, scene.alice)
    file_id = (await alice.upload(b"{}")).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **change}
    answer = await alice.ask("POST", "/v1/batches", json=body)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        pytest.param("application/json", 415, id="D09 JSON"),
        pytest.param("multipart/form-data; boundary=" + "-" * 20_000, 415, id="D09 a long boundary"),
        pytest.param("multipart/form-data; boundary=" + "-" * 70, 400, id="D09 a body of dashes"),
    ],
)
async def test_d09_forms_that_are_none(scene: Scene, content_type: str, status: int) -> None:
    alice = Desk(scene.stage, scene.alice)
    headers = {"content-type": content_type}
    answer = await alice.ask("POST", "/v1/files", content=b"-" * 1_000_000, headers=headers)
    assert answer.status_code == status, answer.text


async def test_d07_a_compressed_form(scene: Scene) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}
    answer = await Desk(scene.stage, scene.alice).ask("POST", "/v1/files", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415


async def test_traps_in_lines_cost_nothing_and_reach_nothing(scene: Scene) -> None:
    """What a call refuses, a line is refused as well."""
    alice = Desk(scene.stage, scene.alice)
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    traps = [
        task("C01", api_base="http://127.0.0.1/"),
        task("C02", messages=[{"role": "user", "content": [picture]}]),
        task("C03", model="../../x"),
        task("D05", max_tokens=-1),
        task("D06", n=100),
        task("D16", stop=["x"] * 10_000),
    ]
    batch = await alice.ended(await alice.create(jsonl(*traps)))
    assert batch["request_counts"] == {"total": 6, "completed": 0, "failed": 6}
    _, bad = await alice.results(batch)
    statuses = [line["response"]["status_code"] for line in bad]
    assert statuses == [400, 400, 404, 400, 400, 400]
    await scene.untouched(asked, balance)


async def test_d17_one_key_at_once_makes_one_batch(scene: Scene) -> None:
    tenant = await scene.stage.tenant()
    desk = Desk(scene.stage, tenant)
    file_id = (await desk.upload(jsonl(task("a")))).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    headers = {"idempotency-key": "same"}
    answers = await asyncio.gather(*(desk.ask("POST", "/v1/batches", json=body, headers=headers) for _ in range(5)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len((await desk.ask("GET", "/v1/batches")).json()["data"]) == 1
    # Another key with the same text is another request.
    other = Desk(scene.stage, scene.bob)
    file_id = (await other.upload(jsonl(task("a")))).json()["id"]
    answer = await other.ask("POST", "/v1/batches", json=body | {"input_file_id": file_id}, headers=headers)
    assert answer.status_code == 200
    await other.ended(answer.json())


async def test_d12_an_upload_has_more_time_than_a_call(scene: Scene) -> None:
    """A large file on a slow line is no attack; the scene's calls have a second."""

    async def slow() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        await asyncio.sleep(1.5)
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n--b--\r\n'

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = await Desk(scene.stage, scene.alice).ask("POST", "/v1/files", content=slow(), headers=headers)
    assert answer.status_code == 200, answer.text
