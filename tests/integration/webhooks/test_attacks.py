"""Attack E06 and its kin: no webhook that the provider did not sign, just now, as it is, moves money."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from gateway.telemetry import configure_logging
from tests.integration.webhooks.world import SECRET, Customer, Payments, signature
from tests.unit.stripe_samples import body, event, intent

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

OTHER = "whsec_of_an_attacker_0123456789"


@pytest.fixture
def told(customer: Customer) -> bytes:
    return body(event("payment_intent.succeeded", intent(metadata={"organization_id": customer.id})))


@pytest.fixture
def log() -> Iterator[io.BytesIO]:
    """All log lines of a test; the logging of the test run is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    lines = io.BytesIO()
    configure_logging("debug", lines)
    yield lines
    configure_logging("info", io.BytesIO())
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


HEADERS = {
    "none": lambda told: "",
    "of another secret": lambda told: signature(told, OTHER),
    "of an empty secret": lambda told: signature(told, ""),
    "of another body": lambda told: signature(told + b" "),
    "old": lambda told: signature(told, at=int(time.time()) - 1_000),
    "of the future": lambda told: signature(told, at=int(time.time()) + 1_000),
    "an old one with a new time": lambda told: (
        f"t={int(time.time())},v1={signature(told, at=1_700_000_000).partition('v1=')[2]}"
    ),
    "the secret itself": lambda told: f"t={int(time.time())},v1={SECRET}",
    "the test scheme": lambda told: signature(told).replace("v1=", "v0="),
    "letters that are no digits elsewhere": lambda told: signature(told).replace("t=1", "t=\xb9"),
}


@pytest.mark.parametrize("forged", HEADERS.values(), ids=HEADERS)
async def test_e06_a_forged_payment_gives_nothing(
    payments: Payments, customer: Customer, told: bytes, forged: object
) -> None:
    assert callable(forged)
    header = forged(told).encode("latin-1")
    path = "/webhooks/payments/stripe"
    answer = await payments.client.post(path, content=told, headers={b"stripe-signature": header} if header else {})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "signature"
    assert SECRET not in answer.text
    assert await payments.events() == []
    assert await payments.balance(customer) == 0


async def test_two_signatures_are_none(payments: Payments, told: bytes) -> None:
    headers = [("stripe-signature", signature(told, OTHER)), ("stripe-signature", signature(told))]
    answer = await payments.client.post("/webhooks/payments/stripe", content=told, headers=headers)
    assert answer.status_code == 400
    assert await payments.events() == []


async def test_a_replay_within_the_tolerance_has_no_effect(payments: Payments, customer: Customer, told: bytes) -> None:
    header = signature(told)
    for _ in range(3):
        assert (await payments.send(told, header)).status_code == 200
    assert await payments.count("posting") == 1


@pytest.mark.parametrize("provider", ["acme", "Stripe", "stripe2", "..%2fstripe", "stripe%00", "ｓtripe"])
async def test_an_unknown_provider_is_not_there(payments: Payments, told: bytes, provider: str) -> None:
    assert (await payments.send(told, provider=provider)).status_code == 404


async def test_an_operator_key_is_no_signature(payments: Payments, told: bytes) -> None:
    answer = await payments.client.post("/webhooks/payments/stripe", content=told, headers=payments.headers({}))
    assert answer.status_code == 400
    assert (await payments.client.get("/webhooks/payments/stripe")).status_code == 405


async def test_a_large_body_is_refused_before_it_is_looked_at(payments: Payments) -> None:
    large = b" " * (256 * 1024 + 1)
    assert (await payments.send(large)).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 65_536

    headers = {"stripe-signature": "t=1,v1=" + "0" * 64}
    answer = await payments.client.post("/webhooks/payments/stripe", content=pieces(), headers=headers)
    assert answer.status_code == 413


async def test_a_signed_body_that_is_no_event_is_refused(payments: Payments) -> None:
    for sent in (b"", b"{}", b"[1]", b"null", b"{" * 1_000):
        assert (await payments.send(sent)).status_code == 400
    assert await payments.events() == []


async def test_the_log_says_what_was_refused_and_no_secret(
    payments: Payments, customer: Customer, told: bytes, log: io.BytesIO
) -> None:
    header = signature(told)
    await payments.send(told, header)
    await payments.send(told.replace(b"1999", b"9999"))
    structlog.get_logger().warning("flush")
    text = log.getvalue().decode()
    assert "webhook_event_changed" in text
    assert "evt_1Pgc76" in text
    assert SECRET not in text
    assert header.partition("v1=")[2] not in text
