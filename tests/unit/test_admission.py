"""What a principal's limits and permissions make of a call, before anybody is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from billing.admission import hold_request, is_sold_for, permit
from models.account import Limits, Principal
from models.call import CallOrigin, Endpoint, RateBucket
from models.catalog import Model
from models.errors import NotPermitted
from models.money import MilliUnits
from tests.unit.samples import NOW, PRINCIPAL, RATES, chat_request

MODEL = Model("m", 4_096, NOW)
PROJECT = f"project:{UUID(int=2)}"


def buckets(principal: Principal, model: str = "m") -> tuple[RateBucket, ...]:
    origin = CallOrigin(
        UUID(int=7), UUID(int=1), UUID(int=2), UUID(int=3), 1, "USD", Endpoint.CHAT_COMPLETIONS, model, False, NOW
    )
    hold = hold_request(chat_request(), origin, principal, replace(MODEL, id=model), RATES)
    assert hold.input_bound + hold.output_bound == 672
    return hold.buckets


@pytest.mark.parametrize(
    ("limits", "made"),
    [
        pytest.param(Limits(), (), id="none"),
        pytest.param(Limits(requests_per_minute=5), (RateBucket(f"{PROJECT}:m:requests", 5, 1),), id="requests"),
        pytest.param(Limits(tokens_per_minute=9), (RateBucket(f"{PROJECT}:m:tokens", 9, 672),), id="tokens"),
        pytest.param(
            Limits(requests_per_day=7), (RateBucket(f"{PROJECT}:m:requests_a_day", 7, 1, 1_440),), id="requests a day"
        ),
    ],
)
def test_limits_of_a_model_become_buckets_of_its_calls(limits: Limits, made: tuple[RateBucket, ...]) -> None:
    principal = replace(PRINCIPAL, model_limits={"m": limits})
    assert buckets(principal) == made
    assert buckets(principal, "other") == ()


def test_a_key_is_counted_with_the_one_it_took_the_place_of() -> None:
    limited = replace(PRINCIPAL, key_limits=Limits(requests_per_minute=5))
    successor = replace(limited, api_key_id=UUID(int=4), counted_as=UUID(int=3))
    assert buckets(limited) == buckets(successor) == (RateBucket(f"key:{UUID(int=3)}:requests", 5, 1),)


@pytest.mark.parametrize(
    ("models", "denied", "may"),
    [
        pytest.param(None, frozenset(), True, id="no list"),
        pytest.param(frozenset({"m"}), frozenset(), True, id="on the list"),
        pytest.param(frozenset({"x"}), frozenset(), False, id="not on the list"),
        pytest.param(frozenset(), frozenset(), False, id="an empty list"),
        pytest.param(None, frozenset({"m"}), False, id="denied"),
        pytest.param(frozenset({"m"}), frozenset({"m"}), False, id="on the list and denied"),
        pytest.param(None, frozenset({"x"}), True, id="another is denied"),
    ],
)
def test_permit(models: frozenset[str] | None, denied: frozenset[str], may: bool) -> None:
    principal = replace(PRINCIPAL, models=models, denied=denied)
    assert principal.may_call("m") is may
    if may:
        permit(principal, "m")
    else:
        with pytest.raises(NotPermitted, match="may not call the model 'm'"):
            permit(principal, "m")


@pytest.mark.parametrize(
    ("priced", "images", "sounds", "is_sold"),
    [
        ({"output": 1}, False, False, True),
        ({"request": 1}, False, False, True),
        ({}, False, False, True),
        ({"image": 1}, False, False, False),
        ({"image": 1}, True, False, True),
        ({"image": 1}, False, True, False),
        ({"audio_second": 1}, False, True, True),
        ({"audio_second": 1}, True, False, False),
        ({"image": 1, "audio_second": 1}, False, False, False),
        ({"image": 1, "input": 1}, False, False, True),
    ],
)
def test_what_a_model_is_sold_for(priced: dict[str, int], images: bool, sounds: bool, is_sold: bool) -> None:
    prices: dict[str, Any] = dict.fromkeys(("input", "cached_input", "output"), MilliUnits(0))
    rates = replace(RATES, **prices | priced)
    assert is_sold_for(rates, images=images, sounds=sounds) is is_sold
