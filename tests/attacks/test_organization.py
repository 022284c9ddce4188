"""Attacks on the organization's admin API: who may ask, other tenants' objects, what nobody may set, odd parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from gateway.app import make_api
from tests.attacks.conftest import Scene
from tests.stage import Tenant

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PREFIX = "/v1/organization"
MONTH = {"threshold_amount": 5, "currency": "USD", "interval": "month"}
CHANNEL = {"notification_channel": {"type": "email", "recipients": ["a@example.com"]}}
BODIES: dict[str, dict[str, Any]] = {
    "/projects": {"name": "x"},
    "/projects/{project_id}": {"name": "x"},
    "/projects/{project_id}/archive": {},
    "/projects/{project_id}/service_accounts": {"name": "x"},
    "/projects/{project_id}/service_accounts/{account_id}": {"name": "x"},
    "/projects/{project_id}/service_accounts/{account_id}/api_keys": {"name": "x"},
    "/projects/{project_id}/api_keys/{key_id}": {"scopes": []},
    "/projects/{project_id}/api_keys/{key_id}/rotate": {"overlap_seconds": 0},
    "/projects/{project_id}/rate_limits/{rate_limit_id}": {"max_requests_per_1_minute": 1},
    "/projects/{project_id}/model_permissions": {"mode": "allow_list", "model_ids": []},
    "/spend_limit": MONTH,
    "/projects/{project_id}/spend_limit": MONTH,
    "/spend_alerts": MONTH | CHANNEL,
    "/spend_alerts/{alert_id}": MONTH | CHANNEL,
    "/projects/{project_id}/spend_alerts": MONTH | CHANNEL,
    "/projects/{project_id}/spend_alerts/{alert_id}": MONTH | CHANNEL,
    "/projects/{project_id}/users": {"role": "member", "email": "a@example.com"},
    "/projects/{project_id}/users/{user_id}": {"role": "owner"},
    "/users/{user_id}": {"role": "owner"},
    "/invites": {"email": "b@example.com", "role": "reader"},
    "/admin_api_keys": {"name": "x"},
    "/admin_api_keys/{key_id}/rotate": {"overlap_seconds": 0},
}
"""A body that would do, by route: what is not here would not be attacked."""
ELSEWHERE = ("/usage/", "/costs")
"""Routes with attacks of their own."""


def routes() -> Iterator[tuple[str, str]]:
    """Method and path of every route of the admin API."""
    for path, operations in make_api(docs_enabled=True).openapi()["paths"].items():
        short = path.removeprefix(PREFIX)
        if path.startswith(PREFIX) and not short.startswith(ELSEWHERE):
            yield from ((method.upper(), short) for method in operations)


ROUTES = sorted(routes())


@dataclass(slots=True)
class Property:
    """What Alice has, by the name it has in paths."""

    ids: dict[str, str] = field(default_factory=dict)
    of_path: dict[str, str] = field(default_factory=dict)

    def path(self, route: str) -> str:
        """The route to her objects."""
        names = dict(self.ids)
        for part, identifier in self.of_path.items():
            if part in route:
                names |= {name: identifier for name in ("alert_id", "key_id") if f"{{{name}}}" in route}
        return PREFIX + route.format(**names)


async def ask(scene: Scene, method: str, path: str, headers: dict[str, str], **options: Any) -> httpx.Response:
    return await scene.stage.client.request(method, scene.stage.base_url + path, headers=headers, **options)


async def made(scene: Scene, tenant: Tenant, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await ask(scene, "POST", PREFIX + path, tenant.admin_headers, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture(scope="package")
async def property_of_alice(scene: Scene) -> Property:
    """One of everything in Alice's organization."""
    alice, project = scene.alice, f"/projects/{scene.alice.project_id}"
    account = await made(scene, alice, f"{project}/service_accounts", {"name": "hers"})
    user = await made(scene, alice, f"{project}/users", {"role": "member", "email": "alice@example.com"})
    invite = await made(scene, alice, "/invites", {"email": "friend@example.com", "role": "reader"})
    admin_key = await made(scene, alice, "/admin_api_keys", {"name": "second"})
    alert = await made(scene, alice, "/spend_alerts", MONTH | CHANNEL)
    of_project = await made(scene, alice, f"{project}/spend_alerts", MONTH | CHANNEL)
    await made(scene, alice, "/spend_limit", MONTH | {"threshold_amount": 900_000_000})
    await made(scene, alice, f"{project}/spend_limit", MONTH | {"threshold_amount": 900_000_000})
    return Property(
        ids={
            "project_id": alice.project_id,
            "account_id": account["id"],
            "user_id": user["id"],
            "invite_id": invite["id"],
            "key_id": admin_key["id"],
            "alert_id": alert["id"],
            "rate_limit_id": "rl-m",
        },
        of_path={"/api_keys/{key_id}": account["api_key"]["id"], "}/spend_alerts/": of_project["id"]},
    )


