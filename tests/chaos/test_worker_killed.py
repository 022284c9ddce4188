"""A worker that is killed around its commit, again and again, under load: nothing is lost, nothing charged twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from billing.hot.store import make_hot_store
from billing.store.engine import make_engine
from billing.verify import verify
from models.errors import Unavailable
from tests.chaos.form import times
from tests.conftest import Database, RedisProcess
from tests.integration.book.shop import Shop, Tenant, until

pytestmark = pytest.mark.anyio

_KILLS = times(short=3, full=20)
_WORKER = """
import asyncio, signal
from gateway.settings import Settings
from gateway.worker import run_worker
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_worker(Settings(), stop)
asyncio.run(main())
"""


@pytest.fixture
async def shop(postgres: Database, redis_process: RedisProcess) -> AsyncIterator[Shop]:
    """A shop over servers of this test; no epoch is shown yet."""
    engine, hot = make_engine(postgres.app_url), await make_hot_store(redis_process.url)
    shop = Shop(engine, hot)
    await shop.open()
    yield shop
    await hot.close()
    await engine.dispose()


async def _start(postgres: Database, redis_url: str, failpoint: str | None) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "TOLLGATE_DATABASE_URL": postgres.app_url,
        "TOLLGATE_REDIS_URL": redis_url,
        "TOLLGATE_KEY_PEPPER": "p" * 32,
        **({"TOLLGATE_FAILPOINT": failpoint} if failpoint else {}),
    }
    nothing = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WORKER, env=environment, stderr=nothing, stdout=nothing
    )


async def _serve(shop: Shop, tenant: Tenant, settled: dict[object, int], stop: asyncio.Event) -> None:
    """Calls, one after the other, as a gateway makes them."""
    while not stop.is_set():
        with contextlib.suppress(Unavailable, AssertionError):
            charge = await shop.call(tenant, tokens=len(settled) % 500)
            settled[charge.call_id] = charge.amount
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("failpoint", ["before_commit", "after_commit", "before_trim"])
async def test_no_charge_is_lost_or_doubled(
    shop: Shop, postgres: Database, redis_process: RedisProcess, failpoint: str
) -> None:
    tenants = [await shop.tenant(paid=1_000_000_000_000) for _ in range(3)]
    settled: dict[object, int] = {}
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for tenant in tenants:
            tasks.create_task(_serve(shop, tenant, settled, stop))
        for _ in range(_KILLS):
            worker = await _start(postgres, redis_process.url, failpoint)
            async with asyncio.timeout(60):
                assert await worker.wait() == -signal.SIGKILL
        stop.set()
    assert settled

    worker = await _start(postgres, redis_process.url, None)

    async def booked() -> bool:
        return (await shop.charged()).keys() >= settled.keys()

    await until(booked, seconds=60)
    worker.send_signal(signal.SIGTERM)
    assert await worker.wait() == 0
    assert await shop.charged() == settled
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]
