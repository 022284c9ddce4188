"""How the call of a dead gateway ends: what is charged, what is void, and what the charge says about itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.hot.entries import decode_checkpoint, encode_checkpoint
from billing.pricing import price
from billing.sweeper import end_of
from models.call import CallOrigin, Charge, Checkpoint, Endpoint, Hold, HoldRequest, Void
from models.catalog import Rates
from models.ids import uuid7
from models.money import MilliUnits, Units
from models.usage import Ending, TokenUsage, UsageSource
from tests.unit.hot.test_hot_entries import NOW

LATER = NOW + timedelta(seconds=40)
RATES = Rates(MilliUnits(1_000), MilliUnits(3_000), MilliUnits(500), MilliUnits(1_500), MilliUnits(3_000))
ORIGIN = CallOrigin(
    *(uuid7(NOW), uuid7(NOW), uuid7(NOW), uuid7(NOW)),
    shard=3,
    currency="USD",
    endpoint=Endpoint.CHAT_COMPLETIONS,
    model="tiny",
    streamed=True,
    created_at=NOW,
)
HOLD = Hold(HoldRequest(ORIGIN, Units(1_000), RATES, 400, 200))


def point(usage: TokenUsage, source: UsageSource = UsageSource.BACKEND_PARTIAL, accepted: bool = True) -> Checkpoint:
    return Checkpoint(ORIGIN, usage, source, "tiny@here", accepted)


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        pytest.param(None, "within a second", id="it died within a second of the hold"),
        pytest.param(point(TokenUsage(10, 0), accepted=False), "accepted", id="no backend had accepted the call"),
    ],
)
def test_a_call_that_cost_nothing_is_void(checkpoint: Checkpoint | None, reason: str) -> None:
    end = end_of(HOLD, checkpoint, LATER)
    assert isinstance(end, Void)
    assert end.hold is HOLD
    assert reason in end.reason


@pytest.mark.parametrize(
    ("usage", "amount"),
    [
        pytest.param(TokenUsage(100, 0), 100, id="only the prompt, before the first token"),
        pytest.param(TokenUsage(100, 50), 250, id="prompt and tokens so far"),
        pytest.param(TokenUsage(100, 50, cached=80), 210, id="part of the prompt from the cache"),
        pytest.param(TokenUsage(100, 50, cache_write=20, reasoning=50), 260, id="cache written, all of it reasoning"),
        pytest.param(TokenUsage(400, 200), 1_000, id="all that the hold covers"),
        pytest.param(TokenUsage(400, 201), 1_000, id="never more than the hold"),
    ],
)
def test_an_accepted_call_is_charged_its_checkpoint(usage: TokenUsage, amount: int) -> None:
    end = end_of(HOLD, point(usage), LATER)
    assert isinstance(end, Charge)
    assert (end.amount, end.hold) == (amount, 1_000)
    assert (end.ending, end.usage_source) == (Ending.RECOVERED, UsageSource.CHECKPOINT)
    assert (end.call_id, end.deployment, end.created_at, end.ended_at) == (ORIGIN.call_id, "tiny@here", NOW, LATER)
    assert TokenUsage(
        end.input_tokens, end.output_tokens, end.cached_tokens, end.cache_write_tokens, end.reasoning_tokens
    ) == usage  # fmt: skip
    assert end.flags == (("above_hold",) if price(usage, RATES) > amount else ())


@pytest.mark.parametrize(
    ("source", "reported", "counted"),
    [
        (UsageSource.BACKEND_PARTIAL, {"checkpoint": {"input": 9, "output": 4, "cached": 2}}, None),
        (UsageSource.TIKTOKEN, None, {"input": 9, "output": 4, "exact": True}),
        (UsageSource.ESTIMATE, None, {"input": 9, "output": 4, "exact": False}),
    ],
)
def test_a_charge_says_whose_count_it_is(source: UsageSource, reported: object, counted: object) -> None:
    end = end_of(HOLD, point(TokenUsage(9, 4, cached=2), source), LATER)
    assert isinstance(end, Charge)
    assert (end.reported, end.counted) == (reported, counted)


def test_a_clock_that_went_back_ends_no_call_before_it_began() -> None:
    end = end_of(HOLD, point(TokenUsage(1, 1)), NOW - timedelta(days=1))
    assert isinstance(end, Charge)
    assert end.ended_at == NOW


@st.composite
def usages(draw: st.DrawFn) -> TokenUsage:
    prompt, answer = draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 2**31 - 1))
    cached = draw(st.integers(0, prompt))
    written = draw(st.integers(0, prompt - cached))
    return TokenUsage(prompt, answer, cached=cached, cache_write=written, reasoning=draw(st.integers(0, answer)))


@settings(max_examples=50, deadline=None)
@given(usages(), st.sampled_from(UsageSource), st.text(max_size=20), st.booleans())
def test_a_checkpoint_comes_back_as_it_was(usage: TokenUsage, source: UsageSource, name: str, accepted: bool) -> None:
    checkpoint = Checkpoint(ORIGIN, usage, source, name, accepted)
    assert decode_checkpoint(ORIGIN, encode_checkpoint(checkpoint)) == checkpoint


@settings(max_examples=50, deadline=None)
@given(usages(), st.integers(0, 10**12))
def test_no_recovered_charge_is_above_its_hold(usage: TokenUsage, held: int) -> None:
    hold = Hold(replace(HOLD.request, amount=Units(held)))
    end = end_of(hold, point(usage), LATER)
    assert isinstance(end, Charge)
    assert end.amount == min(price(usage, RATES), held)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b'[[1,2,3,0,0],"backend","",true]', b'[[1,2,0,0,0],"x","",1]'])
def test_what_is_no_checkpoint_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=f"not a checkpoint of call {ORIGIN.call_id}"):
        decode_checkpoint(ORIGIN, payload)