async def test_every_change_has_a_case() -> None:
    assert {path for method, path in ROUTES if method == "POST"} == set(BODIES)
    assert len(ROUTES) > 40


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_b08_only_an_admin_key_opens_a_route(
    scene: Scene, property_of_alice: Property, method: str, path: str
) -> None:
    url = property_of_alice.path(path)
    body = BODIES.get(path)
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer tg_admin_" + "A" * 33}, 401),
        ({"cookie": f"session={scene.alice.admin_key}"}, 401),
        (scene.alice.headers, 403),
        (scene.stage.operator_headers, 403),
    ):
        answer = await ask(scene, method, url, headers, json=body)
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


OWNED = [(method, path) for method, path in ROUTES if "{" in path]


@pytest.mark.parametrize(("method", "path"), OWNED)
async def test_b01_and_b03_another_tenants_object_is_not_there(
    scene: Scene, property_of_alice: Property, method: str, path: str
) -> None:
    url = property_of_alice.path(path)
    answer = await ask(scene, method, url, scene.bob.admin_headers, json=BODIES.get(path))
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["code"] == "not_found"
    # Nor under a project of one's own.
    if path.startswith("/projects/{project_id}/") and path.count("{") == 2 and "rate_limit" not in path:
        own = url.replace(scene.alice.project_id, scene.bob.project_id)
        answer = await ask(scene, method, own, scene.bob.admin_headers, json=BODIES.get(path))
        assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("path", sorted({path for method, path in ROUTES if method == "GET" and "{" not in path}))
async def test_lists_and_settings_are_ones_own(scene: Scene, property_of_alice: Property, path: str) -> None:
    answer = await ask(scene, "GET", PREFIX + path, scene.bob.admin_headers)
    assert answer.status_code in (200, 404)
    for secret in (*property_of_alice.ids.values(), *property_of_alice.of_path.values(), scene.alice.organization_id):
        assert secret == "rl-m" or secret not in answer.text


async def test_what_bob_tried_has_changed_nothing(scene: Scene, property_of_alice: Property) -> None:
    for method, path in ROUTES:
        if method == "GET":
            answer = await ask(scene, method, property_of_alice.path(path), scene.alice.admin_headers)
            assert answer.status_code == 200, (path, answer.text)
    permissions = f"{PREFIX}/projects/{scene.alice.project_id}/model_permissions"
    answer = await ask(scene, "GET", permissions, scene.alice.admin_headers)
    assert answer.json()["mode"] == "deny_list"


FORBIDDEN = ("organization_id", "tenant_id", "balance", "credit_limit", "is_admin", "created_at", "digest", "set_by")


