"""A limit on what a month may cost: set by the operator, kept by the hold, told to the developer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from billing.hot.connection import HotConnection
from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.scripted import scripted_backend
from tests.stage import Stage, Tenant, eventually, raise_curtain

pytestmark = pytest.mark.anyio


async def limited(stage: Stage, tenant: Tenant, amount: str, expect: int = 200, **scope: Any) -> dict[str, Any]:
    """Set a limit of so many dollars."""
    body = {"amount": {"amount": amount, "currency": "USD"}, **scope}
    path = f"/organizations/{tenant.organization_id}/spend_limits"
    return dict(await stage.operate("POST", path, expect, json=body))


async def refused(stage: Stage, tenant: Tenant) -> bool:
    """Whether a call is refused by a limit now; one that passes is fine while a gateway has not heard of it."""
    answer = await stage.chat(tenant)
    assert answer.status_code in (200, 402, 503), answer.text
    return answer.status_code == 402


async def test_a_limit_is_kept_and_told(postgres: Database, redis: Redis) -> None:
    async with scripted_backend() as backend, raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant, other = await stage.tenant(), await stage.tenant()
        assert (await stage.chat(tenant)).status_code == 200
        [charge] = await stage.charges(tenant, 1)

        limit = await limited(stage, tenant, "0.000010", project_id=tenant.project_id)
        month = datetime.now(UTC).strftime("%Y-%m")
        assert limit["month"] == month
        assert limit["spent"] == charge["amount"]
        await eventually(lambda: refused(stage, tenant))
        asked = len(backend.asked)
        answer = await stage.chat(tenant)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (402, "spend_limit_reached", "insufficient_quota")
        assert f"is left of what the project may spend in {month}" in error["message"]
        assert len(backend.asked) == asked, "no backend was asked"
        assert parse_amount((await stage.balance(tenant))["held"]["amount"], "USD") == 0, "and nothing is held"
        assert (await stage.chat(other)).status_code == 200, "the limit is the tenant's own"

        # In a Redis that lost everything the count begins at what is booked.
        connection = await HotConnection.connect(redis.url)
        await connection.execute("FLUSHALL")
        await connection.close()
        await eventually(lambda: refused(stage, tenant))

        raised = await limited(stage, tenant, "1", project_id=tenant.project_id)
        assert [each["id"] for each in await listed(stage, tenant)] == [raised["id"]], "one limit a scope"

        async def passes() -> bool:
            return (await stage.chat(tenant)).status_code == 200

        await eventually(passes)
        await stage.operate("POST", f"/organizations/{tenant.organization_id}/spend_limits/{raised['id']}/remove")
        assert await listed(stage, tenant) == []
        await stage.verified(tenant, other)


async def listed(stage: Stage, tenant: Tenant) -> list[dict[str, Any]]:
    """The limits in force."""
    return list((await stage.operate("GET", f"/organizations/{tenant.organization_id}/spend_limits"))["data"])


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        pytest.param({"amount": {"amount": "-1", "currency": "USD"}}, 400, "must not be negative", id="below zero"),
        pytest.param({"amount": {"amount": "1", "currency": "KRW"}}, 400, "currency", id="another currency"),
        pytest.param({"project_id": "01a21d2f-0670-78dc-a38d-919bebbc8b5a"}, 404, "no such project", id="no project"),
        pytest.param(
            {"api_key_id": "01a21d2f-0670-78dc-a38d-919bebbc8b5a"}, 404, "no such project or key", id="no key"
        ),
        pytest.param({"alert_percents": [0]}, 422, "alert_percents", id="no percent"),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(
    postgres: Database, redis: Redis, change: dict[str, Any], status: int, told: str
) -> None:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        tenant = await stage.tenant(None)
        path = f"/organizations/{tenant.organization_id}/spend_limits"
        body = {"amount": {"amount": "1", "currency": "USD"}} | change
        answer = await stage.operate("POST", path, status, json=body)
        assert told in answer["error"]["message"] or told in str(answer["error"]["param"])
        assert await listed(stage, tenant) == []
