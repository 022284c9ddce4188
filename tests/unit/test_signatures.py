"""Signatures of webhooks: what the provider's own library signs is taken, and nothing else is."""

from __future__ import annotations

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from gateway.signatures import check_signature, sign
from models.errors import InvalidRequest

SECRET, OTHER = "whsec_of_the_tests_0123456789", "whsec_of_somebody_else_012345"
NOW, TOLERANCE = 1_795_000_000, 300
BODY = '{"id": "evt_1", "name": "Ünïcode \u2028"}'


def official(body: str = BODY, secret: str = SECRET, at: int = NOW) -> str:
    """The header that Stripe's library makes."""
    header: str = stripe.WebhookSignature.generate_signature_header(body, secret, at)
    return header


def check(header: str, body: str = BODY, secret: str = SECRET, now: int = NOW) -> None:
    check_signature(header.encode("latin-1", "replace"), body.encode(), secret.encode(), now, TOLERANCE)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 10**10))
def test_we_take_what_stripe_signs_and_stripe_takes_what_we_sign(body: str, at: int) -> None:
    check(official(body, at=at), body, now=at)
    ours = sign(SECRET.encode(), body.encode(), at)
    assert ours == official(body, at=at)
    assert stripe.WebhookSignature.verify_header(body, ours, SECRET)


DIGEST = official().partition("v1=")[2]
TAKEN = {
    "as it is": official(),
    "a second signature of another secret, while they are rotated": f"{official()},v1={'0' * 64}",
    "the other one first": f"t={NOW},v1={'0' * 64},v1={DIGEST}",
    "a scheme of the future, and the one for tests": f"t={NOW},v0={'0' * 64},v1={DIGEST},v2=x",
    "blanks after the commas": f"t={NOW}, v1={DIGEST}",
}


@pytest.mark.parametrize("header", TAKEN.values(), ids=TAKEN)
def test_taken(header: str) -> None:
    check(header)


REFUSED = {
    "none": "",
    "another secret": official(secret=OTHER),
    "no time": f"v1={DIGEST}",
    "no digest": f"t={NOW}",
    "an empty digest": f"t={NOW},v1=",
    "another time than was signed": f"t={NOW + 1},v1={DIGEST}",
    "two times": f"t={NOW},t={NOW},v1={DIGEST}",
    "the scheme that Stripe's tests have": f"t={NOW},v0={DIGEST}",
    "a digest in capitals": f"t={NOW},v1={DIGEST.upper()}",
    "a digest of which a part is missing": f"t={NOW},v1={DIGEST[:-1]}",
    "a time with a sign": f"t=+{NOW},v1={DIGEST}",
    "a time with underscores": f"t=1_795_000_000,v1={DIGEST}",
    "a time in another script": f"t={'１'}{str(NOW)[1:]},v1={DIGEST}",
    "superscripts, which are digits to Python": f"t=¹{str(NOW)[1:]},v1={DIGEST}",
    "a time as large as memory": f"t={'9' * 1_000},v1={DIGEST}",
    "a header without end": f"t={NOW},v1={DIGEST}" + f",v1={DIGEST}" * 100,
    "a digest that is not ASCII": f"t={NOW},v1={'é' * 64}",
}


@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED)
def test_refused_all_alike(header: str) -> None:
    with pytest.raises(InvalidRequest, match="missing or wrong"):
        check(header)


@pytest.mark.parametrize("change", [lambda body: body + " ", lambda body: body.replace("1", "2"), lambda body: ""])
def test_a_body_that_was_changed_is_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(InvalidRequest, match="missing or wrong"):
        check(official(), change(BODY))


@pytest.mark.parametrize(("away", "is_taken"), [(-301, False), (-300, True), (0, True), (300, True), (301, False)])
def test_the_time_counts_in_both_directions(away: int, is_taken: bool) -> None:
    header = official(at=NOW + away)
    if is_taken:
        check(header)
    else:
        with pytest.raises(InvalidRequest, match="more than 300 seconds"):
            check(header)


def test_a_stranger_does_not_learn_that_the_time_is_wrong() -> None:
    with pytest.raises(InvalidRequest, match="missing or wrong"):
        check(official(secret=OTHER, at=NOW - 10_000))
