"""What stands on an invoice: lines out of the sums of a month, rounded so that they add up; and when to stop. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from billing.rounding import divide_half_even, round_to_sum
from billing.schemes import monthly_rebate
from billing.tax import MILLION, Assessment, TaxRule, minor_unit
from models.catalog import Meter, PriceVersion
from models.invoice import Line, LineKind
from models.money import Units, amount_text, currency

_NAMES: Final = {
    Meter.INPUT: "input tokens",
    Meter.CACHED_INPUT: "cached input tokens",
    Meter.CACHE_WRITE: "cache write tokens",
    Meter.OUTPUT: "output tokens",
    Meter.REASONING: "reasoning tokens",
    Meter.REQUEST: "requests",
    Meter.IMAGE: "images",
    Meter.AUDIO_SECOND: "seconds of audio",
}
_ORDER: Final = {meter.value: place for place, meter in enumerate(_NAMES)}


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """Sums of a month's charges of one project, model and set of price versions, as `billing.usage.Sums` has them."""

    project_id: UUID
    project_name: str | None
    model: str
    price_version_ids: tuple[UUID, ...]
    calls: int
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    amount: int
    unbilled: int
    images: int = 0
    audio_seconds: int = 0


# Lines ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Month:
    """What a month comes to: its lines, not rounded yet, whose exact amounts add up to `exact`, which is owed.

    `rebate` is what prices with tiers over the month give back. `returned` becomes credit again: the part of it that
    credit had paid, and what corrections of calls of earlier months have brought below zero.
    """

    lines: tuple[Line, ...]
    exact: int
    rebate: int = 0
    returned: int = 0


def compose(groups: Iterable[UsageGroup], prices: Mapping[UUID, PriceVersion]) -> Month:
    """The lines of a month, in the order of projects, models, meters and prices, then rebates, and what credit paid."""
    groups = list(groups)
    merged: dict[tuple[object, ...], Line] = {}
    for group in groups:
        for line in group_lines(group, prices):
            key = (line.project_id, line.model, line.meter, line.price_version_id, line.kind)
            known = merged.get(key)
            merged[key] = line if known is None else _added(known, line)
    lines = sorted(merged.values(), key=_place)
    rebates = _rebates(lines, prices)
    charged, unbilled = sum(group.amount for group in groups), sum(group.unbilled for group in groups)
    rebate = -sum(line.amount for line in rebates)
    returned = max(0, rebate - unbilled)
    exact = unbilled - rebate + returned
    lines += rebates
    credit = exact - (charged - rebate)
    if credit < 0:
        lines.append(Line(LineKind.CREDIT, "Paid from credit", Units(credit)))
    elif credit:
        lines.append(Line(LineKind.ADJUSTMENT, "Given back as credit", Units(credit)))
    return Month(tuple(lines), exact, rebate, returned)


def _rebates(lines: Sequence[Line], prices: Mapping[UUID, PriceVersion]) -> list[Line]:
    """What the month's quantity saves at prices whose tiers look at it: never more than was charged for it."""
    used: dict[UUID, tuple[int, int]] = {}
    for line in lines:
        if line.price_version_id is not None:
            quantity, amount = used.get(line.price_version_id, (0, 0))
            used[line.price_version_id] = quantity + line.quantity, amount + line.amount
    # A call that ended at its hold was charged less than its tokens; which of its prices gave way nobody can say.
    missing: dict[str | None, int] = {}
    for line in lines:
        if line.kind is LineKind.ADJUSTMENT and line.amount < 0:
            missing[line.model] = missing.get(line.model, 0) + line.amount
    rebates = []
    for version_id, (quantity, amount) in used.items():
        version = prices[version_id]
        back = min(monthly_rebate(version, quantity), max(0, amount + missing.get(version.model, 0)))
        if back:
            rebates.append(
                Line(
                    LineKind.REBATE,
                    f"{version.model}: {_NAMES[version.meter]}, price of the month's quantity",
                    Units(-back),
                    model=version.model,
                    meter=version.meter.value,
                    price_version_id=version_id,
                    quantity=quantity,
                )
            )
    return rebates


