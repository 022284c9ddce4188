"""A fault of our own in the middle of a call: it is logged, and the call's money is not left hanging."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.calls.metering import Meter
from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.scripted import scripted_backend
from tests.stage import Stage, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


@pytest.fixture
async def stage(postgres: Database, redis: Redis) -> AsyncIterator[Stage]:
    async with scripted_backend() as backend, raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


async def test_a_bug_while_measuring_leaves_nothing_held(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await stage.tenant()
    measure = Meter.measure
    failures = iter([RuntimeError("a bug")])

    def broken(meter: Meter, *arguments: object, **options: object) -> object:
        for failure in failures:
            raise failure
        return measure(meter, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Meter, "measure", broken)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    url = f"{stage.base_url}/v1/chat/completions"
    async with stage.client.stream("POST", url, json=body, headers=tenant.headers) as answer:
        text = await answer.aread()
    assert b"[DONE]" not in text
    await stage.quiet()
    assert parse_amount((await stage.balance(tenant))["held"]["amount"], "USD") == 0
