"""What the tests of webhooks do as the payment provider, and what they see of the money."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
import stripe
from sqlalchemy import text

from models.money import parse_amount
from tests.integration.operator.world import World
from tests.unit.stripe_samples import body as body_of

SECRET = "whsec_of_the_integration_tests_0"


def signature(body: bytes, secret: str = SECRET, at: int | None = None) -> str:
    """The header that Stripe's own library makes."""
    made: str = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at or int(time.time()))
    return made


@dataclass(frozen=True, slots=True)
class Customer:
    """An organization and its administrator's key."""

    id: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Payments(World):
    """The operator's client, which is also the provider."""

    async def customer(self, **fields: Any) -> Customer:
        """A new organization."""
        organization = await self.organization(**fields)
        key = await self.made(f"/organizations/{organization['id']}/admin_keys", {"name": "admin"})
        return Customer(organization["id"], {"authorization": f"Bearer {key['value']}"})

    async def send(self, body: bytes, header: str | None = None, provider: str = "stripe") -> httpx.Response:
        """Send a body as the provider does; without a header of its own it is signed now."""
        headers = {"content-type": "application/json", "stripe-signature": header or signature(body)}
        return await self.client.post(f"/webhooks/payments/{provider}", content=body, headers=headers)

    async def tell(self, event: dict[str, Any]) -> str:
        """Send an event that is answered with 200; what became of it."""
        answer = await self.send(body_of(event))
        assert answer.status_code == 200, answer.text
        state: str = answer.json()["state"]
        return state

    async def balance(self, customer: Customer) -> int:
        """Ledger units of the customer's balance, which are the same in Redis and in the book."""
        shown = await self.shown(f"/organizations/{customer.id}/balance")
        hot = parse_amount(shown["balance"]["amount"], shown["currency"])
        async with self.parts.engine.connect() as connection:
            booked = await connection.execute(
                text("select posted from organization_balance where organization_id = cast(:id as uuid)"),
                {"id": customer.id},
            )
            assert int(booked.scalar_one()) == hot
        return hot

    async def events(self, **query: Any) -> list[dict[str, Any]]:
        """The events that were kept, newest first."""
        data: list[dict[str, Any]] = (await self.shown("/webhook_events", **query))["data"]
        return data
