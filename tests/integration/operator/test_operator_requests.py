"""One request, one transaction: idempotency keys, the audit log, and what happens when a store is away."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from billing.store.idempotency import Claim, claim
from models.errors import Conflict
from tests.integration.operator.world import World, refusal
from tests.rooms import MovableClock

pytestmark = pytest.mark.anyio

FIVE = {"amount": {"amount": "5", "currency": "USD"}}


async def test_a_repeated_request_has_one_effect_and_one_answer(world: World) -> None:
    first = await world.made("/organizations", {"name": "Acme"}, idempotency_key="a")
    second = await world.made("/organizations", {"name": "Acme"}, idempotency_key="a")
    assert first == second
    assert await world.count("organization") == 1
    assert await world.count("audit_log") == 1


async def test_a_repeated_request_shows_the_new_key_again(world: World) -> None:
    project = await world.project()
    path = f"/projects/{project['id']}/api_keys"
    first = await world.made(path, {"name": "k"}, idempotency_key="a")
    assert await world.made(path, {"name": "k"}, idempotency_key="a") == first
    assert first["value"].startswith("tg_live_")
    assert await world.count("api_key") == 1


async def test_an_idempotency_key_is_of_one_request(world: World) -> None:
    await world.made("/organizations", {"name": "Acme"}, idempotency_key="a")
    for path, body in (("/organizations", {"name": "Other"}), ("/operator_keys", {"name": "Acme"})):
        status, _, message = refusal(await world.post(path, body, idempotency_key="a"))
        assert status == 409
        assert "another request" in message


async def test_an_idempotency_key_is_of_one_operator(world: World) -> None:
    await world.made("/organizations", {"name": "Acme"}, idempotency_key="a")
    other = await world.made("/operator_keys", {"name": "second"})
    response = await world.post(
        "/organizations", {"name": "Acme"}, idempotency_key="a", authorization=f"Bearer {other['value']}"
    )
    assert response.status_code == 200
    assert await world.count("organization") == 2


async def test_a_request_that_failed_can_be_repeated(world: World) -> None:
    body = {"name": "k", "models": ["tiny"]}
    project = await world.project()
    path = f"/projects/{project['id']}/api_keys"
    assert refusal(await world.post(path, body, idempotency_key="a"))[0] == 400
    await world.model()
    await world.made(path, body, idempotency_key="a")


async def test_of_concurrent_repeats_one_takes_effect(world: World) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}/credit_grants"
    responses = await asyncio.gather(*(world.post(path, FIVE, idempotency_key="a") for _ in range(8)))
    assert {response.status_code for response in responses} <= {200, 409}
    assert len({response.text for response in responses if response.status_code == 200}) == 1
    assert await world.count("credit_grant") == 1


async def test_a_request_that_still_runs_is_a_conflict(world: World, clock: MovableClock) -> None:
    claimed = Claim("operator:x", "a", b"digest")
    async with world.parts.engine.begin() as running, world.parts.engine.begin() as second:
        assert await claim(running, claimed, clock.now()) is None
        with pytest.raises(Conflict, match="still running"):
            await claim(second, claimed, clock.now())


async def test_money_is_not_given_twice_after_the_answer_was_dropped(world: World, clock: MovableClock) -> None:
    organization = await world.organization()
    path = f"/organizations/{organization['id']}/credit_grants"
    first = await world.made(path, FIVE, idempotency_key="a")
    clock.move(timedelta(days=2))
    assert (await world.made(path, FIVE, idempotency_key="a"))["id"] == first["id"]
    assert await world.count("credit_grant") == 1
    async with world.parts.engine.connect() as connection:
        ages = await connection.execute(text("select created_at from idempotency"))
        assert all(moment > clock.now() - timedelta(days=1) for moment in ages.scalars())


async def test_an_idempotency_key_is_bounded(world: World) -> None:
    for key in ("", "x" * 256):
        response = await world.post("/organizations", {"name": "Acme"}, idempotency_key=key)
        assert refusal(response)[:2] == (400, "idempotency-key")


async def test_a_change_and_its_audit_entry_commit_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    organization = await world.organization()
    [entry] = (await world.shown("/audit_logs"))["data"]
    assert (
        entry.items()
        >= {
            "action": "organization.created",
            "subject": f"organization:{organization['id']}",
            "organization_id": organization["id"],
            "detail": {"name": "Acme", "currency": "USD"},
        }.items()
    )
    assert entry["actor"].startswith("operator:")

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the audit log cannot be written")

    monkeypatch.setattr("gateway.api.transactions.write_audit", fail)
    assert (await world.post("/organizations", {"name": "B"})).status_code == 500
    assert await world.count("organization") == 1


async def test_the_audit_log_is_newest_first_and_filtered(world: World) -> None:
    project = await world.project()
    await world.organization(name="Other")
    everything = await world.shown("/audit_logs")
    actions = [entry["action"] for entry in everything["data"]]
    assert actions == ["organization.created", "project.created", "organization.created"]
    ours = await world.shown("/audit_logs", organization_id=project["organization_id"], limit=1)
    assert [entry["action"] for entry in ours["data"]] == ["project.created"]
    assert ours["has_more"]
    rest = await world.shown("/audit_logs", organization_id=project["organization_id"], after=ours["last_id"])
    assert [entry["action"] for entry in rest["data"]] == ["organization.created"]
    assert (await world.shown("/audit_logs", action="project.created"))["data"] == ours["data"]


async def test_without_postgres_a_known_operator_gets_a_clear_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.organization()
    await world.parts.engine.dispose()
    monkeypatch.setattr(world.parts.engine.sync_engine.dialect, "connect", _refused)
    for response in (await world.get("/organizations"), await world.post("/organizations", {"name": "B"})):
        status, _, message = refusal(response)
        assert status == 503
        assert "again" in message


def _refused(*_: object, **__: object) -> object:
    raise ConnectionRefusedError


@pytest.mark.usefixtures("open_shards")
async def test_the_promises_can_be_checked(world: World) -> None:
    organization = await world.organization()
    await world.made(f"/organizations/{organization['id']}/credit_grants", FIVE)
    report = await world.shown("/verify")
    assert (report["object"], report["ok"]) == ("verification", True)
    assert {check["promise"] for check in report["checks"]} == {"P1", "P2", "P3", "P4", "P5", "P6", "P7"}
    rows = {check["name"]: (check["rows"], check["wrong"], check["unit"]) for check in report["checks"]}
    assert rows["grants"] == (1, 0, "grants")