@pytest.mark.parametrize("path", sorted(BODIES))
async def test_b06_nobody_sets_what_is_not_theirs(scene: Scene, property_of_alice: Property, path: str) -> None:
    if path.endswith("/archive"):
        return
    for name in FORBIDDEN:
        body = BODIES[path] | {name: "x"}
        answer = await ask(scene, "POST", property_of_alice.path(path), scene.alice.admin_headers, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, name), answer.text


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        pytest.param("/projects", {"after": "' OR 1=1--"}, 422, id="B10 SQL in after"),
        pytest.param("/projects", {"sort": "amount;drop"}, 422, id="B10 a sort that is not there"),
        pytest.param("/projects", {"limit": "0"}, 422, id="no limit"),
        pytest.param("/projects", {"limit": "101"}, 422, id="a large limit"),
        pytest.param("/spend_alerts", {"order": "(select 1)"}, 422, id="B10 SQL in order"),
        pytest.param("/audit_logs", {"after": "1;drop table audit_log"}, 422, id="B10 SQL in a number"),
        pytest.param("/audit_logs", {"effective_at[gt]": "now()"}, 422, id="B10 SQL in a time"),
        pytest.param("/audit_logs", {"effective_at[gt]": "9" * 30}, 422, id="a time beyond time"),
        pytest.param("/audit_logs", {"project_ids[]": "%"}, 422, id="B11 a wildcard as an id"),
        pytest.param("/audit_logs", {"resource_ids[]": "%"}, 200, id="B11 a wildcard is a text"),
        pytest.param("/audit_logs", {"event_types[]": "' or ''='"}, 200, id="B10 SQL as an event"),
        pytest.param("/audit_logs", {"actor_ids[]": "x" * 301}, 422, id="a long actor"),
        pytest.param("/audit_logs", {"actor_ids[]": "a\0b"}, 422, id="NUL"),
        pytest.param("/users", {"emails[]": "%@%"}, 422, id="B11 wildcards in an address"),
        pytest.param("/users", {"emails[]": "%" * 5_000}, 422, id="B11 five thousand wildcards"),
    ],
)
async def test_b10_and_b11_parameters(scene: Scene, path: str, query: dict[str, str], status: int) -> None:
    answer = await ask(scene, "GET", PREFIX + path, scene.alice.admin_headers, params=query)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["data"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/spend_limit", MONTH | {"threshold_amount": -1}, id="E08 a limit below zero"),
        pytest.param("/spend_limit", MONTH | {"threshold_amount": 2**60}, id="a limit beyond the ledger"),
        pytest.param("/spend_limit", MONTH | {"threshold_amount": 1.5}, id="half a cent"),
        pytest.param("/spend_limit", MONTH | {"currency": "EUR"}, id="another currency"),
        pytest.param("/projects", {"name": "a\r\nb"}, id="F03 line breaks in a name"),
        pytest.param("/projects", {"name": "x" * 201}, id="a long name"),
        pytest.param("/invites", {"email": "a@b.c\n", "role": "admin"}, id="a role that is not there"),
        pytest.param("/invites", {"email": "no address", "role": "reader"}, id="no address"),
        pytest.param("/admin_api_keys", {"name": "x", "expires_in_seconds": 0}, id="a key that is dead"),
        pytest.param("/admin_api_keys", {"name": "x", "expires_in_seconds": 2**40}, id="a key for ever"),
    ],
)
async def test_bodies_that_make_no_sense(scene: Scene, path: str, body: dict[str, Any]) -> None:
    answer = await ask(scene, "POST", PREFIX + path, scene.alice.admin_headers, json=body)
    assert answer.status_code == 422, answer.text


async def test_b07_a_key_is_no_wider_than_who_makes_it(scene: Scene) -> None:
    project = await made(scene, scene.bob, "/projects", {"name": "narrow"})
    path = f"/projects/{project['id']}"
    account = await made(scene, scene.bob, f"{path}/service_accounts", {"name": "x"})
    await made(scene, scene.bob, f"{path}/model_permissions", {"mode": "deny_list", "model_ids": ["m"]})
    keys = f"{PREFIX}{path}/service_accounts/{account['id']}/api_keys"
    wider = {"name": "x", "scopes": ["model:m"]}
    assert (await ask(scene, "POST", keys, scene.bob.admin_headers, json=wider)).status_code == 403

    short = await made(scene, scene.bob, "/admin_api_keys", {"name": "short", "expires_in_seconds": 600})
    holder = {"authorization": f"Bearer {short['value']}"}
    for body in ({"name": "x"}, {"name": "x", "expires_in_seconds": 6_000}):
        assert (await ask(scene, "POST", f"{PREFIX}/admin_api_keys", holder, json=body)).status_code == 403
    rotation = {"overlap_seconds": 60, "expires_in_seconds": 6_000}
    path = f"{PREFIX}/admin_api_keys/{short['id']}/rotate"
    assert (await ask(scene, "POST", path, holder, json=rotation)).status_code == 403
    # What was refused has shortened nothing.
    shown = await ask(scene, "GET", f"{PREFIX}/admin_api_keys/{short['id']}", holder)
    assert shown.json()["expires_at"] == short["expires_at"]


async def test_a12_a_forged_address_opens_no_network(scene: Scene) -> None:
    tenant = await scene.stage.tenant(networks=["10.0.0.0/8"])
    asked, balance = len(scene.backend.asked), await scene.stage.balance(scene.alice)
    for forged in ({}, {"x-forwarded-for": "10.0.0.1"}, {"forwarded": "for=10.0.0.1"}, {"x-real-ip": "10.0.0.1"}):
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        answer = await scene.post("/v1/chat/completions", json=body, headers=tenant.headers | forged)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "permission_denied"
    await scene.untouched(asked, balance)


async def test_f01_markup_in_a_name_comes_back_as_text(scene: Scene) -> None:
    name = "<img src=x onerror=alert(1)>"
    answer = await ask(scene, "POST", f"{PREFIX}/projects", scene.bob.admin_headers, json={"name": name})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["name"] == name
