"""Clocks jump, that of Redis and that of a gateway: calls go on, each is charged once, and the dead are found."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from billing.hot import store as hot_store
from billing.hot.connection import Script
from billing.hot.store import make_hot_store
from billing.sweeper import Swept, sweep_shard
from gateway import worker
from tests.chaos.form import rows
from tests.chaos.world import World, charged_once, crowd_of, world
from tests.conftest import Database, RedisProcess
from tests.integration.hot.nouns import Tenant, open_shard, placed
from tests.integration.sweeper.lives import point, sweep

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

HOUR = 3_600
DAY = 24 * HOUR


def turn(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Let every script see a clock of Redis that is off by so much: the server's own cannot be turned."""
    for name in ("_HOLD", "_SETTLE", "_VOID", "_RECOVER", "_ABANDON", "_CHECKPOINT", "_SILENT"):
        script: Script = getattr(hot_store, name)
        source = script.source.replace("tonumber(time[1])", f"(tonumber(time[1]) + {seconds})")
        assert source != script.source, name
        sha1 = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(hot_store, name, Script(source, sha1))


def turn_redis(here: World, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """The clock that holds, checkpoints and silence are measured by."""
    turn(monkeypatch, seconds)


def turn_gateway(here: World, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """The clock that says when a call began and ended."""
    monkeypatch.setattr(here.stage.app.parts.clock, "_offset", timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("jump", "seconds"),
    rows(
        [
            pytest.param(turn_redis, HOUR, id="Redis, an hour ahead"),
            pytest.param(turn_gateway, -DAY, id="the gateway, a day back"),
        ],
        more=[
            pytest.param(turn_redis, -HOUR, id="Redis, an hour back"),
            pytest.param(turn_gateway, DAY, id="the gateway, a day ahead"),
        ],
    ),
)
async def test_running_calls_go_on(
    postgres: Database,
    redis_process: RedisProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jump: Callable[[World, pytest.MonkeyPatch, int], None],
    seconds: int,
) -> None:
    looks = 0

    async def counted(*arguments: object, **options: object) -> Swept:
        nonlocal looks
        looks += 1
        return await sweep_shard(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "sweep_shard", counted)
    monkeypatch.setattr(worker, "_SWEEP_SECONDS", 0.1)
    async with world(postgres, redis_process, tmp_path) as here:
        stage = here.stage
        streaming, crowding = await stage.tenant(), await stage.tenant()
        streams = await here.streams(streaming)
        async with crowd_of(stage, crowding) as crowd:
            await crowd.more_served()
            jump(here, monkeypatch, seconds)
            looks = 0
            # Each shard is looked at several times, the gateway shows a sign in between.
            while looks < 16 * 10:
                await crowd.more_served()
            here.go_on.set()
            await asyncio.gather(*(stream.task for stream in streams))
        assert all(stream.is_done for stream in streams)
        assert not crowd.refused
        await charged_once(stage, streaming, [stream.call_id for stream in streams])
        await charged_once(stage, crowding, crowd.served)
        await stage.verified(streaming, crowding)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["ahead", "back"])
async def test_the_dead_are_found(redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    tenant = Tenant()
    gateway = await make_hot_store(redis_process.url, instance="doomed")
    other = await make_hot_store(redis_process.url, instance="alive")
    try:
        await open_shard(gateway, tenant)
        left, kept = await placed(gateway, tenant.request()), await placed(other, tenant.request())
        await gateway.checkpoint([point(left)])
        turn(monkeypatch, seconds)
        await other.checkpoint([point(kept)])
        swept = await sweep(other, tenant.shard)
        assert [charge.call_id for charge in swept.recovered] == [left.request.origin.call_id]
        [still_open] = await other.open_holds(tenant.shard, tenant.organization_id)
        assert still_open.hold.request == kept.request
    finally:
        await gateway.close()
        await other.close()
