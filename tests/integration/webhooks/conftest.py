"""A gateway that takes the payments of Stripe, with a customer who pays, and a receiver of alerts on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from billing.hot.store import make_hot_store
from billing.rebuild import ensure_epoch
from billing.store.engine import make_engine
from gateway.api import alerts, errors, operator, webhooks
from gateway.api.limits import BodyLimit
from gateway.auth import KeyRing
from gateway.catalog import CatalogCache
from gateway.deliveries import Post
from gateway.embedded.redis import Redis
from gateway.keys import issue_operator_key
from gateway.memory import Memory
from gateway.parts import Parts
from gateway.settings import Settings
from tests.conftest import Database
from tests.integration.operator.conftest import MovableClock
from tests.integration.operator.world import PEPPER
from tests.integration.webhooks.receiver import Receiver, receiving, trusted
from tests.integration.webhooks.world import SECRET, Customer, Payments


@pytest.fixture
def clock() -> MovableClock:
    """The billing clock of the application."""
    return MovableClock()


@pytest.fixture
async def parts(postgres: Database, redis: Redis, clock: MovableClock) -> AsyncIterator[Parts]:
    """The parts of a gateway that has Stripe's secret, with all shards open."""
    settings = Settings.model_validate(
        {
            "database_url": postgres.app_url,
            "redis_url": redis.url,
            "key_pepper": PEPPER.decode(),
            "payment_webhook_secrets": {"stripe": SECRET},
        }
    )
    engine = make_engine(postgres.app_url)
    hot = await make_hot_store(redis.url)
    try:
        for shard in range(16):
            assert await ensure_epoch(engine, hot, shard)
        yield Parts(
            settings,
            clock,
            engine,
            hot,
            KeyRing(engine, PEPPER, clock, 3),
            CatalogCache(engine, 1),
            Memory(engine, clock, 60),
        )
    finally:
        await hot.close()
        await engine.dispose()


@pytest.fixture
def app(parts: Parts) -> FastAPI:
    """The application under test."""
    app = FastAPI()
    app.state.parts = parts
    errors.install(app)
    for room in (webhooks, alerts, operator):
        app.include_router(room.router)
    app.add_middleware(BodyLimit)
    return app


@pytest.fixture
async def payments(app: FastAPI, parts: Parts) -> AsyncIterator[Payments]:
    """A client that is the provider, and the operator too."""
    async with parts.engine.begin() as connection:
        _, operator_key = await issue_operator_key(connection, "test", PEPPER)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Payments(client, parts, operator_key)


@pytest.fixture
async def customer(payments: Payments) -> Customer:
    """A prepaid USD organization without money."""
    return await payments.customer()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A real HTTPS server that remembers what it was sent."""
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def post(receiver: Receiver) -> AsyncIterator[Post]:
    """Sends alerts to the receiver: its name leads to this machine, and its certificate is trusted."""
    post = Post(PEPPER, find_address=receiver.find_address, trusted=trusted())
    yield post
    await post.close()
