"""A gateway that takes the payments of Stripe, with a customer who pays, and a receiver of alerts on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from gateway.api import alerts, operator, webhooks
from gateway.api.limits import BodyLimit
from gateway.deliveries import Post
from gateway.embedded.redis import Redis
from gateway.keys import issue_operator_key
from gateway.parts import Parts
from tests.conftest import Database
from tests.integration.webhooks.receiver import Receiver, receiving, trusted
from tests.integration.webhooks.world import SECRET, Customer, Payments
from tests.rooms import PEPPER, MovableClock, application, open_all_shards, open_parts


@pytest.fixture
def clock() -> MovableClock:
    """The billing clock of the application."""
    return MovableClock()


@pytest.fixture
async def parts(postgres: Database, redis: Redis, clock: MovableClock) -> AsyncIterator[Parts]:
    """The parts of a gateway that has Stripe's secret, with all shards open."""
    async with open_parts(postgres, redis, clock, payment_webhook_secrets={"stripe": SECRET}) as parts:
        await open_all_shards(parts.engine, parts.hot)
        yield parts


@pytest.fixture
def app(parts: Parts) -> FastAPI:
    """The application under test."""
    app = application(parts, webhooks.router, alerts.router, operator.router)
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
