"""Stepped prices: each scheme to the unit, a ceiling that no call passes, and the rebate of a month."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.admission import hold_request, tightened
from billing.hot.entries import decode_hold, encode_hold
from billing.pricing import ceiling, price
from billing.rounding import divide_half_even
from billing.schemes import counted_by, dearest, highest, monthly_rebate, quantities, refuse_impossible, scheme_price
from models.catalog import (
    Catalog,
    Meter,
    Model,
    PriceDraft,
    PriceVersion,
    Rates,
    Scheme,
    Steps,
    Tariff,
    Tier,
    TiersOver,
    rates_of,
)
from models.errors import InvalidRequest
from models.money import MilliUnits
from models.usage import TokenUsage
from tests.unit.samples import NOW, PRINCIPAL, RATES, chat_request, make_call

HELD = make_call(chat_request()).hold_request
START = datetime(2026, 1, 1, tzinfo=UTC)
TIERS = (Tier(1_000, MilliUnits(300)), Tier(5_000, MilliUnits(200)), Tier(None, MilliUnits(100)))


def version(meter: Meter, price: int = 0, *, book: str = "default", number: int = 0, **terms: Any) -> PriceVersion:
    tiers = terms.get("tiers", ())
    return PriceVersion(
        id=UUID(int=number or list(Meter).index(meter) + 1),
        book=book,
        model="m",
        meter=meter,
        currency="USD",
        price=dearest(tiers) if tiers else MilliUnits(price),
        effective_from=START,
        **terms,
    )


def rates(*versions: PriceVersion) -> Rates:
    found = rates_of({one.meter: one for one in versions})
    assert found is not None
    return found


# Each scheme ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "quantity", "milli"),
    [
        pytest.param(Scheme.UNIT, 7, 70, id="each at one price"),
        pytest.param(Scheme.GRADUATED, 0, 0, id="graduated: nothing"),
        pytest.param(Scheme.GRADUATED, 1_000, 300_000, id="graduated: the whole first tier"),
        pytest.param(Scheme.GRADUATED, 1_001, 300_200, id="graduated: one token into the second"),
        pytest.param(Scheme.GRADUATED, 6_000, 1_200_000, id="graduated: 1000 of 300, 4000 of 200, 1000 of 100"),
        pytest.param(Scheme.VOLUME, 1_000, 300_000, id="volume: the whole first tier"),
        pytest.param(Scheme.VOLUME, 1_001, 200_200, id="volume: one more makes all of them cheaper"),
        pytest.param(Scheme.VOLUME, 6_000, 600_000, id="volume: all at the last price"),
        pytest.param(Scheme.PACKAGE, 0, 0, id="package: none begun"),
        pytest.param(Scheme.PACKAGE, 1, 10, id="package: begun is whole"),
        pytest.param(Scheme.PACKAGE, 500, 10, id="package: exactly one"),
        pytest.param(Scheme.PACKAGE, 501, 20, id="package: a second begun"),
    ],
)
def test_a_scheme_prices_a_quantity(scheme: Scheme, quantity: int, milli: int) -> None:
    tiers = TIERS if scheme in (Scheme.GRADUATED, Scheme.VOLUME) else ()
    assert scheme_price(quantity, scheme, 10, tiers, 500) == milli


@given(st.integers(0, 20_000))
def test_graduated_is_the_sum_over_single_tokens(quantity: int) -> None:
    each = (
        [300] * min(quantity, 1_000) + [200] * max(0, min(quantity, 5_000) - 1_000) + [100] * max(0, quantity - 5_000)
    )
    assert scheme_price(quantity, Scheme.GRADUATED, 0, TIERS) == sum(each)


def test_tokens_without_a_price_of_their_own_are_counted_with_what_they_are_part_of() -> None:
    graduated = version(Meter.INPUT, scheme=Scheme.GRADUATED, tiers=TIERS)
    usage = TokenUsage(input=1_500, output=10, cached=600, reasoning=4)
    together = rates(graduated, version(Meter.OUTPUT, 7))
    assert price(usage, together) == (1_000 * 300 + 500 * 200 + 10 * 7) // 1_000
    apart = rates(graduated, version(Meter.OUTPUT, 7), version(Meter.CACHED_INPUT, 50))
    assert price(usage, apart) == (900 * 300 + 600 * 50 + 10 * 7) // 1_000


def test_a_package_of_output_counts_reasoning_too() -> None:
    found = rates(version(Meter.INPUT), version(Meter.OUTPUT, 9_000, scheme=Scheme.PACKAGE, package_size=100))
    assert price(TokenUsage(input=5, output=150, reasoning=120), found) == 18
    assert price(TokenUsage(input=5, output=0), found) == 0


@pytest.mark.parametrize(
    ("tokens", "units"),
    [
        pytest.param(0, 500, id="a charged call of nothing"),
        pytest.param(1, 500, id="less than the minimum"),
        pytest.param(5_000, 500, id="exactly the minimum"),
        pytest.param(5_010, 501, id="more than the minimum"),
    ],
)
def test_a_call_costs_its_minimum_at_least(tokens: int, units: int) -> None:
    found = rates(version(Meter.INPUT, 100), version(Meter.MINIMUM, 500_000))
    assert price(TokenUsage(input=tokens, output=0), found) == units


def test_the_minimum_is_held_even_where_the_tokens_are_bounded_below_it() -> None:
    assert ceiling(1, 0, rates(version(Meter.INPUT, 100), version(Meter.MINIMUM, 500_001))) == 501


def test_plain_prices_have_no_steps() -> None:
    assert rates(version(Meter.INPUT, 1), version(Meter.OUTPUT, 2), version(Meter.REQUEST, 3)).steps is None
    assert rates(version(Meter.INPUT, 1), version(Meter.MINIMUM, 0)).steps is None


def test_tiers_over_a_month_charge_a_call_at_the_dearest() -> None:
    found = rates(version(Meter.INPUT, scheme=Scheme.VOLUME, tiers=TIERS, tiers_over=TiersOver.MONTH))
    assert (found.input, found.cached_input, found.steps) == (300, 300, None)


# Images and audio ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meter", "is_sold"),
    [pytest.param(one, one in (Meter.INPUT, Meter.IMAGE, Meter.AUDIO_SECOND, Meter.REQUEST), id=one) for one in Meter],
)
def test_a_price_of_what_a_call_has_puts_a_model_on_sale(meter: Meter, is_sold: bool) -> None:
    assert (rates_of({meter: version(meter, 1_000)}) is not None) is is_sold


@pytest.mark.parametrize(
    ("usage", "units"),
    [
        pytest.param(TokenUsage(9, 9, images=3), 120, id="three images at 40, tokens are free"),
        pytest.param(TokenUsage(0, 0, audio_seconds=7), 14, id="seven seconds at 2"),
        pytest.param(TokenUsage(0, 0, images=1, audio_seconds=1), 42, id="both"),
        pytest.param(TokenUsage(5, 5), 0, id="neither"),
    ],
)
def test_images_and_seconds_are_charged(usage: TokenUsage, units: int) -> None:
    found = rates(version(Meter.IMAGE, 40_000), version(Meter.AUDIO_SECOND, 2_000))
    assert price(usage, found) == units == ceiling(usage.input, usage.output, found, usage.images, usage.audio_seconds)


@given(
    used=st.tuples(st.integers(0, 9_000), st.integers(0, 9_000)),
    spare=st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)),
    scheme=st.sampled_from(Scheme),
    rate=st.integers(0, 2_000),
)
def test_no_call_of_images_and_audio_passes_its_ceiling(
    used: tuple[int, int], spare: tuple[int, int], scheme: Scheme, rate: int
) -> None:
    terms: dict[str, Any] = {"scheme": scheme}
    if scheme in (Scheme.GRADUATED, Scheme.VOLUME):
        terms["tiers"] = TIERS
    if scheme is Scheme.PACKAGE:
        terms["package_size"] = 60
    found = rates(version(Meter.AUDIO_SECOND, rate, **terms), version(Meter.IMAGE, rate))
    usage = TokenUsage(0, 0, images=used[0], audio_seconds=used[1])
    assert price(usage, found) <= ceiling(0, 0, found, used[0] + spare[0], used[1] + spare[1])


def test_a_hold_covers_the_images_and_seconds_that_a_call_can_have() -> None:
    request = chat_request(images_bound=4, audio_seconds_bound=90)
    found = replace(RATES, image=MilliUnits(1_000_000), audio_second=MilliUnits(5_000))
    model = Model(id="m", context_length=4_096, created_at=NOW)
    held = hold_request(request, HELD.origin, PRINCIPAL, model, found)
    without = hold_request(chat_request(), HELD.origin, PRINCIPAL, model, found)
    assert (held.images_bound, held.audio_seconds_bound) == (4, 90)
    assert held.amount == without.amount + 4 * 1_000 + 90 * 5
    less = tightened(held, 1, 0)
    assert less is not None
    assert less.amount == ceiling(1, held.output_bound, found, 4, 90)


# The ceiling ---------------------------------------------------------------------------------------------------------

_prices = st.integers(0, 2_000).map(MilliUnits)


@st.composite
def _terms(draw: st.DrawFn, *, with_minimum: bool = True) -> Rates:
    versions = []
    for meter in (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.OUTPUT, Meter.REASONING):
        if meter is Meter.INPUT or draw(st.booleans()):
            versions.append(draw(_versions(meter)))
    if draw(st.booleans()):
        versions.append(version(Meter.REQUEST, draw(_prices)))
    if with_minimum and draw(st.booleans()):
        versions.append(version(Meter.MINIMUM, draw(st.integers(0, 1_000_000))))
    return rates(*versions)


@st.composite
def _versions(draw: st.DrawFn, meter: Meter) -> PriceVersion:
    scheme = draw(st.sampled_from(Scheme))
    if scheme is Scheme.UNIT:
        return version(meter, draw(_prices))
    if scheme is Scheme.PACKAGE:
        return version(meter, draw(st.integers(0, 50_000)), scheme=scheme, package_size=draw(st.integers(1, 60)))
    ends = sorted(draw(st.sets(st.integers(1, 150), max_size=4)))
    tiers = tuple(Tier(end, draw(_prices)) for end in (*ends, None))
    return version(meter, scheme=scheme, tiers=tiers, tiers_over=draw(st.sampled_from(TiersOver)))


@st.composite
def _usages(draw: st.DrawFn, most_input: int, most_output: int) -> TokenUsage:
    whole, output = draw(st.integers(0, most_input)), draw(st.integers(0, most_output))
    cached = draw(st.integers(0, whole))
    written = draw(st.integers(0, whole - cached))
    return TokenUsage(whole, output, cached, written, draw(st.integers(0, output)))


@given(st.data(), _terms(), st.integers(0, 200), st.integers(0, 200))
def test_no_call_within_its_bounds_costs_more_than_its_ceiling(
    data: st.DataObject, terms: Rates, most_input: int, most_output: int
) -> None:
    usage = data.draw(_usages(most_input, most_output))
    assert price(usage, terms) <= ceiling(most_input, most_output, terms)


@given(_terms(with_minimum=False), st.integers(0, 12))
def test_every_split_of_few_tokens_lies_within_the_ceiling(terms: Rates, most: int) -> None:
    bound = ceiling(most, 0, terms)
    for whole in range(most + 1):
        for cached in range(whole + 1):
            for written in range(whole - cached + 1):
                assert price(TokenUsage(whole, 0, cached, written), terms) <= bound


@given(_versions(Meter.INPUT), st.integers(0, 200))
def test_the_ceiling_of_one_price_is_reached_or_nearly(one: PriceVersion, most: int) -> None:
    found = rates(one)
    reached = max(price(TokenUsage(quantity, 0), found) for quantity in range(most + 1))
    assert reached <= ceiling(most, 0, found) <= reached + 1, "a hold keeps no money that no call can cost"


def test_the_ceiling_of_a_volume_price_is_where_it_peaks() -> None:
    found = rates(version(Meter.INPUT, scheme=Scheme.VOLUME, tiers=TIERS))
    assert ceiling(5_500, 0, found) == 1_000, "5000 tokens cost more than 5500"


def test_tokens_are_spent_where_they_cost_most() -> None:
    tariff = Tariff((Meter.INPUT,), Scheme.GRADUATED, tiers=(Tier(10, MilliUnits(100)), Tier(None, MilliUnits(1))))
    assert highest(30, 50, [tariff]) == 10 * 100 + 20 * 50


# The month -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "quantity", "units"),
    [
        pytest.param(Scheme.GRADUATED, 1_000, 0, id="within the first tier nothing is owed"),
        pytest.param(Scheme.GRADUATED, 6_000, 600, id="graduated: 4000 by 100 and 1000 by 200 less"),
        pytest.param(Scheme.VOLUME, 6_000, 1_200, id="volume: all 6000 by 200 less"),
        pytest.param(Scheme.VOLUME, 1_005, 100, id="100.5 rounds half-even to 100"),
        pytest.param(Scheme.VOLUME, 0, 0, id="no calls"),
        pytest.param(Scheme.VOLUME, -5, 0, id="corrected to less than nothing"),
    ],
)
def test_a_month_gives_back_what_its_quantity_saves(scheme: Scheme, quantity: int, units: int) -> None:
    monthly = version(Meter.INPUT, scheme=scheme, tiers=TIERS, tiers_over=TiersOver.MONTH)
    assert monthly_rebate(monthly, quantity) == units
    assert monthly_rebate(replace(monthly, tiers_over=TiersOver.CALL), quantity) == 0


@given(_versions(Meter.INPUT).filter(lambda one: bool(one.tiers)), st.lists(st.integers(0, 500), max_size=20))
def test_calls_less_their_rebate_are_the_schemes_price_of_the_month(one: PriceVersion, calls: list[int]) -> None:
    monthly = replace(one, tiers_over=TiersOver.MONTH)
    charged = sum(monthly.price * tokens for tokens in calls)
    owed = scheme_price(sum(calls), monthly.scheme, 0, monthly.tiers)
    rebate = monthly_rebate(monthly, sum(calls))
    assert rebate == divide_half_even(charged - owed, 1_000)
    assert 0 <= rebate * 1_000 <= charged + 500


def test_what_a_month_counts_is_what_a_call_was_charged_for() -> None:
    usage = TokenUsage(input=100, output=30, cached=40, cache_write=5, reasoning=10)
    priced = {one.meter: one for one in (version(Meter.INPUT, 1), version(Meter.OUTPUT, 1), version(Meter.REQUEST, 1))}
    assert counted_by(priced, usage) == {Meter.INPUT: 100, Meter.OUTPUT: 30, Meter.REQUEST: 1}
    apart = priced | {Meter.CACHED_INPUT: version(Meter.CACHED_INPUT, 1)}
    assert counted_by(apart, usage)[Meter.INPUT] == 60
    assert sum(quantities(usage).values()) == 100 + 30 + 1


# Books ---------------------------------------------------------------------------------------------------------------


def shelf(*versions: PriceVersion, **parents: str) -> Catalog:
    prices: dict[tuple[str, str, str], tuple[PriceVersion, ...]] = {}
    for one in versions:
        key = (one.book, one.currency, one.model)
        prices[key] = (*prices.get(key, ()), one)
    return Catalog(prices=prices, parents=dict(parents))


def test_a_batch_is_priced_by_the_book_that_is_named_for_it() -> None:
    catalog = shelf(
        version(Meter.INPUT, 100, number=1),
        version(Meter.INPUT, 80, book="partners", number=2),
        version(Meter.INPUT, 50, book="night", number=3),
        partners="default",
    )
    catalog.batch_books.update({"default": "night", "other": "empty"})

    def inputs(book: str) -> tuple[int | None, int | None]:
        found = (catalog.batch_rates(book, "USD", "m", START), catalog.rates(book, "USD", "m", START))
        first, second = (None if rates is None else int(rates.input) for rates in found)
        return first, second

    assert inputs("default") == (50, 100)
    assert inputs("partners") == (80, 80), "what a parent names for batches is not inherited"
    assert inputs("other") == (None, None)
    catalog.batch_books["default"] = "empty"
    assert inputs("default") == (100, 100), "a book without a price of the model leaves the usual one"


def test_a_book_inherits_meter_by_meter() -> None:
    catalog = shelf(
        version(Meter.INPUT, 100, number=1),
        version(Meter.OUTPUT, 400, number=2),
        version(Meter.CACHED_INPUT, 10, number=3),
        version(Meter.INPUT, 80, book="partners", number=4),
        version(Meter.OUTPUT, 300, book="gold", number=5),
        partners="default",
        gold="partners",
    )
    found = catalog.rates("gold", "USD", "m", START)
    assert found is not None
    assert (found.input, found.cached_input, found.output) == (80, 10, 300)
    assert found.version_ids == (UUID(int=3), UUID(int=4), UUID(int=5)), "what is overruled is not pinned"
    other = catalog.rates("partners", "USD", "m", START)
    assert other is not None
    assert (other.input, other.output) == (80, 400)
    assert catalog.rates("strangers", "USD", "m", START) is None, "no book inherits unless it says so"
    assert catalog.rates("gold", "EUR", "m", START) is None


def test_a_change_in_a_parent_is_seen_at_its_moment() -> None:
    change = START + timedelta(days=10)
    first = replace(version(Meter.INPUT, 100, number=1), effective_to=change)
    second = replace(version(Meter.INPUT, 90, number=2), effective_from=change)
    own = version(Meter.OUTPUT, 5, book="partners", number=3)
    catalog = shelf(first, second, own, partners="default")
    before, after = (catalog.rates("partners", "USD", "m", at) for at in (change - timedelta(seconds=1), change))
    assert before is not None
    assert after is not None
    assert (before.input, after.input, after.output) == (100, 90, 5)


def test_a_price_that_ends_uncovers_its_parents() -> None:
    end = START + timedelta(days=1)
    own = replace(version(Meter.INPUT, 1, book="trial", number=2), effective_to=end)
    catalog = shelf(version(Meter.INPUT, 100, number=1), own, trial="default")
    found = [catalog.rates("trial", "USD", "m", at) for at in (START, end)]
    assert [one.input for one in found if one is not None] == [1, 100]


# In the hold ---------------------------------------------------------------------------------------------------------


@given(_terms())
def test_steps_survive_the_hold(terms: Rates) -> None:
    request = replace(HELD, rates=terms)
    assert decode_hold(_placed(encode_hold(request))).request.rates == terms


def test_a_hold_from_before_there_were_steps_has_none() -> None:
    request = HELD
    written = _placed(encode_hold(request))
    assert b',"steps":null' in written
    assert decode_hold(written.replace(b',"steps":null', b"")).request == request


def _placed(written: bytes) -> bytes:
    return b'{"placed_at_ms":1,' + written[1:]


# What no price can be ------------------------------------------------------------------------------------------------

DRAFT = PriceDraft("default", "m", Meter.INPUT, "USD", MilliUnits(5))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param({"price": -1}, "below zero", id="a negative price"),
        pytest.param({"price": 2**63}, "larger than any balance", id="beyond int64"),
        pytest.param(
            {"scheme": Scheme.VOLUME, "tiers": (Tier(None, MilliUnits(2**60)),)}, "larger than any", id="a tier beyond"
        ),
        pytest.param({"scheme": Scheme.GRADUATED}, "Give tiers", id="no tiers"),
        pytest.param({"tiers": TIERS}, "Leave tiers out", id="tiers of a unit price"),
        pytest.param({"scheme": Scheme.VOLUME, "tiers": TIERS[:2]}, "last tier has no end", id="last tier bounded"),
        pytest.param({"scheme": Scheme.VOLUME, "tiers": TIERS[::-1]}, "last tier has no end", id="backwards"),
        pytest.param(
            {"scheme": Scheme.VOLUME, "tiers": (TIERS[1], TIERS[0], TIERS[2])}, "sort the tiers", id="not ascending"
        ),
        pytest.param({"scheme": Scheme.VOLUME, "tiers": (TIERS[2], TIERS[2])}, "sort the tiers", id="two last tiers"),
        pytest.param(
            {"scheme": Scheme.VOLUME, "tiers": (Tier(0, MilliUnits(1)), TIERS[2])}, "from 1 upwards", id="a tier of 0"
        ),
        pytest.param(
            {"scheme": Scheme.VOLUME, "tiers": (*(Tier(n, MilliUnits(1)) for n in range(1, 60)), TIERS[2])},
            "at most 50 tiers",
            id="too many tiers",
        ),
        pytest.param({"scheme": Scheme.PACKAGE}, "has a package_size", id="a package without size"),
        pytest.param({"package_size": 10}, "nothing else has one", id="a size without package"),
        pytest.param({"scheme": Scheme.PACKAGE, "package_size": 0}, "above 0", id="a package of nothing"),
        pytest.param({"tiers_over": TiersOver.MONTH}, "Leave tiers_over out", id="a month of units"),
        pytest.param(
            {"meter": Meter.MINIMUM, "scheme": Scheme.PACKAGE, "package_size": 2},
            "scheme unit",
            id="a minimum in packages",
        ),
        pytest.param(
            {"meter": Meter.REQUEST, "scheme": Scheme.GRADUATED, "tiers": TIERS},
            "one request",
            id="steps over a request",
        ),
    ],
)
def test_a_price_that_cannot_be_is_refused_with_what_to_do(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        refuse_impossible(replace(DRAFT, **wrong))


@pytest.mark.parametrize(
    "right",
    [
        pytest.param({}, id="unit"),
        pytest.param({"price": 0}, id="free"),
        pytest.param({"scheme": Scheme.VOLUME, "tiers": TIERS}, id="volume"),
        pytest.param({"scheme": Scheme.GRADUATED, "tiers": TIERS[-1:]}, id="one tier"),
        pytest.param({"scheme": Scheme.PACKAGE, "package_size": 1}, id="package"),
        pytest.param(
            {"meter": Meter.REQUEST, "scheme": Scheme.VOLUME, "tiers": TIERS, "tiers_over": TiersOver.MONTH},
            id="requests of a month",
        ),
        pytest.param({"meter": Meter.MINIMUM}, id="minimum"),
        pytest.param({"meter": Meter.IMAGE, "scheme": Scheme.GRADUATED, "tiers": TIERS}, id="images"),
    ],
)
def test_a_price_that_can_be_is_taken(right: dict[str, Any]) -> None:
    assert refuse_impossible(replace(DRAFT, **right)) is None  # type: ignore[func-returns-value]


def test_steps_without_anything_special_change_nothing() -> None:
    plain = rates(version(Meter.INPUT, 150), version(Meter.OUTPUT, 600))
    usage = TokenUsage(1_000, 1_000, cached=10)
    assert price(usage, replace(plain, steps=Steps())) == price(usage, plain)
    assert ceiling(100, 100, replace(plain, steps=Steps())) == ceiling(100, 100, plain)
