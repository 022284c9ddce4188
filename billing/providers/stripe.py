"""Events of Stripe, read into `PaymentEvent`. Pure. See https://docs.stripe.com/api/events/types.

A payment by Checkout is told twice, as a session and as a payment intent: the intent's id is the reference of both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from models.errors import InvalidRequest
from models.payment import PaymentEvent, PaymentKind

_NAME: Final = re.compile(r"[!-~]{1,255}")
_CURRENCY: Final = re.compile(r"[a-z]{3}")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_LARGEST_MINOR: Final = 2**53
_LARGEST_TIME: Final = 2**34

_KINDS: Final = {
    "checkout.session.completed": PaymentKind.SUCCEEDED,
    # The same for bank debits, which are paid days after the session was completed.
    "checkout.session.async_payment_succeeded": PaymentKind.SUCCEEDED,
    "payment_intent.succeeded": PaymentKind.SUCCEEDED,
    "charge.refunded": PaymentKind.REFUNDED,
    "charge.dispute.created": PaymentKind.DISPUTED,
}
_AMOUNTS: Final = {
    "checkout.session": "amount_total",
    "payment_intent": "amount_received",
    "charge": "amount_refunded",
    "dispute": "amount",
}


def read_stripe(body: bytes) -> PaymentEvent | None:
    """The event in a body whose signature was checked; None for one that moves no money.

    Raises `InvalidRequest` for a body that is no event of Stripe.
    """
    event = _decoded(body)
    event_id, kind = _name(event.get("id")), _KINDS.get(str(event.get("type")))
    if event.get("object") != "event" or event_id is None:
        raise InvalidRequest("The body is no event of Stripe. Send events as Stripe's API describes them.")
    data = event.get("data")
    subject = data.get("object") if isinstance(data, dict) else None
    if kind is None or not isinstance(subject, dict) or subject.get("payment_status") == "unpaid":
        return None
    metadata = subject.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    # Of the types above each has one kind of object; a body that mixes them names no amount.
    amount = subject.get(_AMOUNTS.get(str(subject.get("object")), ""))
    currency = str(subject.get("currency"))
    return PaymentEvent(
        provider="stripe",
        event_id=event_id,
        kind=kind,
        type=str(event["type"]),
        reference=_name(subject.get("payment_intent")) or _name(subject.get("id")) or event_id,
        organization_id=_uuid(metadata.get("organization_id")),
        invoice_id=_uuid(metadata.get("invoice_id")),
        amount_minor=amount if type(amount) is int and 0 <= amount < _LARGEST_MINOR else None,
        currency=currency.upper() if _CURRENCY.fullmatch(currency) else None,
        at=_time(event.get("created")),
        digest=_digest(event),
    )


def _decoded(body: bytes) -> Mapping[str, Any]:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise InvalidRequest("The body is not a JSON object. Send events as Stripe's API describes them.")
    return decoded


def _digest(event: Mapping[str, Any]) -> bytes:
    """What tells an event from another: all of it but how many deliveries are still due, which Stripe counts down."""
    told = {name: value for name, value in event.items() if name != "pending_webhooks"}
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).digest()


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _uuid(value: Any) -> UUID | None:
    # `UUID` alone would also read digits of other scripts, braces and a prefix.
    return UUID(value) if isinstance(value, str) and _UUID.fullmatch(value.lower()) and value.isascii() else None


def _time(value: Any) -> datetime:
    if type(value) is not int or not 0 <= value < _LARGEST_TIME:
        raise InvalidRequest("The event has no time. Send events as Stripe's API describes them.")
    return datetime.fromtimestamp(value, UTC)
