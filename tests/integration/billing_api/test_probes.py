"""Probes: alive is not ready, ready means that calls can be paid, and no probe waits for a part that hangs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update

from billing.hot.store import make_hot_store
from billing.store.engine import make_engine
from gateway.api.probes import POSTGRES_GRACE_SECONDS, Readiness, internal_app
from gateway.parts import Parts
from models.tables import shard
from tests.conftest import RedisProcess
from tests.integration.billing_api.world import World, open_shards

pytestmark = pytest.mark.anyio


async def test_alive_and_ready(world: World) -> None:
    assert (await world.client.get("/healthz")).json() == {"status": "ok"}
    answer = await world.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "missing": []})


async def test_a_gateway_that_was_never_set_up_says_what_is_missing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert [one["part"] for one in answer.json()["missing"]] == ["redis", "catalog"]
    assert int(answer.headers["retry-after"]) >= 1
    assert (await client.get("/healthz")).status_code == 200


async def test_another_epoch_is_not_ready(world: World, parts: Parts) -> None:
    async with parts.engine.begin() as connection:
        await connection.execute(update(shard).where(shard.c.id == 3).values(epoch=99))
    await parts.catalog.refresh(force=True)
    missing = await Readiness(parts).missing()
    assert missing == {"redis": "1 of 16 shards wait for a worker to build their balances."}


async def test_draining_is_not_ready(world: World, app: FastAPI) -> None:
    app.state.readiness.drain()
    answer = await world.client.get("/readyz")
    assert answer.status_code == 503
    assert [one["part"] for one in answer.json()["missing"]] == ["gateway"]


@pytest.fixture
async def lonely(parts: Parts, redis_process: RedisProcess) -> AsyncIterator[Parts]:
    """Parts with a Redis of their own, which the test may hang."""
    hot = await make_hot_store(redis_process.url)
    await open_shards(parts.engine, hot)
    await parts.catalog.refresh(force=True)
    yield replace(parts, hot=hot)
    await hot.close()


async def test_a_hung_redis_is_told_within_two_seconds(lonely: Parts, redis_process: RedisProcess) -> None:
    readiness = Readiness(lonely)
    assert await readiness.missing() == {}
    redis_process.pause()
    lonely_again = Readiness(lonely)
    start = time.monotonic()
    missing = await lonely_again.missing()
    assert time.monotonic() - start < 2
    assert list(missing) == ["redis"]


async def test_postgres_may_be_away_for_a_moment(world: World, parts: Parts) -> None:
    now = 1_000.0
    readiness = Readiness(parts, monotonic=lambda: now)
    assert await readiness.missing() == {}
    engine = make_engine("postgresql://nobody:nothing@127.0.0.1:1/nothing")
    parts.engine, original = engine, parts.engine
    try:
        now += POSTGRES_GRACE_SECONDS - 1
        assert await readiness.missing() == {}
        now += 2
        assert await readiness.missing() == {"postgres": "It cannot be reached."}
    finally:
        parts.engine = original
        await engine.dispose()


async def test_a_flood_of_probes_is_one_look(world: World, parts: Parts) -> None:
    looks = 0

    class Counted(Readiness):
        async def _check(self) -> dict[str, str]:
            nonlocal looks
            looks += 1
            return await super()._check()

    readiness = Counted(parts)
    for _ in range(50):
        assert await readiness.missing() == {}
    assert looks <= 3


async def test_metrics_are_on_the_internal_port_only(world: World, parts: Parts) -> None:
    assert (await world.client.get("/metrics")).status_code == 404
    transport = httpx.ASGITransport(internal_app(parts))
    async with httpx.AsyncClient(transport=transport, base_url="http://internal") as internal:
        assert (await internal.get("/healthz")).status_code == 200
        assert (await internal.get("/readyz")).status_code == 200
        metrics = await internal.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert 'tollgate_part_up{part="redis"} 1.0' in metrics.text
        assert "tollgate_calls_in_flight" in metrics.text
        assert (await internal.get("/docs")).status_code == 404
