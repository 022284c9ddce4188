"""Redis comes back with less than it had acknowledged: an old file, or one whose end is missing after a power cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from billing.hot.connection import HotConnection
from billing.hot.store import make_hot_store
from billing.journal.journal import open_journal
from billing.store.engine import make_engine
from gateway.catalog import CatalogCache
from gateway.recovery import Recovery
from models.ids import uuid7
from tests.chaos.form import rows
from tests.chaos.world import charged_once, crowd_of, world
from tests.conftest import Database, RedisProcess
from tests.integration.hot.nouns import NOW, Tenant, charge, open_shard, placed
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


def cut_tail(redis: RedisProcess) -> None:
    """Lose the last second, as a power cut does; it ends in the middle of a command."""
    file = redis.directory / "appendonly.aof"
    content = file.read_bytes()
    file.write_bytes(content[: -len(content) // 4])


@pytest.mark.parametrize(
    ("lose", "is_booked"),
    rows(
        [
            pytest.param(RedisProcess.restore, True, id="an old file, all after it was booked"),
            pytest.param(cut_tail, False, id="an end is missing, of which nothing was booked"),
        ],
        more=[
            pytest.param(RedisProcess.restore, False, id="an old file, nothing after it was booked"),
            pytest.param(cut_tail, True, id="an end is missing, of which all was booked"),
        ],
    ),
)
async def test_what_redis_lost_is_charged_all_the_same(
    postgres: Database,
    redis_process: RedisProcess,
    tmp_path: Path,
    lose: Callable[[RedisProcess], None],
    is_booked: bool,
) -> None:
    async with world(postgres, redis_process, tmp_path / "journal") as here:
        stage = here.stage
        tenant = await stage.tenant()

        async def booked(calls: list[str]) -> bool:
            return {charge["call_id"] for charge in await stage.listed(tenant)} >= set(calls)

        async with crowd_of(stage, tenant) as crowd:
            await crowd.more_served()
            await eventually(partial(booked, list(crowd.served)))
            if not is_booked:
                await stage.stop_worker()
            redis_process.keep()
            await crowd.more_served(20)
            if is_booked:
                await eventually(partial(booked, list(crowd.served)))
                await stage.stop_worker()
            redis_process.kill()
            await crowd.more_refused(1)
            lose(redis_process)
            redis_process.restart()
            await stage.start_worker()
            await crowd.more_served()
        assert {answer.status_code for answer in crowd.refused} == {503}
        await stage.quiet()
        await charged_once(stage, tenant, crowd.served)
        await stage.verified(tenant)


async def test_a_hold_that_came_back_after_its_call_had_ended_is_released(
    postgres: Database, redis_process: RedisProcess, tmp_path: Path
) -> None:
    tenant = Tenant()
    gateway = await make_hot_store(redis_process.url, instance="alive")
    other = await make_hot_store(redis_process.url, instance="other")
    journal, engine = open_journal(tmp_path, uuid7(NOW)), make_engine(postgres.app_url)
    try:
        await open_shard(gateway, tenant)
        runs, ended = await placed(gateway, tenant.request()), await placed(gateway, tenant.request())
        anothers = await placed(other, tenant.request())
        running = {runs.request.origin.call_id}
        recovery = Recovery(journal, gateway, engine, CatalogCache(engine, 60), lambda: NOW, lambda: running)
        await recovery._release_lost()
        open_now = {hold.hold.request for hold in await gateway.open_holds(tenant.shard, tenant.organization_id)}
        assert open_now == {runs.request, anothers.request}
        # Its charge was on its way all the time.
        assert await gateway.settle(ended, charge(ended))
    finally:
        await journal.close()
        await engine.dispose()
        await other.close()
        await gateway.close()


async def test_a_file_that_ends_inside_a_transaction_is_made_whole(redis_process: RedisProcess) -> None:
    script = "redis.call('INCR', 'one') redis.call('INCR', 'other') return 0"
    file = redis_process.directory / "appendonly.aof"

    async def run() -> None:
        connection = await HotConnection.connect(redis_process.url)
        # Or a Redis that still syncs its new file may put the write off, and be killed before it.
        await connection.execute("CONFIG", "SET", "appendfsync", "always")
        await connection.execute("EVAL", script, 0)
        await connection.close()

    async def is_whole() -> bool:
        content = file.read_bytes()
        return content.count(b"MULTI") == content.count(b"EXEC")

    await run()
    redis_process.kill()
    content = file.read_bytes()
    # In the middle of the second command, as a power cut leaves it.
    file.write_bytes(content[: content.rindex(b"other") + 2])
    redis_process.restart()
    await eventually(is_whole)
    await run()
    redis_process.kill()
    redis_process.restart()
    connection = await HotConnection.connect(redis_process.url)
    assert await connection.execute("MGET", "one", "other") == [b"1", b"1"]
    await connection.close()
