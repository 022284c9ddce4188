"""Balance, grants, charges and receipts, as developers and administrators read them, and never another tenant's."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest

from billing.booking import correction_id
from billing.settlement import void_grant
from gateway.parts import Parts
from models.call import Charge
from models.ids import uuid7
from models.usage import Ending
from tests.integration.billing_api.world import MONDAY, Tenant, World, make_charge
from tests.stage import mistyped

pytestmark = pytest.mark.anyio

RECEIPT_FIELDS = frozenset(
    {
        "call_id",
        "created_at",
        "ended_at",
        "organization_id",
        "project_id",
        "api_key_id",
        "end_user",
        "endpoint",
        "model",
    }
    | {"deployment", "streamed", "ending", "usage_source", "input_tokens", "cached_tokens", "cache_write_tokens"}
    | {"output_tokens", "reasoning_tokens", "amount", "hold", "price_version_ids", "funding", "reported", "counted"}
    | {"corrects", "corrected_by", "images", "audio_seconds", "batch", "version"}
)
GRANT_FIELDS = frozenset(
    {"id", "kind", "amount", "remaining", "priority", "effective_at", "expires_at", "scope", "voided_at"}
)


def _calls(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [charge["call_id"] for charge in answer.json()["data"]]


async def test_balance(world: World) -> None:
    await world.settle(make_charge(world.ours, world.clock.now()))
    for key in (world.ours.api_key, world.ours.admin_key):
        balance = (await world.get("/v1/billing/balance", key)).json()
        assert balance["currency"] == "USD"
        assert balance["balance"] == {"amount": "4.999999300", "currency": "USD"}
        assert balance["held"] == {"amount": "0.000000000", "currency": "USD"}
        assert balance["available"] == {"amount": "4.999999300", "currency": "USD"}
        assert balance["credit_limit"] == {"amount": "0.000000000", "currency": "USD"}
        assert balance["as_of"].endswith("Z")


async def test_balance_is_503_while_redis_is_away(world: World, parts: Parts) -> None:
    await parts.hot.close()
    answer = await world.get("/v1/billing/balance", world.ours.api_key)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


async def test_credit_grants(world: World) -> None:
    answer = (await world.get("/v1/billing/credit_grants", world.ours.admin_key)).json()
    (grant,) = answer["data"]
    assert (grant["kind"], grant["amount"]["amount"], grant["remaining"]["amount"]) == (
        "paid",
        "5.000000000",
        "5.000000000",
    )
    assert set(grant) >= GRANT_FIELDS
    assert (answer["object"], answer["first_id"], answer["has_more"]) == ("list", grant["id"], False)


async def test_a_grant_shows_its_draws(world: World) -> None:
    [grant] = (await world.get("/v1/billing/credit_grants", world.ours.admin_key)).json()["data"]
    path = f"/v1/billing/credit_grants/{grant['id']}/draws"
    assert (grant["rollover_max"]["amount"], grant["rolled_from"]) == ("0.000000000", None)
    assert (await world.get(path, world.ours.admin_key)).json()["data"] == []
    async with world.engine.begin() as connection:
        await void_grant(connection, UUID(grant["id"]), world.clock.now())
    for key in (world.ours.admin_key, world.ours.api_key):
        answer = (await world.get(path, key)).json()
        assert [(draw["kind"], draw["amount"]["amount"]) for draw in answer["data"]] == [("void_grant", "5.000000000")]
        assert answer["first_id"] == answer["data"][0]["id"]
    theirs = await world.get(path, world.theirs.admin_key)
    unknown = await world.get(f"/v1/billing/credit_grants/{uuid4()}/draws", world.ours.admin_key)
    assert (theirs.status_code, theirs.json()) == (404, unknown.json())
    assert (await world.client.get(path)).status_code == 401


async def test_charges_come_in_pages_without_gap_or_repeat(world: World) -> None:
    booked = [make_charge(world.ours, MONDAY + timedelta(minutes=minute)) for minute in range(5)]
    await world.book(*booked)
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer = await world.get("/v1/billing/charges", world.ours.admin_key, limit=2, **after)
        seen += _calls(answer)
        after = {"after": answer.json()["last_id"]}
        if not answer.json()["has_more"]:
            break
    assert seen == [str(charge.call_id) for charge in reversed(booked)]
    oldest_first = await world.get("/v1/billing/charges", world.ours.admin_key, order="asc")
    assert _calls(oldest_first) == seen[::-1]


@pytest.mark.parametrize(
    ("params", "found"),
    [
        pytest.param({}, {0, 1, 2}, id="all"),
        pytest.param({"created_after": "2026-03-02T12:01:00Z"}, {1, 2}, id="after is inclusive"),
        pytest.param({"created_before": "2026-03-02T12:01:00Z"}, {0}, id="before is exclusive"),
        pytest.param({"created_after": "2026-03-02", "created_before": "2026-03-03"}, {0, 1, 2}, id="a day in UTC"),
        pytest.param({"created_after": str(int(MONDAY.timestamp()) + 1)}, {1, 2}, id="unix seconds"),
        pytest.param({"model": "large"}, {2}, id="model"),
        pytest.param({"model": "'; drop table charge --"}, set(), id="no such model"),
        pytest.param({"project_id": "other"}, {1}, id="project"),
        pytest.param({"api_key_id": "own"}, {0, 1, 2}, id="API key"),
        pytest.param({"api_key_id": str(uuid4())}, set(), id="no such API key"),
    ],
)
async def test_filters(world: World, params: dict[str, str], found: set[int]) -> None:
    ours = world.ours
    booked = [
        make_charge(ours),
        make_charge(ours, MONDAY + timedelta(minutes=1), project_id=ours.other_project_id),
        make_charge(ours, MONDAY + timedelta(minutes=2), model="large"),
    ]
    await world.book(*booked)
    names = {"other": str(ours.other_project_id), "own": str(ours.api_key_id)}
    given = {name: names.get(value, value) for name, value in params.items()}
    answer = await world.get("/v1/billing/charges", ours.admin_key, **given)
    assert set(_calls(answer)) == {str(booked[number].call_id) for number in found}


@pytest.mark.parametrize(
    ("params", "status"),
    [
        pytest.param({"limit": 101}, 422, id="too many"),
        pytest.param({"limit": 0}, 422, id="none"),
        pytest.param({"order": "amount;drop"}, 422, id="SQL in order (B10)"),
        pytest.param({"after": "1 or 1=1"}, 422, id="SQL in a cursor (B10)"),
        pytest.param({"model": "a\0b"}, 422, id="NUL"),
        pytest.param({"model": "%" * 5_000}, 422, id="long text (B11)"),
        pytest.param({"created_after": "yesterday"}, 422, id="no time"),
        pytest.param({"created_after": "0001-01-01T00:00:00Z"}, 400, id="time before ids"),
    ],
)
async def test_bad_parameters(world: World, params: dict[str, str], status: int) -> None:
    answer = await world.get("/v1/billing/charges", world.ours.api_key, **params)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == next(iter(params))


async def test_receipt(world: World) -> None:
    charge = make_charge(world.ours, end_user="user-1")
    await world.book(charge)
    receipt = (await world.get(f"/v1/calls/{charge.call_id}", world.ours.api_key)).json()
    assert set(receipt) >= RECEIPT_FIELDS
    assert receipt["amount"] == {"amount": "0.000000700", "currency": "USD"}
    assert receipt["hold"] == {"amount": "0.000000900", "currency": "USD"}
    assert receipt["funding"] == [{"source": "unbilled", "amount": {"amount": "0.000000700", "currency": "USD"}}]
    assert receipt["created_at"] == "2026-03-02T12:00:00Z"
    assert (receipt["ending"], receipt["usage_source"], receipt["booked"]) == ("finished", "backend", True)
    assert receipt["reported"] == {"prompt_tokens": 10}


async def test_a_receipt_and_its_correction_name_each_other(world: World) -> None:
    plain, call = make_charge(world.ours), make_charge(world.ours, ending=Ending.RECOVERED)
    fixed = replace(call, call_id=correction_id(call.call_id), corrects=call.call_id, amount=-100)
    await world.book(plain, call)
    before = (await world.get(f"/v1/calls/{call.call_id}", world.ours.api_key)).json()
    assert before["corrected_by"] is None
    await world.book(fixed, posting_id=2)
    named = {
        plain.call_id: (None, None),
        call.call_id: (None, [str(fixed.call_id)]),
        fixed.call_id: (str(call.call_id), None),
    }
    for call_id, (corrects, corrected_by) in named.items():
        receipt = (await world.get(f"/v1/calls/{call_id}", world.ours.api_key)).json()
        assert (receipt["corrects"], receipt["corrected_by"]) == (corrects, corrected_by)
    page = (await world.get("/v1/billing/charges", world.ours.api_key)).json()
    listed = {UUID(each["call_id"]): (each["corrects"], each["corrected_by"]) for each in page["data"]}
    assert listed == named


async def test_receipt_of_a_call_that_is_settled_and_not_booked(world: World) -> None:
    now = world.clock.now()
    for _ in range(20):
        await world.settle(make_charge(world.ours, now))
    charge = make_charge(world.ours, now)
    await world.settle(charge)
    receipt = (await world.get(f"/v1/calls/{charge.call_id}", world.ours.admin_key)).json()
    assert (receipt["call_id"], receipt["booked"], receipt["funding"]) == (str(charge.call_id), False, [])


async def test_a_project_key_sees_its_own_project(world: World) -> None:
    ours = world.ours
    other = make_charge(ours, project_id=ours.other_project_id)
    unbooked = make_charge(ours, world.clock.now(), project_id=ours.other_project_id)
    await world.book(other)
    await world.settle(unbooked)
    for call in (other, unbooked):
        assert (await world.get(f"/v1/calls/{call.call_id}", ours.api_key)).status_code == 404
        assert (await world.get(f"/v1/calls/{call.call_id}", ours.admin_key)).status_code == 200
    assert _calls(await world.get("/v1/billing/charges", ours.api_key)) == []
    asked = await world.get("/v1/billing/charges", ours.api_key, project_id=str(ours.other_project_id))
    assert asked.status_code == 404


def _their_calls(theirs: Tenant, world: World) -> tuple[Charge, Charge]:
    return make_charge(theirs), make_charge(theirs, world.clock.now())


async def test_another_tenants_calls_do_not_exist(world: World) -> None:
    """B01: the answer is that of a call that never was, for every method and both kinds of key."""
    booked, settled = _their_calls(world.theirs, world)
    await world.book(booked)
    await world.settle(settled)
    for key in (world.ours.api_key, world.ours.admin_key):
        nothing = await world.get(f"/v1/calls/{uuid7(MONDAY)}", key)
        assert nothing.status_code == 404
        for call in (booked, settled):
            path = f"/v1/calls/{call.call_id}"
            answer = await world.get(path, key)
            assert (answer.status_code, answer.json()) == (404, nothing.json())
            for method in ("PATCH", "DELETE", "PUT"):
                sent = await world.client.request(method, path, headers={"x-api-key": key})
                assert sent.status_code == 404


@pytest.mark.parametrize("text", ["x", "f" * 32, f"{UUID(int=0)}", f"{UUID(int=2**128 - 1)}"])
async def test_what_is_no_id_of_a_call_is_no_call(world: World, text: str) -> None:
    for key in (world.ours.api_key, world.ours.admin_key):
        answer = await world.get(f"/v1/calls/{text}", key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_another_tenants_charges_are_in_no_list_and_no_file(world: World) -> None:
    """B04 and B05: lists and CSV of ours stay empty whatever is asked for."""
    theirs = world.theirs
    await world.book(*_their_calls(theirs, world))
    asked: tuple[dict[str, str], ...] = (
        {},
        {"api_key_id": str(theirs.api_key_id)},
        {"project_id": str(theirs.project_id)},
    )
    for params in asked:
        assert _calls(await world.get("/v1/billing/charges", world.ours.admin_key, **params)) == []
        text = (await world.get("/v1/billing/charges.csv", world.ours.admin_key, **params)).text
        assert len(text.splitlines()) == 1
    assert len(_calls(await world.get("/v1/billing/charges", theirs.admin_key))) == 2


@pytest.mark.parametrize("call_id", ["nonsense", "{0}", "00000000000000000000000000000000", "%00", "..%2f..%2fetc"])
async def test_what_is_no_id_is_no_call(world: World, call_id: str) -> None:
    assert (await world.get(f"/v1/calls/{call_id}", world.ours.api_key)).status_code == 404


async def test_who_may_read(world: World) -> None:
    for path in ("balance", "charges", "charges.csv", "credit_grants"):
        assert (await world.client.get(f"/v1/billing/{path}")).status_code == 401
        assert (await world.get(f"/v1/billing/{path}", world.operator_key)).status_code == 403
        assert (await world.get(f"/v1/billing/{path}", mistyped(world.ours.api_key))).status_code == 401
    assert (await world.client.get(f"/v1/calls/{uuid4()}")).status_code == 401


async def test_a_poisoned_entry_hides_nothing_else(world: World) -> None:
    charge = make_charge(world.ours, world.clock.now())
    await world.settle(replace(charge, call_id=uuid7(world.clock.now()), end_user=str(charge.call_id)))
    await world.settle(charge)
    receipt = await world.get(f"/v1/calls/{charge.call_id}", world.ours.api_key)
    assert receipt.json()["call_id"] == str(charge.call_id)
