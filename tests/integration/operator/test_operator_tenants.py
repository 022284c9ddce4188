"""Organizations, projects, keys and credit through the operator's API."""

from __future__ import annotations

import json
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import text

from billing.store.keys import find_api_key
from gateway.keys import KeyKind, digest, well_formed
from models.errors import NotAuthenticated
from tests.integration.operator.world import World, refusal
from tests.rooms import PEPPER, MovableClock

pytestmark = pytest.mark.anyio


def usd(amount: str) -> dict[str, str]:
    return {"amount": amount, "currency": "USD"}


async def test_an_organization_is_created_shown_changed_and_closed(world: World) -> None:
    fields = {
        "name": "Acme",
        "legal_name": "Acme GmbH",
        "country": "DE",
        "tax_id": "DE123456789",
        "currency": "EUR",
        "timezone": "Europe/Berlin",
        "billing_mode": "hybrid",
        "credit_limit": {"amount": "100.000000000", "currency": "EUR"},
        "price_book": "partners",
        "limits": {"requests_per_minute": 60, "tokens_per_minute": None, "max_in_flight": 4},
    }
    organization = await world.made("/organizations", fields)
    assert organization.items() >= fields.items()
    path = f"/organizations/{organization['id']}"
    assert await world.shown(path) == organization

    changed = await world.made(path, {"name": "Acme 2", "limits": {"max_in_flight": 9}, "tax_id": None})
    limits = {"requests_per_minute": 60, "tokens_per_minute": None, "max_in_flight": 9}
    assert changed == organization | {"name": "Acme 2", "limits": limits, "tax_id": None}

    closed = await world.made(f"{path}/close")
    assert closed["closed_at"] is not None
    assert await world.made(f"{path}/close") == closed
    assert refusal(await world.post(path, {"name": "again"}))[0] == 409
    assert refusal(await world.post(f"{path}/projects", {"name": "p"}))[0] == 409
    assert refusal(await world.post(f"{path}/credit_grants", {"amount": {"amount": "1", "currency": "EUR"}}))[0] == 409


ORGANIZATIONS: dict[str, tuple[dict[str, Any], int]] = {
    "a currency without a ledger": ({"currency": "GBP"}, 422),
    "no such time zone": ({"timezone": "Mars/Olympus"}, 422),
    "no name": ({"name": ""}, 422),
    "a long name": ({"name": "x" * 201}, 422),
    "NUL in the name": ({"name": "a\0b"}, 422),
    "a line break in the name": ({"name": "a\r\nX: y"}, 422),
    "a lone surrogate in the name": ({"name": "\ud800"}, 422),
    "prepaid with a credit limit": ({"credit_limit": usd("5")}, 400),
    "a negative limit": ({"billing_mode": "postpaid", "credit_limit": usd("-5")}, 400),
    "a limit beyond the ledger": ({"billing_mode": "postpaid", "credit_limit": usd("9" * 20)}, 400),
    "a limit in floats": ({"billing_mode": "postpaid", "credit_limit": usd("1e3")}, 400),
    "in another money": ({"billing_mode": "postpaid", "credit_limit": {"amount": "5", "currency": "EUR"}}, 400),
    "a JSON number as money": ({"credit_limit": {"amount": 5, "currency": "USD"}}, 422),
    "a negative rate": ({"limits": {"requests_per_minute": -1}}, 422),
    "a rate beyond its column": ({"limits": {"requests_per_minute": 2**40}}, 422),
}


async def test_what_no_organization_can_be(world: World, subtests: pytest.Subtests) -> None:
    for name, (fields, status) in ORGANIZATIONS.items():
        with subtests.test(name):
            content = json.dumps({"name": "Acme"} | fields)
            headers = world.headers({"content_type": "application/json"})
            response = await world.client.post("/operator/v1/organizations", content=content, headers=headers)
            assert response.status_code == status, response.text
            assert await world.count("organization") == 0


