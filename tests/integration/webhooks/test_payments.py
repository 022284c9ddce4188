"""Payments that Stripe tells of: booked once, whatever is told twice, in what order, and how often at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing import payments_in
from billing.store.engine import make_engine
from tests.integration.webhooks.world import Customer, Payments
from tests.unit.stripe_samples import INVOICE, body, charge, dispute, event, intent, session

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

CENT = 10**7


def of(customer: Customer) -> dict[str, Any]:
    return {"organization_id": customer.id}


def paid(customer: Customer, event_id: str = "evt_paid", **changes: Any) -> dict[str, Any]:
    return event("payment_intent.succeeded", intent(metadata=of(customer), **changes), event_id)


def refunded(minor: int, event_id: str) -> dict[str, Any]:
    return event("charge.refunded", charge(amount_refunded=minor, metadata={}), event_id)


async def test_a_payment_becomes_credit_that_can_be_spent_at_once(payments: Payments, customer: Customer) -> None:
    assert await payments.tell(paid(customer)) == "booked"
    assert await payments.balance(customer) == 1999 * CENT
    (grant,) = (await payments.shown(f"/organizations/{customer.id}/credit_grants"))["data"]
    assert (grant["kind"], grant["amount"]) == ("paid", {"amount": "19.990000000", "currency": "USD"})
    (kept,) = await payments.events()
    assert (
        kept.items()
        >= {
            "provider": "stripe",
            "event_id": "evt_paid",
            "kind": "succeeded",
            "state": "booked",
            "reason": None,
            "reference": "pi_3Pgc75",
            "organization_id": customer.id,
            "amount_minor": 1999,
            "currency": "USD",
        }.items()
    )
    (entry,) = (await payments.shown("/audit_logs", actor="webhook:stripe"))["data"]
    assert (entry["action"], entry["subject"]) == ("payment.succeeded", "payment:stripe:pi_3Pgc75")
    assert (await payments.shown("/verify"))["ok"]


async def test_won_have_no_smaller_unit(payments: Payments) -> None:
    korean = await payments.customer(currency="KRW")
    assert await payments.tell(paid(korean, currency="krw", amount_received=50_000)) == "booked"
    assert await payments.balance(korean) == 50_000 * 10**6


async def test_an_event_that_is_delivered_again_has_no_effect(payments: Payments, customer: Customer) -> None:
    told = paid(customer)
    assert await payments.tell(told) == "booked"
    # Stripe counts down how many deliveries are due, and signs each anew.
    assert await payments.tell(told | {"pending_webhooks": 0}) == "booked"
    assert await payments.balance(customer) == 1999 * CENT
    assert len(await payments.events()) == 1
    assert await payments.count("posting") == 1


async def test_ten_deliveries_at_a_time_are_one(payments: Payments, customer: Customer) -> None:
    told = [paid(customer)] * 4 + [
        event("checkout.session.completed", session(metadata=of(customer)), "evt_session")
    ] * 4
    states = await asyncio.gather(*(payments.tell(one) for one in told))
    assert set(states) == {"booked", "repeated"}
    assert await payments.balance(customer) == 1999 * CENT
    assert sorted(kept["state"] for kept in await payments.events()) == ["booked", "repeated"]


async def test_a_payment_by_checkout_is_told_twice_and_booked_once(payments: Payments, customer: Customer) -> None:
    # An intent made by Checkout does not carry what the session knows, and comes first as a rule.
    without = event("payment_intent.succeeded", intent(metadata={}), "evt_intent")
    assert await payments.tell(without) == "unbooked"
    assert await payments.tell(event("checkout.session.completed", session(metadata=of(customer)))) == "booked"
    assert await payments.balance(customer) == 1999 * CENT
    assert await payments.events(state="unbooked") == []
    (earlier,) = await payments.events(state="repeated")
    assert (earlier["event_id"], earlier["reason"]) == ("evt_intent", "Booked with the event evt_1Pgc76.")
    assert await payments.tell(without | {"id": "evt_late"}) == "repeated"


async def test_another_event_under_a_known_id_is_refused(payments: Payments, customer: Customer) -> None:
    await payments.tell(paid(customer))
    answer = await payments.send(body(paid(customer, amount_received=5_000)))
    assert answer.status_code == 409
    assert "was another one" in answer.json()["error"]["message"]
    assert await payments.balance(customer) == 1999 * CENT
    assert len(await payments.events()) == 1


async def test_a_refund_of_all_takes_the_credit_back(payments: Payments, customer: Customer) -> None:
    await payments.tell(paid(customer))
    assert await payments.tell(refunded(1999, "evt_refund")) == "booked"
    assert await payments.balance(customer) == 0
    assert await payments.tell(refunded(1999, "evt_refund_again")) == "repeated"
    assert await payments.balance(customer) == 0
    assert (await payments.shown("/verify"))["ok"]


async def test_refunds_of_parts_are_told_by_their_sum(payments: Payments, customer: Customer) -> None:
    await payments.tell(paid(customer))
    assert await payments.tell(refunded(500, "evt_first")) == "booked"
    assert await payments.balance(customer) == 1499 * CENT
    assert await payments.tell(refunded(1200, "evt_second")) == "booked"
    assert await payments.tell(refunded(900, "evt_late")) == "repeated"
    assert await payments.balance(customer) == 799 * CENT
    assert (await payments.shown("/verify"))["ok"]


async def test_a_refund_that_a_person_recorded_is_not_booked_again(payments: Payments, customer: Customer) -> None:
    await payments.tell(paid(customer))
    (payment,) = (await payments.shown("/payments"))["data"]
    await payments.made(f"/payments/{payment['id']}/refunds", {"amount": {"amount": "5.00", "currency": "USD"}})
    assert await payments.tell(refunded(500, "evt_told_of_it")) == "repeated"
    assert await payments.balance(customer) == 1499 * CENT
    assert await payments.tell(refunded(1200, "evt_more")) == "booked"
    assert await payments.balance(customer) == 799 * CENT
    assert (await payments.shown("/verify"))["ok"]


async def test_a_payment_for_an_invoice_that_is_not_open_is_credit(payments: Payments, customer: Customer) -> None:
    told = paid(customer)
    told["data"]["object"]["metadata"]["invoice_id"] = INVOICE
    assert await payments.tell(told) == "booked"
    assert await payments.balance(customer) == 1999 * CENT


UNBOOKABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no organization": ({"metadata": {}}, "names no organization"),
    "an organization that does not exist": (
        {"metadata": {"organization_id": "01970000-0000-7000-8000-0000000000ff"}},
        "does not exist",
    ),
    "another currency": ({"currency": "eur"}, "is in EUR, the organization's currency is USD"),
    "a currency without a ledger": ({"currency": "gbp"}, "is in GBP"),
    "nothing": ({"amount_received": 0}, "amount is zero"),
    "no amount": ({"amount_received": None}, "names no amount"),
    "more than the ledger holds": ({"amount_received": 10**12}, "larger than the ledger can hold"),
}


@pytest.mark.parametrize(("changes", "reason"), UNBOOKABLE.values(), ids=UNBOOKABLE)
async def test_what_cannot_be_booked_waits_for_a_person(
    payments: Payments, customer: Customer, changes: dict[str, Any], reason: str
) -> None:
    told = event("payment_intent.succeeded", intent(**{"metadata": of(customer)} | changes))
    assert await payments.tell(told) == "unbooked"
    assert await payments.tell(told) == "unbooked"
    assert await payments.balance(customer) == 0
    assert await payments.count("posting") == 0
    (kept,) = await payments.events(state="unbooked")
    assert reason in kept["reason"]
    (alert,) = (await payments.shown("/alerts"))["data"]
    assert (alert["event"], alert["organization_id"]) == ("payment.unbooked", None)
    assert alert["data"]["webhook_event_id"] == kept["id"]


async def test_a_closed_organization_gets_no_money(payments: Payments, customer: Customer) -> None:
    await payments.made(f"/organizations/{customer.id}/close")
    assert await payments.tell(paid(customer)) == "unbooked"
    assert (await payments.events())[0]["reason"] == "The organization is closed. Refund the payment at the provider."


REFUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "more than was paid": (refunded(2000, "evt_2"), "More is refunded than was paid"),
    "of another payment": (
        event("charge.refunded", charge(payment_intent="pi_other"), "evt_2"),
        "was never booked",
    ),
    "in another currency": (event("charge.refunded", charge(currency="eur"), "evt_2"), "is in EUR"),
    "a dispute": (event("charge.dispute.created", dispute(), "evt_2"), "is disputed"),
}


@pytest.mark.parametrize(("told", "reason"), REFUNDS.values(), ids=REFUNDS)
async def test_refunds_and_disputes_that_need_a_person(
    payments: Payments, customer: Customer, told: dict[str, Any], reason: str
) -> None:
    await payments.tell(paid(customer))
    assert await payments.tell(told) == "unbooked"
    assert await payments.balance(customer) == 1999 * CENT
    (kept,) = await payments.events(state="unbooked")
    assert reason in kept["reason"]


async def test_nothing_of_cards_or_people_is_kept(payments: Payments, customer: Customer) -> None:
    await payments.tell(event("checkout.session.completed", session(metadata=of(customer))))
    await payments.tell(refunded(500, "evt_2"))
    events = await payments.events()
    assert len(events) == 2
    for trace in ("Jenny", "jenny", "4242", "visa"):
        assert trace not in str(events)


async def test_what_moves_no_money_is_not_kept(payments: Payments) -> None:
    assert await payments.tell(event("customer.created", {"id": "cus_1", "object": "customer"})) == "ignored"
    assert await payments.events() == []


async def test_events_are_listed_page_by_page(payments: Payments, customer: Customer) -> None:
    for number in range(3):
        await payments.tell(paid(customer, f"evt_{number}", id=f"pi_{number}"))
    first = await payments.shown("/webhook_events", limit=2)
    assert [kept["event_id"] for kept in first["data"]] == ["evt_2", "evt_1"]
    assert first["has_more"]
    rest = await payments.shown("/webhook_events", limit=2, after=first["last_id"])
    assert [kept["event_id"] for kept in rest["data"]] == ["evt_0"]
    assert (await payments.get("/webhook_events", state="lost")).status_code == 422


@pytest.mark.parametrize(
    "statement",
    [
        "update webhook_event set digest = sha256('x')",
        "update webhook_event set event_id = 'evt_other'",
        "delete from webhook_event",
        "update alert set detail = '{}'",
        "delete from alert",
        "update alert_endpoint set url = 'https://example.com'",
        "delete from alert_delivery",
    ],
)
async def test_the_program_cannot_rewrite_what_was_told(payments: Payments, statement: str) -> None:
    async with payments.parts.engine.connect() as connection:
        with pytest.raises(DBAPIError, match="permission denied"):
            await connection.execute(text(statement))


async def test_while_the_database_is_away_the_provider_is_told_to_come_again(
    payments: Payments, customer: Customer
) -> None:
    engine, away = payments.parts.engine, make_engine("postgresql://nobody@127.0.0.1:1/none")
    payments.parts.engine = away
    answer = await payments.send(body(paid(customer)))
    payments.parts.engine = engine
    await away.dispose()
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert await payments.tell(paid(customer)) == "booked"


async def test_an_event_and_its_booking_commit_together_or_not_at_all(
    payments: Payments, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any, **__: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as broken:
        broken.setattr(payments_in, "write_audit", breaks)
        assert (await payments.send(body(paid(customer)))).status_code == 503
    for table in ("webhook_event", "posting", "credit_grant"):
        assert await payments.count(table) == 0
    assert await payments.tell(paid(customer)) == "booked"
    assert await payments.balance(customer) == 1999 * CENT
