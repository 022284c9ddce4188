"""The JSON on the stream and in open holds: the same value comes back, and a bad one is refused with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.hot.entries import (
    decode_charge,
    decode_checkpoint,
    decode_hold,
    encode_charge,
    encode_checkpoint,
    encode_hold,
    encode_request,
)
from models.call import (
    CallOrigin,
    Charge,
    Checkpoint,
    Endpoint,
    HoldRequest,
    InFlightLimit,
    MonthlyLimit,
    RateBucket,
)
from models.catalog import Rates
from models.ids import uuid7
from models.money import MilliUnits, Units
from models.usage import Ending, TokenUsage, UsageSource
from tests.unit.samples import chat_request, deployment, make_call

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CALL = uuid7(NOW)
PRICE = MilliUnits(1)
TIME_OF_REDIS = b'{"placed_at_ms":1234,'
RATES = Rates(PRICE, PRICE, PRICE, PRICE, PRICE)
CHARGE = Charge(
    *(CALL, uuid7(NOW), uuid7(NOW), uuid7(NOW)),
    currency="USD",
    endpoint=Endpoint.COMPLETIONS,
    model="tiny",
    deployment="tiny@here",
    streamed=False,
    ending=Ending.FINISHED,
    usage_source=UsageSource.BACKEND,
    input_tokens=10,
    cached_tokens=4,
    cache_write_tokens=1,
    output_tokens=20,
    reasoning_tokens=5,
    amount=30,
    hold=40,
    price_version_ids=(uuid7(NOW),),
    created_at=NOW,
    ended_at=NOW,
)

MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
COUNTS = st.integers(0, 2**31 - 1)
FEW = st.just(0) | COUNTS
AMOUNTS = st.integers(0, 9 * 10**15)
USAGE = st.none() | st.dictionaries(TEXT, COUNTS | TEXT | st.none() | st.lists(st.booleans(), max_size=2), max_size=3)


@st.composite
def charges(draw: st.DrawFn) -> Charge:
    """Any charge that Postgres takes."""
    amount, spare = draw(AMOUNTS), draw(AMOUNTS)
    output = draw(COUNTS)
    return replace(
        CHARGE,
        call_id=draw(st.uuids()),
        model=draw(TEXT),
        streamed=draw(st.booleans()),
        ending=draw(st.sampled_from(Ending)),
        usage_source=draw(st.sampled_from(UsageSource)),
        input_tokens=draw(st.integers(5, 2**31 - 1)),
        output_tokens=output,
        reasoning_tokens=draw(st.integers(0, output)),
        amount=min(amount, spare),
        hold=max(amount, spare),
        price_version_ids=tuple(draw(st.lists(st.uuids(), max_size=3))),
        created_at=draw(MOMENTS),
        ended_at=draw(MOMENTS),
        end_user=draw(st.none() | TEXT),
        reported=draw(USAGE),
        counted=draw(USAGE),
        flags=tuple(draw(st.lists(TEXT, max_size=3))),
        corrects=draw(st.none() | st.uuids()),
        version=draw(TEXT),
        images=draw(FEW),
        audio_seconds=draw(FEW),
        batch=draw(st.booleans()),
    )


@st.composite
def requests(draw: st.DrawFn) -> HoldRequest:
    """Any hold."""
    origin = CallOrigin(
        call_id=draw(st.uuids()),
        organization_id=draw(st.uuids()),
        project_id=draw(st.uuids()),
        api_key_id=draw(st.uuids()),
        shard=draw(st.integers(0, 15)),
        currency="USD",
        endpoint=draw(st.sampled_from(Endpoint)),
        model=draw(TEXT),
        streamed=draw(st.booleans()),
        created_at=draw(MOMENTS),
        end_user=draw(st.none() | TEXT),
        batch=draw(st.booleans()),
    )
    prices = [MilliUnits(price) for price in draw(st.lists(AMOUNTS, min_size=6, max_size=6))]
    versions = tuple(draw(st.lists(st.uuids(), max_size=3)))
    image, audio_second = (MilliUnits(draw(st.just(0) | AMOUNTS)) for _ in range(2))
    rates = Rates(
        prices[0],
        prices[1],
        prices[2],
        prices[3],
        prices[4],
        prices[5],
        versions,
        image=image,
        audio_second=audio_second,
    )
    buckets = st.lists(st.builds(RateBucket, TEXT, COUNTS, COUNTS), max_size=3)
    places = st.lists(st.builds(InFlightLimit, TEXT, COUNTS), max_size=3)
    amount = Units(draw(AMOUNTS))
    limits = tuple(draw(buckets)), tuple(draw(places))
    return HoldRequest(
        *(origin, amount, rates, draw(COUNTS), draw(COUNTS), *limits),
        images_bound=draw(FEW),
        audio_seconds_bound=draw(FEW),
    )


@settings(max_examples=50, deadline=None)
@given(charges())
def test_a_charge_comes_back_as_it_was(charge: Charge) -> None:
    assert decode_charge(encode_charge(charge)) == charge


@settings(max_examples=50, deadline=None)
@given(requests())
def test_a_hold_comes_back_as_it_was(request: HoldRequest) -> None:
    entry = decode_hold(TIME_OF_REDIS + encode_hold(request)[1:])
    assert entry.request == request
    assert entry.placed_at_ms == 1_234


def test_a_hold_that_was_placed_before_there_were_limits_of_a_day() -> None:
    origin = CallOrigin(CALL, CALL, CALL, CALL, 0, "USD", Endpoint.EMBEDDINGS, "tiny", False, NOW)
    request = HoldRequest(origin, Units(5), RATES, 1, 1, (RateBucket("a:tokens", 10, 5),))
    written = encode_hold(request).replace(b',"minutes":1', b"")
    assert b"minutes" not in written
    assert decode_hold(TIME_OF_REDIS + written[1:]).request == request


def test_what_a_script_needs_to_end_a_call_comes_before_the_request() -> None:
    origin = CallOrigin(CALL, CALL, CALL, CALL, 0, "USD", Endpoint.EMBEDDINGS, "tiny", False, NOW)
    buckets = (RateBucket("a:tokens", 10, 5), RateBucket('"request":', 10, 1))
    places = (InFlightLimit('a,"request":', 3),)
    written = encode_hold(HoldRequest(origin, Units(5), RATES, 1, 1, buckets, places), 'one,"request":')
    front = json.loads(written.partition(b',"request":')[0] + b"}")
    tokens = [{"scope": "a:tokens", "per_minute": 10, "cost": 5, "minutes": 1}]
    assert front.pop("instance") == 'one,"request":'
    assert front == {"amount": "5", "tokens": tokens, "in_flight": ['a,"request":'], "spend": []}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"output_tokens": -1}, "negative", id="negative tokens"),
        pytest.param({"output_tokens": 2**31}, "more tokens", id="more than an integer column holds"),
        pytest.param({"cached_tokens": 10}, "cached", id="cached and written tokens exceed the input"),
        pytest.param({"reasoning_tokens": 21}, "reasoning", id="reasoning exceeds the output"),
        pytest.param({"amount": 41}, "outside its hold", id="more than the hold"),
        pytest.param({"amount": -1}, "outside its hold", id="a negative charge that corrects nothing"),
        pytest.param({"images": -1}, "images", id="less than no image"),
        pytest.param({"audio_seconds": 2**31}, "seconds", id="more seconds than an integer column holds"),
        pytest.param({"hold": 10**16}, "largest", id="a hold beyond the largest balance"),
        pytest.param({"ended_at": "2026-03-01T00:00:00"}, "zone", id="a time without a zone"),
        pytest.param({"end_user": "a\0b"}, "NUL", id="a NUL in the end user"),
        pytest.param({"reported": {"a\\\0": 1}}, "NUL", id="a NUL after a backslash"),
        pytest.param({"amount": "30"}, "Expected `int`", id="an amount as text"),
        pytest.param({"amount": 1.5}, "Expected `int`", id="part of a unit"),
        pytest.param({"call_id": "7"}, "UUID", id="a call id that is none"),
        pytest.param({"ending": "gone"}, "enum", id="an unknown ending"),
    ],
)
def test_a_charge_that_would_fail_its_batch_is_refused(changes: dict[str, Any], reason: str) -> None:
    payload = json.dumps(json.loads(encode_charge(CHARGE)) | changes).encode()
    with pytest.raises(ValueError, match=reason):
        decode_charge(payload)


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"{", b"\xff", b"null", encode_charge(CHARGE)[:-1]])
def test_what_is_no_charge_and_no_hold_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a charge"):
        decode_charge(payload)
    with pytest.raises(ValueError, match="not a hold"):
        decode_hold(payload)


def test_the_text_of_an_escape_is_not_the_character() -> None:
    """Or a caller could name an end user by which no call of theirs is booked."""
    charge = replace(CHARGE, end_user="\\u0000")
    assert decode_charge(encode_charge(charge)) == charge


NEW_FIELDS = (b"images", b"audio_second", b"batch", b'"version"')


def test_what_a_call_of_tokens_has_none_of_takes_no_room() -> None:
    """An entry of an older process, which knew of none of it, is read the same."""
    written = encode_charge(CHARGE)
    assert written.endswith(b',"corrects":null,"version":""}')
    assert not any(name in written for name in NEW_FIELDS[:3])
    assert decode_charge(written.replace(b',"version":""', b"")) == CHARGE
    origin = CallOrigin(CALL, CALL, CALL, CALL, 0, "USD", Endpoint.EMBEDDINGS, "tiny", False, NOW)
    request = HoldRequest(origin, Units(5), RATES, 1, 1)
    old = encode_hold(request)
    assert not any(name in old for name in NEW_FIELDS)
    assert decode_hold(TIME_OF_REDIS + old[1:]).request == request


def test_a_name_that_looks_like_a_default_is_kept() -> None:
    tricky = ',"batch":false},"image":0,"audio_second":0},"images_bound":0,"audio_seconds_bound":0}'
    origin = CallOrigin(CALL, CALL, CALL, CALL, 0, "USD", Endpoint.EMBEDDINGS, tricky, False, NOW, tricky, batch=True)
    rates = replace(RATES, image=PRICE)
    request = HoldRequest(origin, Units(5), rates, 1, 1, spend=(MonthlyLimit(tricky, Units(1)),))
    assert decode_hold(TIME_OF_REDIS + encode_hold(request)[1:]).request == request
    charge = replace(CHARGE, end_user=tricky, version=',"images":0,"audio_seconds":0,"batch":false}')
    assert decode_charge(encode_charge(charge)) == charge


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(TokenUsage(10, 5, 4, 1, 2), id="tokens, in the form that there always was"),
        pytest.param(TokenUsage(10, 0, images=2), id="images"),
        pytest.param(TokenUsage(0, 5, audio_seconds=61), id="seconds of audio"),
    ],
)
def test_a_checkpoint_comes_back_as_it_was(usage: TokenUsage) -> None:
    origin = CallOrigin(CALL, CALL, CALL, CALL, 0, "USD", Endpoint.EMBEDDINGS, "tiny", False, NOW)
    point = Checkpoint(origin, usage, UsageSource.ESTIMATE, "tiny@here", True)
    written = encode_checkpoint(point)
    assert decode_checkpoint(origin, written) == point
    assert len(json.loads(written)[0]) == (7 if usage.images or usage.audio_seconds else 5)


@pytest.mark.parametrize("tokens", [[1, 2, 3, 4], [1] * 8, [5, 5, 0, 0, 0, -1, 0]])
def test_a_checkpoint_of_other_numbers_is_refused(tokens: list[int]) -> None:
    origin = CallOrigin(CALL, CALL, CALL, CALL, 0, "USD", Endpoint.EMBEDDINGS, "tiny", False, NOW)
    with pytest.raises(ValueError, match="not a checkpoint"):
        decode_checkpoint(origin, json.dumps([tokens, "estimate", "here", True]).encode())


def test_a_correction_may_be_negative() -> None:
    charge = replace(CHARGE, amount=-30, corrects=CALL)
    assert decode_charge(encode_charge(charge)) == charge


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"rates": replace(RATES, image=MilliUnits(5))}, id="with a price of images"),
        pytest.param({"images_bound": 3, "audio_seconds_bound": 9}, id="with images and seconds"),
        pytest.param({"buckets": (RateBucket("key:x:requests", 5, 1),)}, id="with a limit"),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_a_request_is_read_as_it_was(changes: dict[str, Any], batch: bool) -> None:
    request = make_call(chat_request(), (deployment(),)).hold_request
    request = replace(request, origin=replace(request.origin, batch=batch), **changes)
    # Twice: the second time its rates are known.
    for _ in range(2):
        written = b'{"placed_at_ms":1,"instance":"","amount":"1","request":%b}' % encode_request(request)
        assert decode_hold(written).request == request


def test_an_id_that_is_anothers_by_now_is_no_rates() -> None:
    for price in range(5_000):
        rates = replace(RATES, input=MilliUnits(price))
        request = replace(make_call(chat_request(), (deployment(),)).hold_request, rates=rates)
        assert b'"rates":{"input":%d,' % price in encode_request(request)