async def test_the_credit_limit_follows_the_mode(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}"
    assert refusal(await world.post(path, {"credit_limit": usd("5")}))[:2] == (400, "credit_limit")
    changed = await world.made(path, {"billing_mode": "postpaid", "credit_limit": usd("5")})
    assert changed["credit_limit"] == usd("5.000000000")
    assert refusal(await world.post(path, {"billing_mode": "prepaid"}))[0] == 400
    changed = await world.made(path, {"billing_mode": "prepaid", "credit_limit": usd("0")})
    assert changed["credit_limit"] == usd("0.000000000")


@pytest.mark.usefixtures("open_shards")
async def test_credit_is_spendable_at_once_and_can_be_taken_back(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}"
    zero = usd("0.000000000")
    assert (await world.shown(f"{path}/balance"))["available"] == zero

    grant = await world.made(f"{path}/credit_grants", {"amount": usd("5"), "kind": "paid"})
    assert grant["amount"] == grant["remaining"] == usd("5.000000000")
    balance = await world.shown(f"{path}/balance")
    assert balance == {
        "object": "balance",
        "currency": "USD",
        "balance": usd("5.000000000"),
        "held": zero,
        "available": usd("5.000000000"),
        "credit_limit": zero,
    }
    assert (await world.shown(f"{path}/credit_grants"))["data"] == [grant]

    voided = await world.made(f"{path}/credit_grants/{grant['id']}/void")
    assert voided["voided_at"] is not None
    assert voided["remaining"] == zero
    assert await world.made(f"{path}/credit_grants/{grant['id']}/void") == voided
    assert (await world.shown(f"{path}/balance"))["available"] == zero
    # Another organization's grant is not found under this one.
    other = await world.organization()
    assert refusal(await world.post(f"/organizations/{other['id']}/credit_grants/{grant['id']}/void"))[0] == 404


async def test_a_grant_is_committed_although_redis_knows_no_epoch(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}"
    await world.made(f"{path}/credit_grants", {"amount": usd("5")})
    assert await world.count("credit_grant") == 1
    assert refusal(await world.get(f"{path}/balance"))[0] == 503


GRANTS: dict[str, dict[str, Any]] = {
    "nothing": {"amount": usd("0")},
    "less than nothing": {"amount": usd("-1")},
    "below the ledger unit": {"amount": usd("0.0000000001")},
    "another currency": {"amount": {"amount": "1", "currency": "EUR"}},
    "expired": {"amount": usd("1"), "expires_at": "2020-01-01T00:00:00Z"},
}


async def test_what_no_grant_can_be(world: World, subtests: pytest.Subtests) -> None:
    organization = await world.organization()
    for name, fields in GRANTS.items():
        with subtests.test(name):
            response = await world.post(f"/organizations/{organization['id']}/credit_grants", fields)
            assert response.status_code == 400, response.text
            assert await world.count("posting") == 0


async def test_a_scope_limits_a_grant(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}/credit_grants"
    grant = await world.made(path, {"amount": usd("1"), "scope": {"models": ["tiny"]}, "kind": "promo"})
    assert grant["scope"] == {"models": ["tiny"]}
    assert (await world.post(path, {"amount": usd("1"), "scope": {"users": ["u"]}})).status_code == 422


async def test_a_project_is_created_changed_and_archived(world: World) -> None:
    project = await world.project()
    path = f"/projects/{project['id']}"
    changed = await world.made(path, {"name": "Two", "limits": {"requests_per_minute": 5}})
    assert (changed["name"], changed["limits"]["requests_per_minute"]) == ("Two", 5)
    assert await world.shown(path) == changed
    listed = await world.shown(f"/organizations/{project['organization_id']}/projects")
    assert listed["data"] == [changed]
    archived = await world.made(f"{path}/archive")
    assert archived["archived_at"] is not None
    assert refusal(await world.post(f"{path}/api_keys", {"name": "late"}))[0] == 409


async def test_an_api_key_is_shown_once_and_works(world: World) -> None:
    await world.model()
    key = await world.api_key(models=["tiny"], limits={"requests_per_minute": 7})
    assert well_formed(key["value"]) is KeyKind.API
    [listed] = (await world.shown(f"/projects/{key['project_id']}/api_keys"))["data"]
    assert listed == {name: value for name, value in key.items() if name != "value"}
    principal = await world.parts.keys.principal(key["value"])
    assert str(principal.api_key_id) == key["id"]
    assert principal.models == frozenset({"tiny"})
    assert principal.key_limits.requests_per_minute == 7