def round_lines(lines: Sequence[Line], assessed: Assessment, rule: TaxRule, code: str) -> list[Line]:
    """The lines with `rounded` amounts that add up to the subtotal, by largest remainder; without tax in any case."""
    minor = minor_unit(code)
    divisor = minor * (MILLION + rule.rate_ppm) if rule.is_inclusive else minor * MILLION
    rounded = round_to_sum([line.amount * MILLION for line in lines], divisor, assessed.subtotal // minor)
    return [replace(line, rounded=Units(units * minor)) for line, units in zip(lines, rounded, strict=True)]


def group_lines(group: UsageGroup, prices: Mapping[UUID, PriceVersion]) -> list[Line]:
    """Quantity by price for each meter, shared so that they add up to the charges; the rest is an adjustment."""
    by_meter = {prices[each].meter: prices[each] for each in group.price_version_ids if each in prices}
    used = [(meter, quantity) for meter, quantity in _quantities(group, by_meter).items() if quantity]
    # What has no price is free, where another meter sells the model.
    free = {meter for meter, _ in used if by_meter and meter not in by_meter}
    plain = {meter for meter, _ in used if meter in by_meter and not by_meter[meter].is_stepped}
    others = [meter for meter, _ in used if meter not in plain | free]
    exact = {meter: quantity * by_meter[meter].price for meter, quantity in used if meter in plain}
    explained = sum(exact.values())

    # Each call was rounded to a ledger unit: that far the prices explain the amount.
    is_explained = not others and abs(group.amount * 1_000 - explained) <= 1_000 * max(group.calls, 1)
    total = group.amount if is_explained and explained else divide_half_even(explained, 1_000)
    shares = dict(zip(exact, _shared(list(exact.values()), explained, total), strict=True))
    rest = group.amount - total
    if len(others) == 1:
        shares[others[0]], rest = rest, 0

    lines = [_usage_line(group, meter, quantity, by_meter.get(meter), shares.get(meter, 0)) for meter, quantity in used]
    if rest:
        text = f"{group.model}: minimum charges, graduated prices and corrections"
        lines.append(_of(group, Line(LineKind.ADJUSTMENT, text, Units(rest))))
    return lines


def _quantities(group: UsageGroup, by_meter: Mapping[Meter, PriceVersion]) -> dict[Meter, int]:
    """Units of each meter. One without a price of its own is in the meter that it is a part of, as its price was."""
    cached = group.cached_tokens if Meter.CACHED_INPUT in by_meter else 0
    written = group.cache_write_tokens if Meter.CACHE_WRITE in by_meter else 0
    reasoning = group.reasoning_tokens if Meter.REASONING in by_meter else 0
    return {
        Meter.INPUT: group.input_tokens - cached - written,
        Meter.CACHED_INPUT: cached,
        Meter.CACHE_WRITE: written,
        Meter.OUTPUT: group.output_tokens - reasoning,
        Meter.REASONING: reasoning,
        Meter.REQUEST: group.calls if Meter.REQUEST in by_meter else 0,
        Meter.IMAGE: group.images,
        Meter.AUDIO_SECOND: group.audio_seconds,
    }


def _shared(exact: Sequence[int], explained: int, total: int) -> list[int]:
    return round_to_sum([each * total for each in exact], explained, total) if explained else [0] * len(exact)


def _usage_line(group: UsageGroup, meter: Meter, quantity: int, price: PriceVersion | None, amount: int) -> Line:
    line = Line(
        LineKind.USAGE,
        f"{group.model}: {_NAMES[meter]}",
        Units(amount),
        meter=meter.value,
        price_version_id=None if price is None else price.id,
        quantity=quantity,
        unit_price=None if price is None or price.is_stepped else price.price,
    )
    return _of(group, line)


def _of(group: UsageGroup, line: Line) -> Line:
    return replace(line, project_id=group.project_id, project_name=group.project_name, model=group.model)


def _added(one: Line, two: Line) -> Line:
    return replace(one, amount=Units(one.amount + two.amount), quantity=one.quantity + two.quantity)


def _place(line: Line) -> tuple[object, ...]:
    meter = _ORDER.get(line.meter or "", len(_ORDER))
    return (line.project_name or "", str(line.project_id), line.model or "", meter, str(line.price_version_id))


# The safety stop -----------------------------------------------------------------------------------------------------

TIMES_THE_USUAL: Final = 10
MONTHS_LOOKED_BACK: Final = 3
_FLOOR_MINOR: Final = {"USD": 100_000, "EUR": 100_000, "KRW": 1_000_000, "JPY": 100_000}
"""Below this many minor units a total is not insane for being many times the usual: small ones vary."""


def insanity(total: int, earlier: Sequence[int], largest: int | None, code: str) -> str | None:
    """Why a person should look before an invoice of this total is issued, or None.

    `earlier` are the totals of the last months; `largest` is the operator's own limit.
    """
    if largest is not None and total > largest:
        return f"the invoice of {_told(total, code)} is above the safety limit of {_told(largest, code)}"
    usual = sum(earlier) // len(earlier) if earlier else 0
    floor = _FLOOR_MINOR[code] * minor_unit(code)
    if usual > 0 and total > floor and total > TIMES_THE_USUAL * usual:
        return (
            f"the invoice of {_told(total, code)} is more than {TIMES_THE_USUAL} times the usual {_told(usual, code)}"
        )
    return None


def _told(units: int, code: str) -> str:
    kept = currency(code)
    text = amount_text(units, code)
    return f"{text[: len(text) - (kept.ledger_scale - kept.minor_digits)].rstrip('.')} {code}"
