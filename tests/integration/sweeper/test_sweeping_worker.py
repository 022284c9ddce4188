"""A worker sweeps beside its booking, tells what it did in lines and in metrics, and verify sees what nobody swept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from billing.hot.connection import HotConnection
from billing.hot.store import HotStore, make_hot_store
from billing.rebuild import ensure_epoch
from billing.store.engine import make_engine
from billing.verify import verify
from gateway.embedded.ports import free_port
from gateway.embedded.redis import Redis
from gateway.settings import Settings
from gateway.worker import run_worker, showing_metrics
from tests.conftest import Database
from tests.integration.book.shop import Shop, until
from tests.integration.sweeper.lives import point, silence, suspected_long_ago, sweep

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

LONG_MS = 70_000


@pytest.fixture
async def engine(postgres: Database) -> AsyncIterator[AsyncEngine]:
    """The program's own role."""
    engine = make_engine(postgres.app_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def shop(engine: AsyncEngine, gateway: HotStore) -> Shop:
    """A shop whose calls the gateway `one` holds; no epoch is shown yet."""
    shop = Shop(engine, gateway)
    await shop.open()
    return shop


@contextlib.asynccontextmanager
async def _working(postgres: Database, redis_url: str, port: int) -> AsyncIterator[None]:
    """A worker at work; it is told to stop at the end, and must."""
    settings = Settings.model_validate(
        {
            "database_url": postgres.app_url,
            "redis_url": redis_url,
            "key_pepper": "p" * 32,
            "worker_internal_port": port,
        }
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_worker(settings, stop))
        try:
            yield
        finally:
            stop.set()


async def _metrics(port: int) -> dict[str, int]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: int(float(value)) for name, _, value in lines if name.startswith("tollgate_")}


async def test_a_worker_ends_the_calls_of_the_dead(
    shop: Shop, raw: HotConnection, postgres: Database, redis: Redis
) -> None:
    port, moved = free_port(), ("tollgate_booked_entries_total", "tollgate_dead_entries_total")
    swept = ('tollgate_swept_calls_total{ending="recovered"}', 'tollgate_swept_calls_total{ending="void"}')

    async def opened() -> bool:
        return None not in await asyncio.gather(*(shop.hot.epoch(shard) for shard in range(16)))

    with capture_logs() as lines:
        async with _working(postgres, redis.url, port):
            await until(opened)
            before = await _metrics(port)
            tenant = await shop.tenant(paid=10_000_000_000)
            charged, free = await shop.hold(tenant), await shop.hold(tenant)
            await shop.hot.checkpoint([point(charged, 100)])
            await silence(raw, shop.hot, tenant.shard, "one")
            # Somebody has looked before, so the worker need not look twice.
            assert await shop.hot.silence(tenant.shard, suspect_ms=30_000, dead_ms=60_000) is None
            await suspected_long_ago(raw, shop.hot, tenant.shard, "one")

            async def booked() -> bool:
                return charged.request.origin.call_id in await shop.charged()

            async def counted() -> bool:
                # The worker counts what it has committed a moment after others can see it.
                return (await _metrics(port))[moved[0]] > before.get(moved[0], 0)

            await until(booked)
            await until(counted)
            after = await _metrics(port)
    assert [after[name] - before.get(name, 0) for name in (*moved, *swept)] == [1, 0, 1, 1]
    assert f'tollgate_stream_lag_entries{{shard="{tenant.shard}"}}' in after
    told = {line["event"]: line for line in lines}
    assert told["call_recovered"]["call_id"] == charged.request.origin.call_id
    assert told["call_recovered"]["amount"] == 15_000
    assert told["call_voided"]["call_id"] == free.request.origin.call_id
    assert (await verify(shop.engine, shop.hot)).ok


async def test_a_taken_port_does_not_stop_a_worker() -> None:
    async with showing_metrics("127.0.0.1", 0) as port:
        assert port is not None
        async with showing_metrics("127.0.0.1", port) as second:
            assert second is None
            assert "tollgate_stream_lag_entries" not in await _metrics(port)


def test_up_names_the_metrics_of_its_worker(tollgate_up: dict[str, Any]) -> None:
    answer = httpx.get(tollgate_up["worker_metrics_url"], trust_env=False)
    assert "tollgate_stream_lag_entries" in answer.text


async def test_verify_finds_holds_that_nobody_swept(shop: Shop, raw: HotConnection, redis: Redis) -> None:
    for shard in range(16):
        assert await ensure_epoch(shop.engine, shop.hot, shard)
    tenant = await shop.tenant(paid=10_000_000_000)
    hold = await shop.hold(tenant)
    nameless = await make_hot_store(redis.url)
    await Shop(shop.engine, nameless).hold(tenant)
    await nameless.close()
    assert (await verify(shop.engine, shop.hot)).ok
    await silence(raw, shop.hot, tenant.shard, "one", LONG_MS)
    report = await verify(shop.engine, shop.hot)
    [check] = [check for check in report.checks if not check.ok]
    finding = str(*check.findings)
    assert check.name == "hold_owners"
    assert str(hold.request.origin.call_id) in finding
    assert "for the gateway one, silent for 7" in finding
    assert len((await sweep(shop.hot, tenant.shard)).voided) == 1
    assert (await verify(shop.engine, shop.hot)).ok
