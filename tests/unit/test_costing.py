"""What usage costs the seller: tokens by the prices of their days, machines by who used them."""

from __future__ import annotations

from datetime import date
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from billing.costing import CostKey, CostPrice, Machines, Used, changes, costs_of
from models.catalog import CostKind
from models.money import MilliUnits, Units

FIRST, SECOND = date(2026, 11, 1), date(2026, 11, 2)
ACME, OTHER = UUID(int=1), UUID(int=2)


def price(kind: CostKind, milli: int, first: date = FIRST, end: date | None = None) -> CostPrice:
    return CostPrice("tiny", kind, "USD", MilliUnits(milli), first, end)


def used(owner: UUID = ACME, day: date = FIRST, *, input: int = 0, cached: int = 0, output: int = 0) -> Used:
    return Used("tiny", owner, day, 1, input, cached, output)


def key(kind: CostKind, owner: UUID | None = ACME) -> CostKey:
    return CostKey("tiny", kind, owner, "USD")


def test_tokens_cost_what_they_did_on_their_day() -> None:
    prices = [
        price(CostKind.INPUT_TOKEN, 100_000, end=SECOND),
        price(CostKind.INPUT_TOKEN, 200_000, SECOND),
        price(CostKind.REQUEST, 7_000, SECOND),
    ]
    days = [used(input=10), used(day=SECOND, input=10), used(OTHER, input=1)]
    assert costs_of(prices, days, []) == {
        key(CostKind.INPUT_TOKEN): 10 * 100 + 10 * 200,
        key(CostKind.INPUT_TOKEN, OTHER): 100,
        key(CostKind.REQUEST): 7,
    }


def test_cached_tokens_are_input_unless_they_have_a_price() -> None:
    plain = [price(CostKind.INPUT_TOKEN, 1_000)]
    apart = [*plain, price(CostKind.CACHED_TOKEN, 0)]
    assert costs_of(plain, [used(input=10, cached=4)], []) == {key(CostKind.INPUT_TOKEN): 10}
    assert costs_of(apart, [used(input=10, cached=4)], []) == {key(CostKind.INPUT_TOKEN): 6}


def test_a_month_is_rounded_once() -> None:
    days = [used(day=day, output=1) for day in (FIRST, SECOND)]
    assert costs_of([price(CostKind.OUTPUT_TOKEN, 1_750)], days, []) == {key(CostKind.OUTPUT_TOKEN): 4}


def test_machines_are_divided_by_tokens_and_idle_ones_are_nobodys() -> None:
    prices = [price(CostKind.GPU_HOUR, 3_600_000_000), price(CostKind.KWH, 2_000_000)]
    runs = [Machines("tiny", FIRST, 100, 500), Machines("tiny", SECOND, 1, 0)]
    shared = [used(input=1, output=1), used(OTHER, input=1)]
    assert costs_of(prices, shared, runs) == {
        key(CostKind.GPU_HOUR): 67_333,
        key(CostKind.GPU_HOUR, OTHER): 33_667,
        key(CostKind.KWH): 667,
        key(CostKind.KWH, OTHER): 333,
    }
    assert costs_of(prices, [], runs) == {key(CostKind.GPU_HOUR, None): 101_000, key(CostKind.KWH, None): 1_000}


def test_what_has_no_price_costs_nothing() -> None:
    assert costs_of([], [used(input=5)], [Machines("tiny", FIRST, 5, 5)]) == {}


_amounts = st.dictionaries(
    st.builds(
        CostKey,
        st.sampled_from(["a", "b"]),
        st.sampled_from(CostKind),
        st.sampled_from([ACME, OTHER, None]),
        st.sampled_from(["USD", "KRW"]),
    ),
    st.integers(-(10**15), 10**15),
    max_size=8,
)


@given(due=_amounts, posted=_amounts)
def test_changes_make_what_was_posted_what_is_due(due: dict[CostKey, int], posted: dict[CostKey, int]) -> None:
    made = changes(due, posted)
    after = {each: posted.get(each, 0) + made.get(each, Units(0)) for each in posted.keys() | made.keys()}
    assert {each: amount for each, amount in after.items() if amount} == {
        each: amount for each, amount in due.items() if amount
    }
    assert changes(due, after) == {}