async def test_a_key_is_bound_to_endpoints_and_networks(world: World) -> None:
    key = await world.api_key(endpoints=["/v1/embeddings"], networks=["10.0.0.0/8", "2001:DB8::1"])
    assert (key["endpoints"], key["networks"]) == (["/v1/embeddings"], ["10.0.0.0/8", "2001:db8::1/128"])
    scope = (await world.parts.keys.principal(key["value"])).scope
    assert scope is not None
    assert scope.endpoints == frozenset({"/v1/embeddings"})
    assert scope.networks == (ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128"))
    path = f"/projects/{key['project_id']}/api_keys/{key['id']}"
    await world.made(path, {"endpoints": None, "networks": None})
    assert (await world.parts.keys.principal(key["value"])).scope is None
    wrongs: list[dict[str, Any]] = [{"endpoints": ["/v1/none"]}, {"networks": ["10.0.0.0/33"]}, {"networks": []}]
    for wrong in wrongs:
        assert refusal(await world.post(path, wrong))[0] == 422


async def test_a_rotated_key_has_the_same_bounds_and_counts(world: World, clock: MovableClock) -> None:
    await world.model()
    bounds = {"models": ["tiny"], "networks": ["10.0.0.0/8"], "limits": {"requests_per_minute": 7}}
    key = await world.api_key(**bounds)
    path = f"/projects/{key['project_id']}/api_keys"
    limit = {"amount": usd("1.000000000"), "api_key_id": key["id"]}
    await world.made(f"/organizations/{key['organization_id']}/spend_limits", limit)
    new = await world.made(f"{path}/{key['id']}/rotate", {"overlap_seconds": 60}, idempotency_key="once")
    assert await world.made(f"{path}/{key['id']}/rotate", {"overlap_seconds": 60}, idempotency_key="once") == new
    assert {name: new[name] for name in bounds} == {name: key[name] for name in bounds}
    assert new["value"] != key["value"]
    old, next_one = [await world.parts.keys.principal(each["value"]) for each in (key, new)]
    assert next_one.counted_as == old.api_key_id
    assert next_one.spend_limits == old.spend_limits != ()
    clock.move(timedelta(seconds=61))
    with pytest.raises(NotAuthenticated):
        await world.parts.keys.principal(key["value"])
    third = await world.made(f"{path}/{new['id']}/rotate", {"overlap_seconds": 0})
    assert (await world.parts.keys.principal(third["value"])).counted_as == old.api_key_id, "the first of them counts"
    # A limit that is set for a successor is one of the whole line.
    again = {"amount": usd("2.000000000"), "api_key_id": third["id"]}
    changed = await world.made(f"/organizations/{key['organization_id']}/spend_limits", again)
    assert changed["api_key_id"] == key["id"]
    assert refusal(await world.post(f"{path}/{key['id']}/rotate", {}))[0] == 409
    await world.made(f"{path}/{third['id']}/revoke")
    assert refusal(await world.post(f"{path}/{third['id']}/rotate", {}))[0] == 409
    assert refusal(await world.post(f"{path}/{third['project_id']}/rotate", {}))[0] == 404


async def test_a_rotated_admin_key(world: World, clock: MovableClock) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}/admin_keys"
    old = await world.made(path, {"name": "a"})
    new = await world.made(f"{path}/{old['id']}/rotate", {"overlap_seconds": 60})
    assert (new["name"], new["expires_at"]) == ("a", None)
    await world.parts.keys.admin(old["value"])
    await world.parts.keys.admin(new["value"])
    clock.move(timedelta(seconds=61))
    with pytest.raises(NotAuthenticated):
        await world.parts.keys.admin(old["value"])


async def test_a_key_names_only_models_that_exist(world: World) -> None:
    project = await world.project()
    response = await world.post(f"/projects/{project['id']}/api_keys", {"name": "k", "models": ["gpt-9"]})
    assert refusal(response)[:2] == (400, "models")


