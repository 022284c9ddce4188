"""A call that goes over to another model: what is charged, and which hold the ledger is told of."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from gateway.calls.choice import FALLBACK_FLAG, Leg
from gateway.calls.commands import Connect, Release, Settle
from gateway.calls.machine import Attempt, Call
from models.call import Hold
from models.catalog import Model, Rates
from models.errors import BackendFailed
from models.money import MilliUnits
from models.usage import BilledCount
from tests.unit.samples import NOW, RATES, chat_request, deployment, make_call

OWN_RATES = Rates(
    input=MilliUnits(100_000),
    output=MilliUnits(200_000),
    cached_input=MilliUnits(100_000),
    cache_write=MilliUnits(100_000),
    reasoning=MilliUnits(200_000),
    version_ids=(UUID(int=55),),
)
SPARE = Model("spare", 2_048, NOW, billed_count=BilledCount.BACKEND)
EVENTS = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
    b"data: [DONE]\n\n"
)


def fallen_over(leg: Leg) -> Call:
    """A call whose first attempt failed before the first byte, and whose second is the fallback's."""
    call = make_call(chat_request())
    own = Leg(call.model, "m", RATES)
    attempts = iter(
        [Attempt(deployment(number=1), b"{}", own), Attempt(deployment(number=2, model="spare"), b"{}", leg)]
    )
    call.next_attempt = lambda: next(attempts, None)
    call.begin()
    call.hold_answered(Hold(call.hold_request, encoded=b"the request as it was held"))
    call.upstream_failed(BackendFailed("no connection"))
    assert [type(each) for each in call.take()][-1] is Connect
    return call


def settled(call: Call) -> Settle:
    call.upstream_sent()
    call.upstream_head(200, b"text/event-stream")
    call.upstream_bytes(EVENTS)
    [settle] = [each for each in call.take() if isinstance(each, Settle)]
    return settle


def test_a_fallback_at_the_price_of_the_model() -> None:
    settle = settled(fallen_over(Leg(SPARE, "m", RATES, is_fallback=True)))
    charge = settle.charge
    assert (charge.model, charge.amount, charge.price_version_ids) == ("m", 5 * 150 + 2 * 600, RATES.version_ids)
    assert charge.flags == (FALLBACK_FLAG,)
    assert settle.hold.encoded, "the hold is as it was, and need not be written anew"


def test_a_fallback_at_its_own_price() -> None:
    call = fallen_over(Leg(SPARE, "spare", OWN_RATES, is_fallback=True))
    held = call.hold_request.amount
    settle = settled(call)
    charge = settle.charge
    assert (charge.model, charge.amount, charge.price_version_ids) == ("spare", 900, OWN_RATES.version_ids)
    assert (charge.hold, settle.hold.request.amount) == (held, held)
    assert settle.hold.request.rates is OWN_RATES
    assert not settle.hold.encoded, "what the journal keeps must be the hold that the charge was priced by"
    assert call.model is SPARE, "its tokenizer counts"


def test_back_at_the_model_its_price_is_charged() -> None:
    call = make_call(chat_request())
    spare = Leg(SPARE, "spare", OWN_RATES, is_fallback=True)
    call.hold_request = spare.charged(call.hold_request)
    own = Leg(make_call(chat_request()).model, "m", RATES)
    attempts = iter([Attempt(deployment(number=2, model="spare"), b"{}", spare), Attempt(deployment(), b"{}", own)])
    call.next_attempt = lambda: next(attempts, None)
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_failed(BackendFailed("no connection"))
    charge = settled(call).charge
    assert (charge.model, charge.amount, charge.flags) == ("m", 5 * 150 + 2 * 600, ())


@pytest.mark.parametrize("name", ["m", "spare"])
def test_a_fallback_that_fails_too_gives_the_hold_back(name: str) -> None:
    rates = RATES if name == "m" else OWN_RATES
    call = fallen_over(Leg(replace(SPARE, context_length=9), name, rates, is_fallback=True))
    call.upstream_failed(BackendFailed("no connection"))
    [release] = [each for each in call.take() if isinstance(each, Release)]
    assert release.void.hold.request.origin.call_id == call.hold_request.origin.call_id
