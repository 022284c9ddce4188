"""Payments in over the wire: the public port of a gateway that has a secret, and of one that has none."""

from __future__ import annotations

import pytest

from gateway.embedded.redis import Redis
from models.money import parse_amount
from tests.conftest import Database
from tests.integration.webhooks.world import SECRET, signature
from tests.stage import raise_curtain
from tests.unit.stripe_samples import body, event, intent

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def test_a_payment_over_the_wire_can_be_spent(postgres: Database, redis: Redis) -> None:
    async with raise_curtain(postgres.app_url, redis.url, payment_webhook_secrets={"stripe": SECRET}) as stage:
        tenant = await stage.tenant(credit=None)
        told = body(event("payment_intent.succeeded", intent(metadata={"organization_id": tenant.organization_id})))
        url = f"{stage.base_url}/webhooks/payments/stripe"
        forged = await stage.client.post(url, content=told, headers={"stripe-signature": signature(told, "whsec_x")})
        assert forged.status_code == 400
        answer = await stage.client.post(url, content=told, headers={"stripe-signature": signature(told)})
        assert (answer.status_code, answer.json()["state"]) == (200, "booked")
        balance = await stage.balance(tenant)
        assert parse_amount(balance["available"]["amount"], "USD") == parse_amount("19.99", "USD")


async def test_without_a_secret_nothing_is_there(postgres: Database, redis: Redis) -> None:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        told = body(event("payment_intent.succeeded", intent()))
        url = f"{stage.base_url}/webhooks/payments/stripe"
        for secret in (SECRET, ""):
            answer = await stage.client.post(url, content=told, headers={"stripe-signature": signature(told, secret)})
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].startswith("There is no such route.")
