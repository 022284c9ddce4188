"""Redis hangs for longer than a gateway may be silent: the gateway lives, so its calls go on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from billing.hot.store import HotStore, make_hot_store
from billing.sweeper import Swept, sweep_shard
from models.errors import Unavailable
from tests.conftest import RedisProcess
from tests.integration.hot.nouns import NOW, Tenant, charge, open_shard, placed
from tests.integration.sweeper.lives import point

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

HANG_SECONDS = 1.5
GRACE_SECONDS = 1


async def _swept(worker: HotStore, shard: int) -> Swept:
    """A look, repeated until Redis answers."""
    while True:
        with contextlib.suppress(Unavailable):
            return await sweep_shard(worker, shard, NOW, GRACE_SECONDS)
        await asyncio.sleep(0.005)


async def test_nobody_is_dead_because_redis_hung(redis_process: RedisProcess) -> None:
    gateway = await make_hot_store(redis_process.url, timeout_ms=200, instance="alive")
    worker, tenant = await make_hot_store(redis_process.url, timeout_ms=200), Tenant()
    try:
        await open_shard(gateway, tenant)
        hold = await placed(gateway, tenant.request())
        await gateway.checkpoint([point(hold)])
        redis_process.pause()
        await asyncio.sleep(HANG_SECONDS)
        redis_process.resume()
        # The worker is back first, and the gateway has been silent for too long.
        for _ in range(5):
            assert await _swept(worker, tenant.shard) == Swept(tenant.shard)
        [sign] = (await worker.signs_of_life(tenant.shard)).values()
        assert await worker.clock_ms() - sign > 1_000 * GRACE_SECONDS
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(Unavailable):
                    await gateway.checkpoint([point(hold)])
                    break
                await asyncio.sleep(0.005)
        assert await _swept(worker, tenant.shard) == Swept(tenant.shard)
        assert await gateway.settle(hold, charge(hold))
    finally:
        await gateway.close()
        await worker.close()
