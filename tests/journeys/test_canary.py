"""An operator moves all customers to a new version by way of a canary, and back, while they call."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.scripted import DONE, Asked, end, open_stream, said, scripted_backend, send, usage
from tests.stage import ALWAYS, PRICES, Stage, Tenant, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CALLERS = 16
CALLS_A_PHASE = 400
SERVED = {"old-gpu": "chat-2026-05", "new-gpu": "chat-2026-11"}
"""The version that is served by each deployment."""


@pytest.fixture
async def stage(postgres: Database, redis: Redis) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        yield stage


async def takes_a_moment(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answers in a few milliseconds, so that calls run while an alias is moved."""
    await open_stream(writer)
    await send(writer, said("he"))
    await asyncio.sleep(0.005)
    await send(writer, said("llo", finish="stop"), usage(5, 2), DONE)
    await end(writer)


@dataclass(slots=True)
class Crowd:
    """Customers who call without a pause, each time another of their users; what became of each call, by its id."""

    stage: Stage
    tenant: Tenant
    users: itertools.count[int] = field(default_factory=itertools.count)
    statuses: list[int] = field(default_factory=list)
    user_of: dict[str, str] = field(default_factory=dict)
    is_over: bool = False

    async def call(self, user: str, *, stream: bool = False) -> str:
        """One call of a user; its id."""
        message = {"role": "user", "content": f"hello from {user}"}
        body = {"model": "chat", "messages": [message], "max_tokens": 5, "stream": stream, "user": user}
        url = f"{self.stage.base_url}/v1/chat/completions"
        reply = await self.stage.client.post(url, json=body, headers=self.tenant.headers)
        assert reply.text.endswith("data: [DONE]\n\n") if stream else reply.json()["model"] == "chat"
        self.statuses.append(reply.status_code)
        self.user_of[reply.headers["x-request-id"]] = user
        return str(reply.headers["x-request-id"])

    async def keep_calling(self) -> None:
        while not self.is_over:
            number = next(self.users)
            await self.call(f"user {number}", stream=number % 2 == 0)

    async def phase(self) -> set[str]:
        """The ids of the calls that are made from now on, once there are enough of them."""
        before = set(self.user_of)

        async def are_enough() -> bool:
            return len(self.user_of) - len(before) >= CALLS_A_PHASE

        await eventually(are_enough, 60)
        return set(self.user_of) - before


async def open_shop(stage: Stage, old_url: str, new_url: str) -> None:
    for (backend, version), url in zip(SERVED.items(), (old_url, new_url), strict=True):
        await stage.operate("POST", "/backends", json={"name": backend, "kind": "openai", "url": url})
        deployment = {"backend": backend, "backend_model": version}
        await stage.operate(
            "POST", "/models", json={"id": version, "context_length": 4096, "deployments": [deployment]}
        )
    for meter, price in PRICES.items():
        row = {"model": "chat-2026-05", "meter": meter, "price_per_million": price, "effective_from": ALWAYS}
        await stage.operate("POST", "/prices", json=row)
    body = {"id": "chat", "targets": [{"model": "chat-2026-05"}], "prices_of": "chat-2026-05"}
    await stage.operate("POST", "/aliases", json=body)


def weighed(old: int, new: int) -> dict[str, Any]:
    return {"targets": [{"model": "chat-2026-05", "weight": old}, {"model": "chat-2026-11", "weight": new}]}


async def test_a_canary_to_all_and_back_under_load(stage: Stage) -> None:
    tenant = await stage.tenant()
    async with scripted_backend(takes_a_moment) as old, scripted_backend(takes_a_moment) as new:
        await open_shop(stage, old.url, new.url)
        crowd = Crowd(stage, tenant)
        callers = [asyncio.create_task(crowd.keep_calling()) for _ in range(CALLERS)]
        phases = {"before": await crowd.phase()}
        for name, move in (
            ("a tenth", weighed(90, 10)),
            ("all", weighed(0, 100)),
            ("back to a tenth", {"back": True}),
            ("none", weighed(1, 0)),
        ):
            await stage.operate("POST", "/aliases/chat", json=move)
            phases[name] = await crowd.phase()
        crowd.is_over = True
        await asyncio.gather(*callers)
        assert set(crowd.statuses) == {200}
        asked = {
            "old-gpu": {each.body["model"] for each in old.asked},
            "new-gpu": {each.body["model"] for each in new.asked},
        }
        assert asked == {name: {version} for name, version in SERVED.items()}

        charges = {each["call_id"]: each for each in await stage.charges(tenant, len(crowd.user_of))}
        assert charges.keys() == crowd.user_of.keys(), "one charge for each call"
        for charge in charges.values():
            assert (charge["model"], charge["ending"]) == ("chat", "finished")
            assert charge.get("version", SERVED[charge["deployment"]]) == SERVED[charge["deployment"]]
        for name, share in (("before", 0.0), ("a tenth", 0.1), ("all", 1.0), ("back to a tenth", 0.1), ("none", 0.0)):
            calls = phases[name]
            # Calls that were admitted before the move may end after it: as many as there are callers.
            found = sum(charges[each]["deployment"] == "new-gpu" for each in calls)
            spread = 4 * (len(calls) * share * (1 - share)) ** 0.5 + CALLERS
            assert abs(found - share * len(calls)) <= spread, (name, found, len(calls))
        await stage.verified(tenant)


async def test_a_user_stays_with_a_version_until_moved(stage: Stage) -> None:
    tenant = await stage.tenant()
    async with scripted_backend() as old, scripted_backend() as new:
        await open_shop(stage, old.url, new.url)
        crowd = Crowd(stage, tenant)
        users = [f"user {number}" for number in range(40)]
        served: list[dict[str, str]] = []
        for move in (weighed(50, 50), weighed(50, 50), weighed(10, 90)):
            await stage.operate("POST", "/aliases/chat", json=move)
            ids = {await crowd.call(user): user for user in users}
            made = {each["call_id"]: each for each in await stage.charges(tenant, len(crowd.user_of))}
            served.append({user: made[call_id]["deployment"] for call_id, user in ids.items()})
        first, again, moved = served
        assert first == again
        assert set(first.values()) == {"old-gpu", "new-gpu"}
        assert all(moved[user] == "new-gpu" for user in users if first[user] == "new-gpu")
        assert set(moved.values()) == {"old-gpu", "new-gpu"}
