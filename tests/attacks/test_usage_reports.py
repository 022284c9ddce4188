"""Attacks A and B on usage and cost reports of an organization: they ask no backend and tell nobody's usage."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.keys import KeyKind, mint
from tests.attacks.conftest import Scene
from tests.attacks.test_keys import GARBAGE

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

KINDS = (
    *("completions", "embeddings", "moderations", "audio_speeches", "audio_transcriptions", "images", "vector_stores"),
    *("file_search_calls", "web_search_calls", "code_interpreter_sessions", "decisions"),
)
PATHS = (*(f"/v1/organization/usage/{kind}" for kind in KINDS), "/v1/organization/costs")
INJECTIONS = ["sort=amount;drop", "order=(select 1)", "group_by[]=1;drop table charge", "page=0 or 1=1", "limit=1--"]


async def asked(scene: Scene, path: str, query: str, headers: dict[str, Any] | None = None) -> Any:
    url = f"{scene.stage.base_url}{path}?{query}"
    return await scene.stage.client.get(url, headers=scene.alice.admin_headers if headers is None else headers)


@pytest.mark.parametrize("path", PATHS)
async def test_a01_to_a07_one_answer_for_every_wrong_key(scene: Scene, path: str) -> None:
    visits, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    unknown = mint(KeyKind.ADMIN, b"another pepper").value
    values = ["", unknown, unknown[:-1] + "x", *GARBAGE]
    answers = [
        await asked(scene, path, "start_time=1", {"authorization": f"Bearer {value}".strip()}) for value in values
    ]
    answers.append(await asked(scene, path, "start_time=1", {}))
    assert {answer.status_code for answer in answers} == {401}
    assert len({str(answer.json()) for answer in answers}) == 1
    await scene.untouched(visits, balance)


@pytest.mark.parametrize("path", PATHS)
async def test_a09_a_key_in_the_query_is_no_key(scene: Scene, path: str) -> None:
    assert (await asked(scene, path, f"start_time=1&api_key={scene.alice.admin_key}", {})).status_code == 401


@pytest.mark.parametrize("path", PATHS)
async def test_b05_another_tenants_project_is_not_found(scene: Scene, path: str) -> None:
    answer = await asked(scene, path, f"start_time=1&project_ids[]={scene.bob.project_id}")
    assert answer.status_code == 404
    assert (await asked(scene, path, f"start_time=1&project_ids[]={scene.alice.project_id}")).status_code == 200


@pytest.mark.parametrize("path", PATHS)
async def test_b08_a_developers_key_reads_no_reports(scene: Scene, path: str) -> None:
    assert (await asked(scene, path, "start_time=1", scene.alice.headers)).status_code == 403
    assert (await asked(scene, path, "start_time=1", scene.stage.operator_headers)).status_code == 403


@pytest.mark.parametrize("path", PATHS)
async def test_b10_sql_in_parameters_is_refused(scene: Scene, path: str) -> None:
    for injection in INJECTIONS:
        answer = await asked(scene, path, f"start_time=1&{injection}")
        assert answer.status_code == 400, injection
        assert answer.json()["error"]["type"] == "invalid_request_error"
