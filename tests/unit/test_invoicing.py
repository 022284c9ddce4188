"""Lines of invoices: they add up exactly to the charges and rounded to the subtotal, whatever the charges are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.invoicing import UsageGroup, compose, insanity, round_lines
from billing.rounding import divide_half_even, round_to_sum
from billing.tax import TaxRule, assess
from models.catalog import Meter, PriceVersion, Scheme, Tier, TiersOver
from models.invoice import Line, LineKind, TaxTreatment
from models.money import MilliUnits

CENT = 10_000_000
PROJECT = UUID(int=1)
INPUT, CACHED, OUTPUT, REQUEST, TIERED, MONTHLY = (UUID(int=number) for number in range(2, 8))
_TIERS = (Tier(1_000, MilliUnits(600_000)), Tier(None, MilliUnits(100_000)))


def version(version_id: UUID, meter: Meter, price: int, **more: Any) -> PriceVersion:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    return PriceVersion(version_id, "default", "tiny", meter, "USD", MilliUnits(price), since, **more)


PRICES = {
    INPUT: version(INPUT, Meter.INPUT, 150_000),
    CACHED: version(CACHED, Meter.CACHED_INPUT, 75_000),
    OUTPUT: version(OUTPUT, Meter.OUTPUT, 600_000),
    REQUEST: version(REQUEST, Meter.REQUEST, 1_000_000),
    TIERED: version(TIERED, Meter.OUTPUT, 600_000, scheme=Scheme.GRADUATED, tiers=_TIERS),
    MONTHLY: version(MONTHLY, Meter.OUTPUT, 600_000, scheme=Scheme.GRADUATED, tiers=_TIERS, tiers_over=TiersOver.MONTH),
}


def group(
    amount: int, unbilled: int | None = None, prices: tuple[UUID, ...] = (INPUT, OUTPUT), **sums: int
) -> UsageGroup:
    given = {"calls": 1, "input_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0, "output_tokens": 0}
    given |= {"reasoning_tokens": 0, **sums}
    owed = amount if unbilled is None else unbilled
    return UsageGroup(PROJECT, "Web", "tiny", prices, amount=amount, unbilled=owed, **given)


def told(lines: Sequence[Line]) -> list[tuple[str, str | None, int, int]]:
    return [(line.kind.value, line.meter, line.quantity, line.amount) for line in lines]


@pytest.mark.parametrize(
    ("groups", "lines"),
    [
        pytest.param(
            [group(1_350, input_tokens=1, output_tokens=2)],
            [("usage", "input", 1, 150), ("usage", "output", 2, 1_200)],
            id="quantity by price",
        ),
        pytest.param(
            [group(300, input_tokens=2, cached_tokens=1, reasoning_tokens=0)],
            [("usage", "input", 2, 300)],
            id="what has no price of its own is in the one it is a part of",
        ),
        pytest.param(
            [group(225, prices=(INPUT, CACHED), input_tokens=2, cached_tokens=1)],
            [("usage", "input", 1, 150), ("usage", "cached_input", 1, 75)],
            id="what has one is apart",
        ),
        pytest.param(
            [group(1_150, prices=(INPUT, REQUEST), input_tokens=1)],
            [("usage", "input", 1, 150), ("usage", "request", 1, 1_000)],
            id="requests",
        ),
        pytest.param(
            [group(5_000, input_tokens=1)],
            [("usage", "input", 1, 150), ("adjustment", None, 0, 4_850)],
            id="a minimum charge",
        ),
        pytest.param(
            [group(100, input_tokens=1_000)],
            [("usage", "input", 1_000, 150_000), ("adjustment", None, 0, -149_900)],
            id="a call that was cut off at its hold",
        ),
        pytest.param(
            [group(777, prices=(INPUT, TIERED), input_tokens=1, output_tokens=9)],
            [("usage", "input", 1, 150), ("usage", "output", 9, 627)],
            id="a graduated price has the rest",
        ),
        pytest.param(
            [group(-70, calls=0)],
            [("adjustment", None, 0, -70), ("adjustment", None, 0, 70)],
            id="a correction alone becomes credit",
        ),
        pytest.param(
            [group(300, unbilled=100, input_tokens=2)],
            [("usage", "input", 2, 300), ("credit", None, 0, -200)],
            id="credit",
        ),
        pytest.param(
            [group(150, prices=(INPUT, OUTPUT), input_tokens=1), group(150, prices=(INPUT, TIERED), input_tokens=1)],
            [("usage", "input", 2, 300)],
            id="one price in two sets is one line",
        ),
        pytest.param(
            [group(1_200_000, prices=(INPUT, MONTHLY), output_tokens=2_000)],
            [("usage", "output", 2_000, 1_200_000), ("rebate", "output", 2_000, -500_000)],
            id="tiers over the month give back what its quantity saves",
        ),
        pytest.param(
            [group(100_000, prices=(INPUT, MONTHLY), output_tokens=2_000)],
            [
                ("usage", "output", 2_000, 1_200_000),
                ("adjustment", None, 0, -1_100_000),
                ("rebate", "output", 2_000, -100_000),
            ],
            id="never more than was charged",
        ),
        pytest.param([], [], id="nothing"),
    ],
)
def test_lines(groups: list[UsageGroup], lines: list[tuple[str, str | None, int, int]]) -> None:
    assert told(compose(groups, PRICES).lines) == lines


_TOKENS = st.integers(0, 10**9)


@st.composite
def groups(draw: st.DrawFn) -> UsageGroup:
    fresh, cached, output, calls = draw(_TOKENS), draw(_TOKENS), draw(_TOKENS), draw(st.integers(0, 10**4))
    prices = draw(
        st.sampled_from([(INPUT, OUTPUT), (INPUT, CACHED, OUTPUT), (INPUT, TIERED), (INPUT, MONTHLY), (OUTPUT,), ()])
    )
    exact = sum(
        quantity * PRICES[price].price
        for price, quantity in ((INPUT, fresh), (CACHED, cached), (OUTPUT, output))
        if price in prices
    )
    amount = divide_half_even(exact, 1_000) + draw(st.integers(-(10**6), 10**6) | st.integers(-3, 3))
    unbilled = draw(st.integers(min(amount, 0), max(amount, 0)))
    return group(
        amount, unbilled, prices, calls=calls, input_tokens=fresh + cached, cached_tokens=cached, output_tokens=output
    )


@given(st.lists(groups(), max_size=6), st.integers(0, 1_000_000), st.booleans(), st.sampled_from(["USD", "KRW"]))
def test_lines_add_up(found: list[UsageGroup], rate: int, inclusive: bool, code: str) -> None:
    month = compose(found, PRICES)
    lines, exact = month.lines, month.exact
    assert sum(line.amount for line in lines) == exact
    assert exact == sum(each.unbilled for each in found) - month.rebate + month.returned
    assert exact >= 0
    assert month.returned == max(0, month.rebate - sum(each.unbilled for each in found))
    rule = TaxRule(TaxTreatment.STANDARD, rate, inclusive)
    assessed = assess(exact, rule, code)
    rounded = round_lines(lines, assessed, rule, code)
    assert sum(line.rounded for line in rounded) == assessed.subtotal
    assert all(line.rounded == 0 for line in rounded if line.amount == 0)
    credit = sum(line.amount for line in lines if line.kind is LineKind.CREDIT)
    assert credit == min(0, exact + month.rebate - sum(each.amount for each in found))


@given(st.lists(st.integers(-(10**15), 10**15)), st.integers(1, 10**13))
def test_largest_remainder(numerators: list[int], denominator: int) -> None:
    total = divide_half_even(sum(numerators), denominator)
    shares = round_to_sum(numerators, denominator, total)
    assert sum(shares) == total
    assert all(abs(share * denominator - each) < denominator for share, each in zip(shares, numerators, strict=True))
    assert round_to_sum(numerators, denominator, total) == shares


def test_nothing_cannot_be_shared() -> None:
    assert round_to_sum([], 3, 0) == []
    with pytest.raises(ValueError, match="among nothing"):
        round_to_sum([], 3, 1)


@pytest.mark.parametrize(
    ("total", "earlier", "largest", "told"),
    [
        pytest.param(200_001 * CENT, [], 200_000 * CENT, "above the safety limit of 2000.00 USD", id="above the limit"),
        pytest.param(200_000 * CENT, [], 200_000 * CENT, None, id="at the limit"),
        pytest.param(200_001 * CENT, [20_000 * CENT] * 3, None, "10 times the usual 200.00 USD", id="unusual"),
        pytest.param(200_000 * CENT, [20_000 * CENT] * 3, None, None, id="ten times"),
        pytest.param(90_000 * CENT, [CENT], None, None, id="small ones vary"),
        pytest.param(10**16, [], None, None, id="the first one"),
        pytest.param(10**16, [0, 0], None, None, id="after nothing"),
    ],
)
def test_insanity(total: int, earlier: list[int], largest: int | None, told: str | None) -> None:
    reason = insanity(total, earlier, largest, "USD")
    assert (reason is None) == (told is None)
    assert told is None or told in (reason or "")
