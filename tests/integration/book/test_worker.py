"""The worker: alone, in company, and while a part is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.keys import SHARDS
from billing.hot.store import make_hot_store
from billing.settlement import void_grant
from billing.store.shards import epochs
from billing.verify import verify
from gateway.settings import Settings
from gateway.worker import run_worker
from models.errors import Unavailable
from models.ledger import GrantKind
from tests.conftest import Database, RedisProcess
from tests.integration.book.shop import Shop, Tenant, now, until

pytestmark = pytest.mark.anyio

_MONTHS = "relispartition and relkind = 'r' and relname like 'charge_y%'"


@contextlib.asynccontextmanager
async def _working(postgres: Database, redis_url: str, count: int = 1) -> AsyncIterator[None]:
    """Some workers at work; they are told to stop at the end, and must."""
    settings = Settings.model_validate(
        {"database_url": postgres.app_url, "redis_url": redis_url, "key_pepper": "p" * 32}
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(run_worker(settings, stop))
        try:
            yield
        finally:
            stop.set()


@pytest.fixture
async def private(engine: AsyncEngine, redis_process: RedisProcess) -> AsyncIterator[Shop]:
    """A shop whose Redis the test may kill; no epoch is shown yet."""
    hot = await make_hot_store(redis_process.url)
    shop = Shop(engine, hot)
    await shop.open()
    yield shop
    await hot.close()


async def _open(shop: Shop) -> bool:
    """Whether Redis answers and shows every epoch of the book."""
    async with shop.engine.connect() as connection:
        wanted = await epochs(connection)
    with contextlib.suppress(Unavailable):
        return [await shop.hot.epoch(shard) for shard in wanted] == list(wanted.values())
    return False


async def _funded(shop: Shop, count: int) -> list[Tenant]:
    return [await shop.tenant(paid=10_000_000_000) for _ in range(count)]


async def _clean(shop: Shop) -> None:
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]


async def test_workers_share_the_shards(private: Shop, postgres: Database, redis_process: RedisProcess) -> None:
    async with _working(postgres, redis_process.url, count=3):
        await until(lambda: _open(private))
        tenants = await _funded(private, 6)
        sent = {(await private.call(tenant)).call_id for tenant in tenants for _ in range(20)}

        async def booked() -> bool:
            return (await private.charged()).keys() == sent

        await until(booked)
    await _clean(private)


async def test_what_is_left_is_booked_before_a_worker_goes(
    private: Shop, postgres: Database, redis_process: RedisProcess
) -> None:
    async with _working(postgres, redis_process.url):
        await until(lambda: _open(private))
        [tenant] = await _funded(private, 1)
        sent = {(await private.call(tenant)).call_id for _ in range(30)}
    assert (await private.charged()).keys() == sent


async def test_a_worker_waits_for_redis_and_mends_a_blank_one(
    private: Shop, postgres: Database, redis_process: RedisProcess
) -> None:
    async with _working(postgres, redis_process.url):
        await until(lambda: _open(private))
        [tenant] = await _funded(private, 1)
        await private.call(tenant)
        await until(lambda: _booked(private, 1))
        redis_process.kill()
        redis_process.restart(blank=True)
        await until(lambda: _open(private))
        await private.call(tenant)
        await until(lambda: _booked(private, 2))
    await _clean(private)


async def test_a_worker_waits_for_postgres(
    private: Shop, owner: AsyncEngine, postgres: Database, redis_process: RedisProcess
) -> None:
    async with _working(postgres, redis_process.url):
        await until(lambda: _open(private))
        [tenant] = await _funded(private, 1)
        running = await private.hold(tenant)
        async with owner.begin() as connection:
            await connection.execute(text("lock table shard in access exclusive mode"))
            query = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'tollgate worker'"
            with contextlib.suppress(Exception):
                async with private.engine.begin() as mine:
                    await mine.execute(text(query))
            assert await private.hot.settle(running, private.charge(running))
        await until(lambda: _booked(private, 1))
    await _clean(private)


async def test_booking_granting_and_voiding_at_once(
    private: Shop, postgres: Database, redis_process: RedisProcess
) -> None:
    sent: set[object] = set()

    async def trade(tenant: Tenant) -> None:
        for number in range(12):
            grant_id = await private.grant(tenant, 90_000, GrantKind.PROMO if number % 2 else GrantKind.PAID)
            await private.project(tenant)
            sent.update([(await private.call(tenant, tokens=number * 20)).call_id for _ in range(5)])
            async with private.engine.begin() as connection:
                await void_grant(connection, grant_id, now())
            await private.project(tenant)

    async with _working(postgres, redis_process.url, count=2):
        await until(lambda: _open(private))
        tenants = await _funded(private, 5)
        async with asyncio.TaskGroup() as tasks:
            trades = [tasks.create_task(trade(tenant)) for tenant in tenants]
            while not all(trade.done() for trade in trades):
                # Traffic is no reason for a finding.
                await _clean(private)
        await until(lambda: _booked(private, len(sent)))
    assert (await private.charged()).keys() == sent
    await _clean(private)


async def test_a_worker_tidies(
    private: Shop, owner: AsyncEngine, postgres: Database, redis_process: RedisProcess
) -> None:
    async with owner.begin() as connection:
        months = f"select relname from pg_class where {_MONTHS}"
        for name in (await connection.execute(text(months))).scalars().all():
            await connection.execute(text(f"drop table {name}"))
    tenant = await private.tenant(paid=700)
    expired = await private.grant(tenant, 70, expires_at=now() + timedelta(hours=1))
    async with owner.begin() as connection:
        past = {"begin": now() - timedelta(hours=3), "end": now() - timedelta(hours=2), "id": expired}
        await connection.execute(
            text("update credit_grant set effective_at = :begin, expires_at = :end where id = :id"), past
        )

    async def tidy() -> bool:
        async with private.engine.connect() as connection:
            months = (await connection.execute(text(f"select count(*) from pg_class where {_MONTHS}"))).scalar_one()
            seals = (await connection.execute(text("select count(*) from posting_seal"))).scalar_one()
        there = await private.hot.balance(tenant.shard, tenant.organization_id)
        shown = await asyncio.gather(*(private.hot.epoch(shard) for shard in range(SHARDS)))
        if None in shown:
            return False
        # Two grants and the end of one.
        return months == 5 and seals == 3 and there is not None and there.balance == 700

    async with _working(postgres, redis_process.url):
        await until(tidy)
    await _clean(private)


async def _booked(shop: Shop, count: int) -> bool:
    return len(await shop.charged()) == count