async def test_changed_limits_are_seen_by_the_next_call(world: World) -> None:
    key = await world.api_key()
    await world.parts.keys.principal(key["value"])
    path = f"/projects/{key['project_id']}/api_keys/{key['id']}"
    await world.made(path, {"limits": {"tokens_per_minute": 3}, "models": None})
    assert (await world.parts.keys.principal(key["value"])).key_limits.tokens_per_minute == 3


async def test_a_revoked_key_stops(world: World) -> None:
    key = await world.api_key()
    await world.parts.keys.principal(key["value"])
    path = f"/projects/{key['project_id']}/api_keys/{key['id']}"
    revoked = await world.made(f"{path}/revoke")
    assert await world.made(f"{path}/revoke") == revoked
    with pytest.raises(NotAuthenticated):
        await world.parts.keys.principal(key["value"])
    assert refusal(await world.post(path, {"name": "again"}))[0] == 409


async def test_a_key_is_not_found_under_another_project(world: World) -> None:
    key, other = await world.api_key(), await world.project()
    for action in ("", "/revoke"):
        response = await world.post(f"/projects/{other['id']}/api_keys/{key['id']}{action}", {} if not action else None)
        assert refusal(response)[0] == 404
    assert (await world.parts.keys.principal(key["value"])).project_id is not None


@pytest.mark.parametrize("end", ["close", "archive", "revoke", "expire"])
async def test_a_key_ends_with_what_it_belongs_to(world: World, clock: MovableClock, end: str) -> None:
    key = await world.api_key(expires_at=(clock.now() + timedelta(days=1)).isoformat())
    match end:
        case "close":
            await world.made(f"/organizations/{key['organization_id']}/close")
        case "archive":
            await world.made(f"/projects/{key['project_id']}/archive")
        case "revoke":
            await world.made(f"/projects/{key['project_id']}/api_keys/{key['id']}/revoke")
        case _:
            clock.move(timedelta(days=1))
    async with world.parts.engine.connect() as connection:
        assert await find_api_key(connection, digest(key["value"], PEPPER), clock.now()) is None
    with pytest.raises(NotAuthenticated):
        await world.parts.keys.principal(key["value"])


async def test_an_admin_key_belongs_to_one_organization(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}/admin_keys"
    key = await world.made(path, {"name": "boss"})
    assert str((await world.parts.keys.admin(key["value"])).organization_id) == organization["id"]
    assert "value" not in (await world.shown(path))["data"][0]
    other = await world.organization()
    assert refusal(await world.post(f"/organizations/{other['id']}/admin_keys/{key['id']}/revoke"))[0] == 404
    await world.made(f"{path}/{key['id']}/revoke")
    with pytest.raises(NotAuthenticated):
        await world.parts.keys.admin(key["value"])


async def test_an_operator_key_cannot_revoke_itself(world: World) -> None:
    [own] = (await world.shown("/operator_keys"))["data"]
    assert refusal(await world.post(f"/operator_keys/{own['id']}/revoke"))[0] == 409


async def test_lists_are_paged_by_their_last_id(world: World) -> None:
    names = [f"Org {number}" for number in range(5)]
    for name in names:
        await world.organization(name=name)
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await world.shown("/organizations", limit=2, **after)
        assert (page["object"], page["first_id"]) == ("list", page["data"][0]["id"])
        seen += [each["name"] for each in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    # Ids of one millisecond have no order, so the set is what a caller may rely on.
    assert sorted(seen) == names
    empty = await world.shown("/backends")
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_no_secret_is_stored(world: World) -> None:
    key = await world.api_key()
    path = f"/projects/{key['project_id']}/api_keys"
    again = await world.made(path, {"name": "second"}, idempotency_key="k-1")
    backend = {"name": "b", "kind": "vllm", "url": "http://127.0.0.1:9", "credential": "hush-hush"}
    await world.made("/backends", backend, idempotency_key="k-2")
    async with world.parts.engine.connect() as connection:
        for table in ("audit_log", "idempotency", "api_key"):
            rows = (await connection.execute(text(f"select {table}::text from {table}"))).scalars().all()
            for secret in (key["value"], again["value"], "hush-hush"):
                assert not any(secret in row for row in rows), table
