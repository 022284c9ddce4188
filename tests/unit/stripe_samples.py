"""Events as Stripe's documentation shows them, shortened where nothing is read; no real person or card is in them."""

from __future__ import annotations

import json
from typing import Any

ORGANIZATION = "01970000-0000-7000-8000-00000000000a"
INVOICE = "01970000-0000-7000-8000-00000000000b"
CREATED = 1_795_000_000


def event(kind: str, subject: dict[str, Any], event_id: str = "evt_1Pgc76", **more: Any) -> dict[str, Any]:
    """An event about an object."""
    return {
        "id": event_id,
        "object": "event",
        "api_version": "2026-06-24.dahlia",
        "created": CREATED,
        "data": {"object": subject},
        "livemode": True,
        "pending_webhooks": 2,
        "request": {"id": "req_1", "idempotency_key": "6ff9"},
        "type": kind,
        **more,
    }


def session(**changes: Any) -> dict[str, Any]:
    """A Checkout session that is paid."""
    return {
        "id": "cs_live_a1b2",
        "object": "checkout.session",
        "amount_subtotal": 1999,
        "amount_total": 1999,
        "client_reference_id": None,
        "created": CREATED - 60,
        "currency": "usd",
        "customer_details": {"email": "jenny@example.com", "name": "Jenny Rosen", "phone": None},
        "metadata": {"organization_id": ORGANIZATION, "invoice_id": INVOICE},
        "mode": "payment",
        "payment_intent": "pi_3Pgc75",
        "payment_status": "paid",
        "status": "complete",
        **changes,
    }


def intent(**changes: Any) -> dict[str, Any]:
    """A payment intent that succeeded."""
    return {
        "id": "pi_3Pgc75",
        "object": "payment_intent",
        "amount": 1999,
        "amount_capturable": 0,
        "amount_received": 1999,
        "currency": "usd",
        "latest_charge": "ch_3Pgc75",
        "metadata": {"organization_id": ORGANIZATION},
        "status": "succeeded",
        **changes,
    }


def charge(**changes: Any) -> dict[str, Any]:
    """A charge of which a part was given back."""
    return {
        "id": "ch_3Pgc75",
        "object": "charge",
        "amount": 1999,
        "amount_captured": 1999,
        "amount_refunded": 500,
        "billing_details": {"email": "jenny@example.com", "name": "Jenny Rosen"},
        "currency": "usd",
        "metadata": {"organization_id": ORGANIZATION},
        "paid": True,
        "payment_intent": "pi_3Pgc75",
        "payment_method_details": {"card": {"brand": "visa", "last4": "4242"}, "type": "card"},
        "refunded": False,
        **changes,
    }


def dispute(**changes: Any) -> dict[str, Any]:
    """A dispute that was opened."""
    return {
        "id": "du_1Pgc80",
        "object": "dispute",
        "amount": 1999,
        "charge": "ch_3Pgc75",
        "currency": "usd",
        "metadata": {},
        "payment_intent": "pi_3Pgc75",
        "reason": "fraudulent",
        "status": "needs_response",
        **changes,
    }


def body(event: dict[str, Any]) -> bytes:
    """The bytes that Stripe sends."""
    return json.dumps(event, indent=2, ensure_ascii=False).encode()
