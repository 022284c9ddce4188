"""Who may use the operator's API: attacks A01 to A08, B06, B08, B10 and C01."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import event

from gateway.api.operator import router
from gateway.auth import guards_of
from gateway.keys import KeyKind, mint
from tests.integration.operator.world import World, refusal
from tests.rooms import PEPPER, MovableClock

pytestmark = pytest.mark.anyio

UNKNOWN = mint(KeyKind.OPERATOR, PEPPER).value
ODD = {
    "A07 SQL": "' OR 1=1--",
    "A07 a union": "x' UNION SELECT digest FROM operator_key--",
    "A07 a parameter": "$1",
    "A07 8,000 characters": "a" * 8_000,
    "A07 wildcards": "%" * 100,
    "A07 a template": "{{7*7}}",
    "A03 wrong checksum": UNKNOWN[:-1] + ("0" if UNKNOWN[-1] != "0" else "1"),
}


async def test_garbage_is_refused_without_a_query(world: World, subtests: pytest.Subtests) -> None:
    statements: list[str] = []
    event.listen(
        world.parts.engine.sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    for name, value in ODD.items():
        with subtests.test(name):
            response = await world.client.get(
                "/operator/v1/organizations", headers={"authorization": f"Bearer {value}"}
            )
            assert response.status_code == 401
            assert statements == []
            assert value not in response.text


async def test_bytes_that_are_no_text_are_refused(world: World) -> None:
    for value in (b"Bearer \xff\xfe\x00", b"Bearer \xc3\xa9", b"\x00"):
        response = await world.client.get("/operator/v1/organizations", headers={b"authorization": value})
        assert response.status_code == 401


async def test_all_refusals_look_the_same(world: World, clock: MovableClock) -> None:
    expires_at = (clock.now() + timedelta(hours=1)).isoformat()
    expired = (await world.made("/operator_keys", {"name": "short", "expires_at": expires_at}))["value"]
    revoked = await world.made("/operator_keys", {"name": "gone"})
    await world.made(f"/operator_keys/{revoked['id']}/revoke")
    clock.move(timedelta(hours=1))
    bodies = set()
    headers = [{}, {"authorization": "Bearer "}, {"x-api-key": UNKNOWN}]
    headers += [{"authorization": f"Bearer {value}"} for value in (UNKNOWN, revoked["value"], expired, "garbage")]
    for each in headers:
        response = await world.client.get("/operator/v1/organizations", headers=each)
        assert response.status_code == 401
        bodies.add(response.text)
    assert len(bodies) == 1


async def test_two_credentials_are_refused(world: World) -> None:
    ours = f"Bearer {world.operator_key}".encode()
    for headers in (
        [(b"authorization", ours), (b"authorization", ours)],
        [(b"authorization", ours), (b"x-api-key", UNKNOWN.encode())],
    ):
        response = await world.client.get("/operator/v1/organizations", headers=headers)
        assert response.status_code == 400


async def test_keys_of_developers_and_admins_are_not_permitted(world: World) -> None:
    key = await world.api_key()
    admin = await world.made(f"/organizations/{key['organization_id']}/admin_keys", {"name": "admin"})
    for value in (key["value"], admin["value"]):
        for method, path in (("GET", "/organizations"), ("POST", "/operator_keys"), ("GET", "/audit_logs")):
            body = {"name": "mine"} if method == "POST" else None
            headers = {"authorization": f"Bearer {value}"}
            response = await world.client.request(method, f"/operator/v1{path}", json=body, headers=headers)
            assert response.status_code == 403


def test_every_route_is_guarded() -> None:
    contexts = [each for each in iter_route_contexts(router.routes) if isinstance(each.original_route, APIRoute)]
    assert len(contexts) > 30
    for context in contexts:
        assert guards_of(context.dependant) == {"require_operator"}, context.path


async def test_a_field_that_is_not_offered_is_refused(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}"
    for extra in ("role", "tenant_id", "balance", "credit", "shard", "id", "closed_at", "currency"):
        patched = await world.client.patch(f"/operator/v1{path}", json={extra: "1"}, headers=world.headers({}))
        assert patched.status_code == 422, extra
        assert (await world.post(path, {extra: "1"})).status_code == 422, extra
        assert (await world.post("/organizations", {"name": "B", extra: "1"})).status_code == 422, extra
    assert await world.shown(path) == organization


async def test_a_destination_cannot_be_smuggled_into_a_model(world: World) -> None:
    for extra in ("api_base", "base_url", "api_key", "custom_llm_provider", "extra_headers", "headers", "timeout"):
        body = {"id": "m", "context_length": 1, "deployments": [], extra: "http://127.0.0.1:6379"}
        assert (await world.post("/models", body)).status_code == 422, extra
    assert await world.count("model") == 0


QUERIES: dict[str, dict[str, str]] = {
    "B10 sort": {"sort": "amount;drop"},
    "B10 order": {"order": "(select pg_sleep(9))"},
    "B10 after": {"after": "' or 1=1--"},
    "B10 limit": {"limit": "1;drop table charge"},
    "limit below its range": {"limit": "0"},
    "limit above its range": {"limit": "101"},
    "a key in the query": {"api_key": UNKNOWN},
    "B11 search": {"search": "%" * 5_000},
}


async def test_parameters_are_bounded(world: World, subtests: pytest.Subtests) -> None:
    for name, query in QUERIES.items():
        with subtests.test(name):
            for path in ("/organizations", "/backends", "/prices", "/audit_logs", "/operator_keys"):
                assert (await world.get(path, **query)).status_code == 422


async def test_a_filter_of_wildcards_is_a_plain_text(world: World) -> None:
    await world.organization()
    listed = await world.shown("/audit_logs", actor="%", action="%" * 300)
    assert listed["data"] == []


async def test_a_path_that_is_no_id_is_refused(world: World) -> None:
    for path in ("/organizations/1", "/projects/%00", "/organizations/' or 1=1--"):
        assert (await world.get(path)).status_code == 422
    status, _, _ = refusal(await world.get("/organizations/00000000-0000-0000-0000-000000000000"))
    assert status == 404
