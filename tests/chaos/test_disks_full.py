"""The disk of Redis or of Postgres is full: what runs is charged, what cannot be kept is refused, all recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.embedded import postgres as embedded_postgres
from migrations.run import migrate
from tests.chaos.world import Fault, World, charged_once, crowd_of, fill, play, small_disk, world
from tests.conftest import APP, OWNER, PASSWORD, Database, RedisProcess
from tests.stage import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

ROOM = "8m"
POSTGRES_ROOM = "120m"
CALLS = 60
"""So many charges need more than the pages that a table has already."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk for the file of Redis."""
    with small_disk(tmp_path / "disk", ROOM) as disk:
        yield disk


@pytest.fixture
def redis_on_disk(disk: Path) -> Iterator[RedisProcess]:
    """A Redis of this test on the small disk."""
    server = RedisProcess(disk / "redis")
    try:
        yield server
    finally:
        server.close()


async def test_redis(postgres: Database, redis_on_disk: RedisProcess, disk: Path, tmp_path: Path) -> None:
    async def fill_disk(here: World) -> None:
        fill(disk)

    async def give_back(here: World) -> None:
        (disk / "filler").unlink()

    async with world(postgres, redis_on_disk, tmp_path / "journal") as here:
        await play(here, Fault(fill_disk, give_back))


@pytest.fixture
async def postgres_on_disk(tmp_path: Path) -> AsyncIterator[tuple[Database, Path]]:
    """A migrated database of a Postgres of this test, and its disk."""
    with small_disk(tmp_path / "disk", POSTGRES_ROOM) as disk:
        directory, log = disk / "pg", tmp_path / "postgres.log"
        embedded_postgres.initialise(directory, PASSWORD, log=log)
        # Nothing but charges shall grow: no log is recycled, no statistics are gathered.
        settings = {"fsync": "off", "autovacuum": "off", "max_wal_size": "64MB", "min_wal_size": "32MB"}
        server = embedded_postgres.start(directory, PASSWORD, log=log, settings=settings)
        try:
            for role in (OWNER, APP):
                await embedded_postgres.create_role(server, role, PASSWORD)
            await embedded_postgres.create_database(server, "tollgate", OWNER)
            await asyncio.to_thread(migrate, server.url("tollgate", OWNER, PASSWORD), APP)
            urls = (server.url("tollgate", role, PASSWORD) for role in (OWNER, APP))
            yield Database("tollgate", *urls), disk
        finally:
            server.child.stop(seconds=10)


async def test_postgres(postgres_on_disk: tuple[Database, Path], redis_process: RedisProcess, tmp_path: Path) -> None:
    postgres, disk = postgres_on_disk
    async with world(postgres, redis_process, tmp_path / "journal") as here:
        stage = here.stage
        tenant = await stage.tenant()
        async with crowd_of(stage, tenant) as crowd:
            await crowd.more_served()
            fill(disk)
            await crowd.more_served(CALLS)
            waiting = len(crowd.served) - len(await stage.listed(tenant))
            assert waiting > 0
            (disk / "filler").unlink()

            async def caught_up() -> bool:
                return len(await stage.listed(tenant)) >= CALLS

            await eventually(caught_up, 30)
        assert not crowd.refused
        await charged_once(stage, tenant, crowd.served)
        await stage.verified(tenant)
