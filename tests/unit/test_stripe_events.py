"""What is read from Stripe's events, and that nothing of it is believed that cannot be right."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.providers.stripe import read_stripe
from models.errors import InvalidRequest
from models.payment import PaymentEvent, PaymentKind
from tests.unit.stripe_samples import CREATED, INVOICE, ORGANIZATION, body, charge, dispute, event, intent, session


def read(told: dict[str, Any]) -> PaymentEvent:
    found = read_stripe(body(told))
    assert found is not None
    return found


PAID = PaymentEvent(
    provider="stripe",
    event_id="evt_1Pgc76",
    kind=PaymentKind.SUCCEEDED,
    type="checkout.session.completed",
    reference="pi_3Pgc75",
    organization_id=UUID(ORGANIZATION),
    invoice_id=UUID(INVOICE),
    amount_minor=1999,
    currency="USD",
    at=datetime.fromtimestamp(CREATED, UTC),
    digest=b"",
)
MAPPED: dict[str, tuple[dict[str, Any], PaymentEvent]] = {
    "a Checkout session": (event("checkout.session.completed", session()), PAID),
    "a session that was paid later": (
        event("checkout.session.async_payment_succeeded", session()),
        replace(PAID, type="checkout.session.async_payment_succeeded"),
    ),
    "a payment intent": (
        event("payment_intent.succeeded", intent()),
        replace(PAID, type="payment_intent.succeeded", invoice_id=None),
    ),
    "a refund, by all that was refunded so far": (
        event("charge.refunded", charge()),
        replace(PAID, type="charge.refunded", kind=PaymentKind.REFUNDED, invoice_id=None, amount_minor=500),
    ),
    "a dispute": (
        event("charge.dispute.created", dispute()),
        replace(
            PAID,
            type="charge.dispute.created",
            kind=PaymentKind.DISPUTED,
            organization_id=None,
            invoice_id=None,
        ),
    ),
    "won, which have no smaller unit": (
        event("payment_intent.succeeded", intent(currency="krw", amount_received=50_000)),
        replace(PAID, type="payment_intent.succeeded", invoice_id=None, currency="KRW", amount_minor=50_000),
    ),
    "a session of a subscription, which has no intent": (
        event("checkout.session.completed", session(payment_intent=None)),
        replace(PAID, reference="cs_live_a1b2"),
    ),
}


@pytest.mark.parametrize(("told", "expected"), MAPPED.values(), ids=MAPPED)
def test_events_in_the_form_that_is_the_same_for_all(told: dict[str, Any], expected: PaymentEvent) -> None:
    found = read(told)
    assert replace(found, digest=b"") == expected
    assert len(found.digest) == 32


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(event("customer.created", {"id": "cus_1", "object": "customer"}), id="of no payment"),
        pytest.param(event("checkout.session.completed", session(payment_status="unpaid")), id="not paid yet"),
        pytest.param(event("payment_intent.succeeded", {}) | {"data": None}, id="without an object"),
    ],
)
def test_what_moves_no_money_is_left_out(told: dict[str, Any]) -> None:
    assert read_stripe(body(told)) is None


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no amount": ("amount_minor", intent(amount_received=None)),
    "a negative amount": ("amount_minor", intent(amount_received=-1)),
    "a fraction of a cent": ("amount_minor", intent(amount_received=19.99)),
    "an amount in text": ("amount_minor", intent(amount_received="1999")),
    "true, which is a number to Python": ("amount_minor", intent(amount_received=True)),
    "more money than there is": ("amount_minor", intent(amount_received=2**60)),
    "a currency of four letters": ("currency", intent(currency="usdt")),
    "a currency in another script": ("currency", intent(currency="ｕｓｄ")),
    "no currency": ("currency", intent(currency=None)),
    "no organization": ("organization_id", intent(metadata=None)),
    "an organization in other digits": (
        "organization_id",
        intent(metadata={"organization_id": ORGANIZATION.replace("1", "１")}),
    ),
    "an organization in braces": ("organization_id", intent(metadata={"organization_id": f"{{{ORGANIZATION}}}"})),
    "an organization and more": ("organization_id", intent(metadata={"organization_id": ORGANIZATION + "\n"})),
    "an organization that is a list": ("organization_id", intent(metadata={"organization_id": [ORGANIZATION]})),
    "the amount of another kind of object": ("amount_minor", intent(object="charge")),
}


@pytest.mark.parametrize(("name", "subject"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_none(name: str, subject: dict[str, Any]) -> None:
    assert getattr(read(event("payment_intent.succeeded", subject)), name) is None


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"\xff{}", id="no UTF-8"),
        pytest.param(b"[" * 100_000, id="nested without end"),
        pytest.param(body(event("payment_intent.succeeded", intent(), event_id="")), id="no id"),
        pytest.param(body(event("payment_intent.succeeded", intent(), event_id="evt\0")), id="an id with NUL"),
        pytest.param(body(event("payment_intent.succeeded", intent(), event_id="évt_1")), id="an id of other letters"),
        pytest.param(body(event("payment_intent.succeeded", intent(), created="now")), id="no time"),
        pytest.param(body(event("payment_intent.succeeded", intent(), created=10**18)), id="a time without end"),
        pytest.param(body(event("x", {}, object="v2.core.event")), id="a thin event"),
    ],
)
def test_what_is_no_event_is_refused(sent: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_stripe(sent)


def test_deliveries_of_one_event_have_one_digest() -> None:
    told = event("payment_intent.succeeded", intent())
    again = dict(reversed((told | {"pending_webhooks": 0}).items()))
    assert read(told).digest == read(again).digest
    assert read(told).digest != read(event("payment_intent.succeeded", intent(amount_received=2000))).digest


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(intent())), inner, max_size=5),
    max_leaves=12,
)


@given(st.sampled_from(sorted(intent())), _JSON)
def test_no_field_breaks_the_reading(name: str, value: Any) -> None:
    found = read_stripe(body(event("payment_intent.succeeded", intent(**{name: value}))))
    assert found is not None
    assert found.amount_minor is None or 0 <= found.amount_minor < 2**53
    assert found.reference.isprintable()
