"""Tax: which rule decides, what it comes to, and whether a tax number can be one. Pure integer arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from billing.rounding import divide_half_even
from models.errors import Conflict, InvalidRequest
from models.invoice import TaxTreatment
from models.money import Units, currency

MILLION: Final = 1_000_000
_PERCENT: Final = re.compile(r"(\d{1,3})(?:\.(\d{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TaxRule:
    """How supplies to buyers of a country are taxed: `rate_ppm` parts per million; the prices contain it, or not."""

    treatment: TaxTreatment
    rate_ppm: int = 0
    is_inclusive: bool = False
    name: str | None = None


NO_RULE: Final = TaxRule(TaxTreatment.NONE)


@dataclass(frozen=True, slots=True)
class Assessment:
    """An exact sum as it stands on an invoice, in whole minor units: `subtotal` + `tax` = total.

    `rounding` is what the exact sum grew by when it was rounded, once.
    """

    subtotal: Units
    tax: Units
    rounding: Units

    @property
    def total(self) -> Units:
        """What is to be paid."""
        return Units(self.subtotal + self.tax)


def decide(rule: TaxRule | None, own: TaxTreatment | None) -> TaxRule:
    """The rule for a buyer: what was agreed with it (`own`) before that of its country; without any, no tax.

    Raises `Conflict` where the buyer is to be taxed and no rule says how much.
    """
    if own is None:
        return rule or NO_RULE
    if own is not TaxTreatment.STANDARD:
        return TaxRule(own)
    if rule is None or rule.treatment is not TaxTreatment.STANDARD:
        raise Conflict(
            "This organization is to be taxed as standard, but no tax rule for its country has a rate. Add one with"
            " `tollgate tax set`, or change its tax_treatment."
        )
    return rule


def assess(exact: int, rule: TaxRule, code: str) -> Assessment:
    """Round an exact sum of charges to the currency's minor unit, half-even and once, and put the tax on it.

    Where prices contain the tax it is taken out of the rounded sum instead. Below zero nothing is taxed.
    """
    minor = minor_unit(code)
    rounded = divide_half_even(exact, minor) * minor
    # A credit is no supply; and what is below zero is never issued.
    rate = rule.rate_ppm if rounded > 0 else 0
    if rule.is_inclusive:
        tax = divide_half_even(rounded * rate, (MILLION + rate) * minor) * minor
        return Assessment(Units(rounded - tax), Units(tax), Units(rounded - exact))
    tax = divide_half_even(rounded * rate, MILLION * minor) * minor
    return Assessment(Units(rounded), Units(tax), Units(rounded - exact))


def part_of_tax(tax: int, total: int, credited: int, credited_tax: int, amount: int, code: str) -> Units:
    """The tax in an `amount` that is credited of an invoice, after `credited` with `credited_tax` was before.

    In proportion, counted from the first credit note on, so that all of them together never take back a tax that was
    not charged, and exactly it when all is credited.
    """
    minor = minor_unit(code)
    until_now = divide_half_even(tax * (credited + amount), total * minor) * minor
    return Units(min(max(0, until_now - credited_tax), amount))


def minor_unit(code: str) -> int:
    """A currency's minor unit (a cent, a won) in ledger units."""
    kept = currency(code)
    return int(10 ** (kept.ledger_scale - kept.minor_digits))


def parse_percent(text: str) -> int:
    """Parts per million of a rate such as `10` or `8.875` percent, exactly; raises `InvalidRequest`."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise InvalidRequest("A rate is a percentage such as '10' or '8.875', with at most 4 decimals.", param="rate")
    rate = int(match[1]) * 10_000 + int((match[2] or "").ljust(4, "0"))
    if rate > MILLION:
        raise InvalidRequest("A rate is at most 100 percent.", param="rate")
    return rate


def percent_text(rate_ppm: int) -> str:
    """The percentage of a rate without needless zeros: 100000 is `10`, 88750 is `8.875`."""
    whole, fraction = divmod(rate_ppm, 10_000)
    return f"{whole}.{fraction:04d}".rstrip("0").rstrip(".")


# Tax numbers ---------------------------------------------------------------------------------------------------------

_KOREAN_WEIGHTS: Final = (1, 3, 7, 1, 3, 7, 1, 3, 5)
_EU_VAT: Final = {
    "AT": r"ATU\d{8}",
    "BE": r"BE[01]\d{9}",
    "BG": r"BG\d{9,10}",
    "CY": r"CY\d{8}[A-Z]",
    "CZ": r"CZ\d{8,10}",
    "DE": r"DE\d{9}",
    "DK": r"DK\d{8}",
    "EE": r"EE\d{9}",
    "ES": r"ES[A-Z0-9]\d{7}[A-Z0-9]",
    "FI": r"FI\d{8}",
    "FR": r"FR[A-HJ-NP-Z0-9]{2}\d{9}",
    "GR": r"EL\d{9}",
    "HR": r"HR\d{11}",
    "HU": r"HU\d{8}",
    "IE": r"IE(\d{7}[A-Z]{1,2}|\d[A-Z+*]\d{5}[A-Z])",
    "IT": r"IT\d{11}",
    "LT": r"LT(\d{9}|\d{12})",
    "LU": r"LU\d{8}",
    "LV": r"LV\d{11}",
    "MT": r"MT\d{8}",
    "NL": r"NL\d{9}B\d{2}",
    "PL": r"PL\d{10}",
    "PT": r"PT\d{9}",
    "RO": r"RO\d{2,10}",
    "SE": r"SE\d{12}",
    "SI": r"SI\d{8}",
    "SK": r"SK\d{10}",
}
"""Forms of VAT numbers by country (European Commission, VIES: structure of the numbers); Greece writes EL."""


def check_tax_id(country: str | None, tax_id: str) -> str:
    """A tax number as it is kept: without blanks and dashes where its form is known, else as it was given.

    Raises `InvalidRequest` for one that cannot be a number of that country: Korea's has a check digit, those of the
    European Union a form.
    """
    plain = re.sub(r"[\s.-]", "", tax_id).upper()
    if country == "KR":
        if not _is_korean(plain):
            raise InvalidRequest(
                "A Korean business registration number has 10 digits, the last of which checks the others; this one"
                " does not. Look for a wrong digit.",
                param="tax_id",
            )
        return plain
    if country in _EU_VAT:
        if re.fullmatch(_EU_VAT[country], plain, re.ASCII) is None:
            raise InvalidRequest(
                f"A VAT number of {country} begins with {'EL' if country == 'GR' else country} and has another form"
                " than this one. Look for a wrong or missing character.",
                param="tax_id",
            )
        return plain
    return tax_id


def _is_korean(digits: str) -> bool:
    if re.fullmatch(r"\d{10}", digits, re.ASCII) is None:
        return False
    numbers = [int(digit) for digit in digits]
    total = sum(number * weight for number, weight in zip(numbers, _KOREAN_WEIGHTS, strict=False))
    # The ninth counts with the tens of its product, too.
    return (10 - (total + numbers[8] * 5 // 10) % 10) % 10 == numbers[9]
