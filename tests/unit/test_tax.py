"""Tax: the rule that decides, the sum that it makes, and numbers that can be tax numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.tax import (
    NO_RULE,
    Assessment,
    TaxRule,
    assess,
    check_tax_id,
    decide,
    minor_unit,
    parse_percent,
    part_of_tax,
    percent_text,
)
from models.errors import Conflict, InvalidRequest
from models.invoice import TaxTreatment
from models.money import CURRENCIES, Units

CENT, WON = 10_000_000, 1_000_000
VAT = TaxRule(TaxTreatment.STANDARD, 100_000, name="VAT")
INCLUSIVE = TaxRule(TaxTreatment.STANDARD, 100_000, is_inclusive=True)
REVERSE = TaxRule(TaxTreatment.REVERSE_CHARGE)


@pytest.mark.parametrize(
    ("exact", "rule", "code", "subtotal", "tax", "rounding"),
    [
        pytest.param(1_234 * CENT, VAT, "USD", 1_234 * CENT, 123 * CENT, 0, id="10 % of $12.34 is $1.23"),
        pytest.param(5 * CENT, VAT, "USD", 5 * CENT, 0, 0, id="half a cent of tax goes to the even cent: none"),
        pytest.param(15 * CENT, VAT, "USD", 15 * CENT, 2 * CENT, 0, id="one and a half go to two"),
        pytest.param(CENT // 2, VAT, "USD", 0, 0, -CENT // 2, id="half a cent is none"),
        pytest.param(3 * CENT // 2, VAT, "USD", 2 * CENT, 0, CENT // 2, id="one and a half cents are two"),
        pytest.param(110_000 * WON, VAT, "KRW", 110_000 * WON, 11_000 * WON, 0, id="whole won"),
        pytest.param(110_000 * WON, INCLUSIVE, "KRW", 100_000 * WON, 10_000 * WON, 0, id="taken out of the price"),
        pytest.param(100 * CENT, REVERSE, "EUR", 100 * CENT, 0, 0, id="the buyer owes it"),
        pytest.param(-100 * CENT, VAT, "EUR", -100 * CENT, 0, 0, id="nothing is taxed below zero"),
        pytest.param(0, VAT, "JPY", 0, 0, 0, id="nothing"),
    ],
)
def test_assess(exact: int, rule: TaxRule, code: str, subtotal: int, tax: int, rounding: int) -> None:
    assert assess(exact, rule, code) == Assessment(Units(subtotal), Units(tax), Units(rounding))


@given(st.integers(0, 10**16), st.integers(0, 1_000_000), st.booleans(), st.sampled_from(sorted(CURRENCIES)))
def test_assessed_sums_are_the_nearest_whole_coins(exact: int, rate: int, inclusive: bool, code: str) -> None:
    rule = TaxRule(TaxTreatment.STANDARD, rate, inclusive)
    assessed, minor = assess(exact, rule, code), minor_unit(code)
    assert all(units % minor == 0 for units in (assessed.subtotal, assessed.tax, assessed.total))
    rounded = exact + assessed.rounding
    assert abs(assessed.rounding) * 2 <= minor
    assert rounded == (assessed.total if inclusive else assessed.subtotal)
    exact_tax = Fraction(rounded * rate, 1_000_000 + (rate if inclusive else 0))
    assert abs(assessed.tax - exact_tax) * 2 <= minor


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.lists(st.integers(1, 10**5), max_size=20))
def test_credit_notes_never_give_back_more_tax_than_there_was(subtotal: int, tax: int, parts: list[int]) -> None:
    total, credited, credited_tax = (subtotal + tax) * CENT, 0, 0
    for part in [*parts, subtotal + tax]:
        amount = min(part * CENT, total - credited)
        if amount == 0:
            break
        share = part_of_tax(tax * CENT, total, credited, credited_tax, amount, "USD")
        assert 0 <= share <= amount
        credited, credited_tax = credited + amount, credited_tax + share
        assert credited_tax <= tax * CENT
        assert credited - credited_tax <= subtotal * CENT
    assert (credited, credited_tax) == (total, tax * CENT)


@pytest.mark.parametrize(
    ("rule", "own", "expected"),
    [
        pytest.param(VAT, None, VAT, id="that of the country"),
        pytest.param(None, None, NO_RULE, id="none"),
        pytest.param(VAT, TaxTreatment.EXEMPT, TaxRule(TaxTreatment.EXEMPT), id="what was agreed"),
        pytest.param(VAT, TaxTreatment.STANDARD, VAT, id="agreed to be taxed"),
    ],
)
def test_decide(rule: TaxRule | None, own: TaxTreatment | None, expected: TaxRule) -> None:
    assert decide(rule, own) == expected


@pytest.mark.parametrize("rule", [None, REVERSE])
def test_no_rate_to_tax_with(rule: TaxRule | None) -> None:
    with pytest.raises(Conflict, match="tollgate tax set"):
        decide(rule, TaxTreatment.STANDARD)


@pytest.mark.parametrize(
    ("text", "rate"), [("10", 100_000), ("0", 0), ("8.875", 88_750), ("0.0001", 1), ("100", 1_000_000)]
)
def test_percentages(text: str, rate: int) -> None:
    assert parse_percent(text) == rate
    assert percent_text(rate) == text


@pytest.mark.parametrize("text", ["", "-1", "ten", "1e2", "100.0001", "1.00001", "NaN", "١٠"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(InvalidRequest, match="percent"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("country", "given", "kept"),
    [
        pytest.param("KR", "124-81-00998", "1248100998", id="Korean, as it is written"),
        pytest.param("KR", "2208162517", "2208162517", id="Korean"),
        pytest.param("DE", "DE 123456789", "DE123456789", id="German"),
        pytest.param("GR", "EL123456789", "EL123456789", id="Greek"),
        pytest.param("FR", "FRXX123456789", "FRXX123456789", id="French"),
        pytest.param("US", "12-3456789", "12-3456789", id="American, as given"),
        pytest.param(None, "anything", "anything", id="of no country"),
    ],
)
def test_tax_numbers(country: str | None, given: str, kept: str) -> None:
    assert check_tax_id(country, given) == kept


@pytest.mark.parametrize(
    ("country", "given"),
    [
        pytest.param("KR", "1248100999", id="wrong check digit"),
        pytest.param("KR", "124810099", id="nine digits"),
        pytest.param("KR", "١٢٣٤٥٦٧٨٩٠", id="digits of another script"),
        pytest.param("DE", "DE12345678", id="eight digits"),
        pytest.param("DE", "FR12345678901", id="of another country"),
        pytest.param("GR", "GR123456789", id="Greece writes EL"),
    ],
)
def test_what_is_no_tax_number(country: str, given: str) -> None:
    with pytest.raises(InvalidRequest, match=r"digit|character"):
        check_tax_id(country, given)
