"""Money is integers; text is exact in both directions; each call is rounded once, half-even."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.pricing import ceiling, price
from billing.rounding import divide_half_even
from models.catalog import Rates
from models.errors import InvalidAmount
from models.money import CURRENCIES, MilliUnits, amount_text, parse_amount, parse_price, price_text
from models.usage import TokenUsage


def rates(input: int, output: int, *, cached: int | None = None, request: int = 0) -> Rates:
    return Rates(
        input=MilliUnits(input),
        output=MilliUnits(output),
        cached_input=MilliUnits(input if cached is None else cached),
        cache_write=MilliUnits(input),
        reasoning=MilliUnits(output),
        request=MilliUnits(request),
    )


RATES = rates(150_000, 600_000, cached=37_500)


@pytest.mark.parametrize(
    ("usage", "units"),
    [
        pytest.param(TokenUsage(input=1, output=0), 150, id="one input token at $0.15 per million"),
        pytest.param(TokenUsage(input=1, output=0, cached=1), 38, id="37.5 rounds half-even to 38"),
        pytest.param(TokenUsage(input=3, output=0, cached=3), 112, id="112.5 rounds half-even to 112"),
        pytest.param(TokenUsage(input=1_000_000, output=1_000_000), 750_000_000, id="a million of each is $0.75"),
        pytest.param(TokenUsage(input=0, output=0), 0, id="nothing costs nothing"),
    ],
)
def test_price(usage: TokenUsage, units: int) -> None:
    assert price(usage, RATES) == units


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**7), st.integers(0, 10**7))
def test_no_call_within_its_bounds_costs_more_than_its_ceiling(
    input: int, output: int, of_input: int, of_output: int
) -> None:
    some = rates(of_input, of_output, cached=of_input // 2, request=7)
    usage = TokenUsage(input=input, output=output, cached=input // 3, reasoning=output // 2)
    assert price(usage, some) <= ceiling(input, output, some)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_division_rounds_to_the_nearest_even(numerator: int, denominator: int) -> None:
    assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@pytest.mark.parametrize("code", CURRENCIES)
@given(units=st.integers(-(10**24), 10**24))
def test_amounts_survive_text(code: str, units: int) -> None:
    if len(amount_text(abs(units), code).split(".")[0]) <= 20:
        assert parse_amount(amount_text(units, code), code) == units


def test_prices_are_exact_to_the_micro_dollar_per_million() -> None:
    assert parse_price("0.0125", "USD") == 12_500
    assert price_text(12_500, "USD") == "0.012500"
    assert parse_price("1500", "KRW") == 1_500_000


@pytest.mark.parametrize("text", ["", "1e3", "NaN", "1,5", " 1", "1.", "٣", "0.0000000001", "--1", "Infinity"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidAmount):
        parse_amount(text, "USD")


def test_a_price_cannot_be_negative() -> None:
    with pytest.raises(InvalidAmount):
        parse_price("-0.1", "USD")
