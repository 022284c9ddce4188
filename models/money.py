"""Amounts of money as integers, and the only place where they become text or stop being text.

An amount is a whole number of *ledger units* of its currency (USD: 10^-9 dollar). A price is a whole number of
*milli-units* (10^-3 ledger unit) per token, which for USD is one micro-dollar per million tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

from models.errors import InvalidAmount

Units = NewType("Units", int)
"""Ledger units of some currency."""

MilliUnits = NewType("MilliUnits", int)
"""Thousandths of a ledger unit, the unit in which prices per token are stated."""

LARGEST_BALANCE_UNITS: Final = 9_000_000_000_000_000
"""Below 2^53, so that a Redis script, whose numbers are doubles, compares balances exactly."""

_DECIMAL: Final = re.compile(r"(-?)(\d{1,20})(?:\.(\d{1,20}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency with the digits of its cash (`minor_digits`) and of its ledger unit (`ledger_scale`)."""

    code: str
    minor_digits: int
    ledger_scale: int
    symbol: str


CURRENCIES: Final = {
    currency.code: currency
    for currency in (
        Currency("USD", 2, 9, "$"),
        Currency("EUR", 2, 9, "€"),
        Currency("KRW", 0, 6, "₩"),
        Currency("JPY", 0, 6, "¥"),
    )
}


def currency(code: str) -> Currency:
    """The currency of an ISO 4217 code; raises `InvalidAmount` for one that Tollgate keeps no ledger in."""
    try:
        return CURRENCIES[code]
    except KeyError:
        raise InvalidAmount(f"currency must be one of {', '.join(CURRENCIES)}, not {code!r}") from None


def amount_text(units: int, code: str) -> str:
    """Decimal text of an amount with all its digits: 12340000000 USD units are `12.340000000`."""
    return _text(units, currency(code).ledger_scale)


def parse_amount(text: str, code: str) -> Units:
    """Ledger units of a decimal text, exactly; raises `InvalidAmount` for more digits than the ledger has."""
    return Units(_parse(text, currency(code).ledger_scale))


def units_of_minor(amount_minor: int, code: str) -> Units:
    """Ledger units of an amount in the minor unit, as payment providers state it: 1999 is $19.99, or ₩1999."""
    kept = currency(code)
    return Units(amount_minor * 10 ** (kept.ledger_scale - kept.minor_digits))


def price_text(price: int, code: str) -> str:
    """Price per million tokens of a price in milli-units per token: 12500 in USD is `0.012500`."""
    return _text(price, currency(code).ledger_scale - 3)


def exact_text(milli: int, code: str) -> str:
    """Decimal text of an amount in milli-units: of a price times tokens, before it is rounded to the ledger unit."""
    return _text(milli, currency(code).ledger_scale + 3)


def parse_price(text: str, code: str) -> MilliUnits:
    """Milli-units per token of a price per million tokens, exactly; raises `InvalidAmount`, also below zero."""
    price = _parse(text, currency(code).ledger_scale - 3)
    if price < 0:
        raise InvalidAmount(f"a price cannot be negative: {text!r}")
    return MilliUnits(price)


def price_each_text(price: int, code: str) -> str:
    """Price of one in full digits, of a price in milli-units: 1500000000 in USD is `0.001500000000`."""
    return _text(price, currency(code).ledger_scale + 3)


def parse_price_each(text: str, code: str) -> MilliUnits:
    """Milli-units of a price of one, exactly; raises `InvalidAmount`, also below zero."""
    price = _parse(text, currency(code).ledger_scale + 3)
    if price < 0:
        raise InvalidAmount(f"a price cannot be negative: {text!r}")
    return MilliUnits(price)


def shown_amount(units: int, code: str) -> str:
    """An amount as a document for people shows it: 1234560000000 USD units are `$1,234.56`; more digits only if any."""
    kept = currency(code)
    return _shown(units, kept.ledger_scale, kept)


def shown_price(price: int, code: str, per: int = 1_000_000) -> str:
    """A price in milli-units per unit, as a document for people shows it: per million units, or per one."""
    kept = currency(code)
    return _shown(price * per, kept.ledger_scale + 3, kept)


def money(units: int, code: str) -> dict[str, str]:
    """The JSON form of an amount, as DESIGN section 6 fixes it."""
    return {"amount": amount_text(units, code), "currency": code}


def _shown(value: int, scale: int, kept: Currency) -> str:
    whole, fraction = divmod(abs(value), 10**scale)
    digits = f"{fraction:0{scale}d}".rstrip("0").ljust(kept.minor_digits, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{kept.symbol}{whole:,}.{digits}" if digits else f"{sign}{kept.symbol}{whole:,}"


def _text(value: int, scale: int) -> str:
    whole, fraction = divmod(abs(value), 10**scale)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{fraction:0{scale}d}" if scale else f"{sign}{whole}"


def _parse(text: str, scale: int) -> int:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise InvalidAmount(f"an amount is a decimal string such as '12.34', not {text[:40]!r}")
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    if len(fraction) > scale:
        raise InvalidAmount(f"{text!r} has more than {scale} decimal digits")
    value: int = int(whole) * 10**scale + int(fraction.ljust(scale, "0") or "0")
    return -value if sign else value
