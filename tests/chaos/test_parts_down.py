"""A part is away, hangs or refuses while a whole Tollgate is under load: new calls get a clear 503, none is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.calls import running
from tests.chaos.form import times
from tests.chaos.world import (
    BOUND_SECONDS,
    Fault,
    Gate,
    World,
    charged_once,
    crowd_of,
    play,
    small_disk,
    world,
)
from tests.conftest import Database, RedisProcess
from tests.stage import eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

KEYS_SECONDS = 0.5
"""How long a key is believed before it is looked up again."""
AWAY_SECONDS = times(short=1, full=180)
"""How long Postgres is away at least."""


async def kill_redis(world: World) -> None:
    # With `everysec` a Redis that is killed while its disk is busy may lack two seconds of what it acknowledged, and
    # without a journal nobody else has them: who has none is told to set this.
    await world.ask_redis("CONFIG", "SET", "appendfsync", "always")
    await world.ask_redis("PING")
    world.redis.kill()


async def restart_redis(world: World) -> None:
    world.redis.restart()


async def pause_redis(world: World) -> None:
    world.redis.pause()


async def resume_redis(world: World) -> None:
    world.redis.resume()


async def fill_redis(world: World) -> None:
    await world.ask_redis("CONFIG", "SET", "maxmemory", "1")


async def empty_redis(world: World) -> None:
    await world.ask_redis("CONFIG", "SET", "maxmemory", "0")


async def demote_redis(world: World) -> None:
    await world.ask_redis("REPLICAOF", "no-such-host.invalid", "6379")


async def promote_redis(world: World) -> None:
    await world.ask_redis("REPLICAOF", "NO", "ONE")


async def kill_both(world: World) -> None:
    world.postgres.break_down()
    world.redis.kill()


async def mend_both(world: World) -> None:
    world.redis.restart()
    world.postgres.open()


@pytest.mark.parametrize(
    ("fault", "with_journal"),
    [
        # The last row kills it too, with a journal.
        pytest.param(Fault(kill_redis, restart_redis), False, id="Redis is killed and there is no journal"),
        pytest.param(Fault(pause_redis, resume_redis, seconds=3), True, id="Redis hangs"),
        pytest.param(Fault(fill_redis, empty_redis, takes_settles=True), True, id="the memory of Redis is full"),
        pytest.param(Fault(demote_redis, promote_redis), True, id="Redis only reads"),
        pytest.param(Fault(kill_both, mend_both), True, id="Redis and Postgres are away"),
    ],
)
async def test_new_calls_are_refused_and_running_ones_charged_once(
    postgres: Database, redis_process: RedisProcess, tmp_path: Path, fault: Fault, with_journal: bool
) -> None:
    async with world(postgres, redis_process, tmp_path / "journal" if with_journal else None) as here:
        await play(here, fault)


@pytest.mark.parametrize(
    ("fall", "bound_seconds"),
    [
        pytest.param(Gate.break_down, BOUND_SECONDS, id="Postgres is away"),
        pytest.param(Gate.fall_silent, BOUND_SECONDS, id="Postgres hangs"),
    ],
)
async def test_known_keys_are_served_without_postgres(
    postgres: Database, redis_process: RedisProcess, fall: Callable[[Gate], None], bound_seconds: float
) -> None:
    async with world(postgres, redis_process, None, key_cache_seconds=KEYS_SECONDS) as here:
        stage = here.stage
        tenant, stranger = await stage.tenant(), await stage.tenant()
        async with crowd_of(stage, tenant) as crowd:
            await crowd.more_served()
            fall(here.postgres)
            known_until = time.monotonic() + AWAY_SECONDS

            async def keys_are_old() -> bool:
                return time.monotonic() > known_until

            await eventually(keys_are_old, AWAY_SECONDS + 5)
            started = time.monotonic()
            answer = await stage.chat(stranger)
            assert time.monotonic() - started <= bound_seconds
            assert (answer.status_code, int(answer.headers["retry-after"])) == (503, 1)
            await crowd.more_served()
            here.postgres.open()

            async def stranger_is_served() -> bool:
                return (await stage.chat(stranger)).status_code == 200

            await eventually(stranger_is_served)
            await crowd.more_served()
        assert not crowd.refused
        assert crowd.slowest_served <= bound_seconds
        await stage.charges(stranger, 1)
        await charged_once(stage, tenant, crowd.served)
        await stage.verified(tenant, stranger)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, on which no segment of a journal has room."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        yield disk


async def test_a_journal_that_cannot_write_stops_nobody(
    postgres: Database, redis_process: RedisProcess, full_disk: Path
) -> None:
    async with world(postgres, redis_process, full_disk) as here:
        stage = here.stage
        journal = stage.app.running.journal
        assert journal is not None
        tenant = await stage.tenant()
        streams = await here.streams(tenant)
        here.go_on.set()
        await asyncio.gather(*(stream.task for stream in streams))
        assert all(stream.is_done for stream in streams)
        plain = await stage.chat(tenant)
        assert plain.status_code == 200
        assert not journal.is_healthy
        await charged_once(stage, tenant, [*(stream.call_id for stream in streams), plain.headers["x-request-id"]])
        await stage.verified(tenant)


async def test_a_gateway_that_stops_while_redis_is_away_leaves_its_charges_to_the_next(
    postgres: Database, redis_process: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In vain here, so not for long.
    monkeypatch.setattr(running, "SETTLE_AT_STOP_SECONDS", 0.2)
    async with world(postgres, redis_process, tmp_path) as first:
        tenant = await first.stage.tenant()
        streams = await first.streams(tenant)
        redis_process.kill()
        first.go_on.set()
        await asyncio.gather(*(stream.task for stream in streams))
        assert all(stream.is_done for stream in streams)
    redis_process.restart()
    async with raise_curtain(postgres.app_url, redis_process.url, journal_dir=tmp_path) as second:
        await charged_once(second, tenant, [stream.call_id for stream in streams])
        await second.verified(tenant)
