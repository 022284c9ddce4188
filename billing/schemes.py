"""Stepped prices: graduated, volume and package schemes, the most a call can cost, and what a month gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Final

from billing.rounding import divide_half_even, divide_up
from models.catalog import STANDS_IN, Meter, PriceDraft, PriceVersion, Scheme, Tariff, Tier, TiersOver
from models.errors import InvalidRequest
from models.money import MilliUnits, Units
from models.usage import TokenUsage

LARGEST_PRICE: Final = 2**53
"""Milli-units per token or package; above it a single one could cost more than a balance can hold."""
LARGEST_QUANTITY: Final = 2**53
MOST_TIERS: Final = 50

INPUT_METERS: Final = frozenset({Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE})
OUTPUT_METERS: Final = frozenset({Meter.OUTPUT, Meter.REASONING})
IMAGE_METERS: Final = frozenset({Meter.IMAGE})
AUDIO_METERS: Final = frozenset({Meter.AUDIO_SECOND})


# Quantities ----------------------------------------------------------------------------------------------------------


def quantities(usage: TokenUsage) -> dict[Meter, int]:
    """How much a call has of each meter that a call can have; no token is in two of them."""
    return {
        Meter.INPUT: usage.input - usage.cached - usage.cache_write,
        Meter.CACHED_INPUT: usage.cached,
        Meter.CACHE_WRITE: usage.cache_write,
        Meter.OUTPUT: usage.output - usage.reasoning,
        Meter.REASONING: usage.reasoning,
        Meter.REQUEST: 1,
        Meter.IMAGE: usage.images,
        Meter.AUDIO_SECOND: usage.audio_seconds,
    }


def counted_by(versions: Mapping[Meter, PriceVersion], usage: TokenUsage) -> dict[Meter, int]:
    """What the price of each meter counts of a call: its own, and what it stands in for."""
    counted: dict[Meter, int] = {}
    for meter, quantity in quantities(usage).items():
        payer = meter if meter in versions else STANDS_IN.get(meter, meter)
        if payer in versions:
            counted[payer] = counted.get(payer, 0) + quantity
    return counted


# Prices --------------------------------------------------------------------------------------------------------------


def scheme_price(
    quantity: int, scheme: Scheme, price: int, tiers: Sequence[Tier] = (), package_size: int | None = None
) -> MilliUnits:
    """The exact price of a quantity of any meter, in milli-units."""
    match scheme:
        case Scheme.UNIT:
            return MilliUnits(quantity * price)
        case Scheme.PACKAGE:
            assert package_size is not None, "a package has a size"
            return MilliUnits(divide_up(quantity, package_size) * price)
        case Scheme.GRADUATED:
            return MilliUnits(sum(units * tier.price for units, tier in _filled(quantity, tiers)))
        case Scheme.VOLUME:
            reached = next(tier for tier in tiers if tier.up_to is None or quantity <= tier.up_to)
            return MilliUnits(quantity * reached.price)


def stepped_price(usage: TokenUsage, tariffs: Sequence[Tariff]) -> MilliUnits:
    """The exact price of what stepped prices count of a call, in milli-units."""
    found = quantities(usage)
    return MilliUnits(sum(_price(sum(found[meter] for meter in tariff.meters), tariff) for tariff in tariffs))


def _price(quantity: int, tariff: Tariff) -> MilliUnits:
    return scheme_price(quantity, tariff.scheme, tariff.price, tariff.tiers, tariff.package_size)


def _filled(quantity: int, tiers: Sequence[Tier]) -> Iterator[tuple[int, Tier]]:
    """The units of a quantity that lie in each tier."""
    floor = 0
    for tier in tiers:
        top = quantity if tier.up_to is None else min(quantity, tier.up_to)
        yield max(0, top - floor), tier
        floor = top


def monthly_rebate(version: PriceVersion, quantity: int) -> Units:
    """What a month's quantity is owed back at a price whose tiers look at the month, in ledger units, never below 0.

    `quantity` is the sum of `counted_by` over the calls of one organization in one calendar month (its own time zone)
    whose charges name this price version; a call belongs to the month that it is billed in. Its calls were charged at
    the dearest tier; the rebate is that less the scheme's price, rounded half-even once. A correction counts with the
    difference of its tokens. A call whose charge was cut to its hold paid less than the dearest tier, so whoever pays
    the rebate out gives back at most what was charged. For a version whose tiers look at the call it is 0.
    """
    if version.tiers_over is not TiersOver.MONTH or quantity <= 0:
        return Units(0)
    charged = quantity * version.price
    return Units(divide_half_even(charged - scheme_price(quantity, version.scheme, 0, version.tiers), 1_000))


def dearest(tiers: Sequence[Tier]) -> MilliUnits:
    """The highest price among tiers: what a call is charged at where they look at the month."""
    return max(tier.price for tier in tiers)


# The highest price of a call -----------------------------------------------------------------------------------------


def highest(bound: int, rate: int, tariffs: Sequence[Tariff]) -> MilliUnits:
    """An upper bound, in milli-units, of the price of at most `bound` tokens however they fall on the meters.

    `rate` is the dearest of the plain prices among these meters. A scheme's price may fall where a cheaper tier begins
    and jumps where a package does, so each is replaced by the least concave function above it. The highest sum of
    concave functions is found by spending the tokens where the next one costs most.
    """
    if not tariffs:
        return MilliUnits(bound * rate)
    if rate == 0 and len(tariffs) == 1:
        # Nothing to share the tokens with, which is usual: the price at its highest corner.
        return MilliUnits(max(_price(quantity, tariffs[0]) for quantity in _corners(bound, tariffs[0])))
    slopes = [(Fraction(rate), bound)]
    for tariff in tariffs:
        hull = _hull([(quantity, _price(quantity, tariff)) for quantity in _corners(bound, tariff)])
        slopes += [(Fraction(high - low, right - left), right - left) for (left, low), (right, high) in pairwise(hull)]
    total, left_over = Fraction(0), bound
    for slope, length in sorted(slopes, reverse=True):
        if slope <= 0 or left_over == 0:
            break
        taken = min(length, left_over)
        total, left_over = total + slope * taken, left_over - taken
    return MilliUnits(divide_up(total.numerator, total.denominator))


def _corners(bound: int, tariff: Tariff) -> list[int]:
    """Quantities between which the price is straight, or lies below the straight line."""
    corners = {0, min(1, bound), bound}
    if tariff.scheme is Scheme.PACKAGE:
        assert tariff.package_size is not None, "a package has a size"
        # The first token of each package lies on one line; the last package that is begun ends it.
        corners.add(max(0, bound - 1) // tariff.package_size * tariff.package_size + min(1, bound))
    for tier in tariff.tiers:
        if tier.up_to is not None:
            corners |= {min(tier.up_to, bound), min(tier.up_to + 1, bound)}
    return sorted(corners)


def _hull(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points on the least concave function above all `points`, which come from left to right."""
    hull: list[tuple[int, int]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x1) > (y - y1) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


# What no price can be ------------------------------------------------------------------------------------------------


def refuse_impossible(draft: PriceDraft) -> None:
    """Raise `InvalidRequest` with a sentence for a price that contradicts itself or lies beyond the ledger."""
    if not all(0 <= price <= LARGEST_PRICE for price in (draft.price, *(tier.price for tier in draft.tiers))):
        raise InvalidRequest(
            "This price is larger than any balance, or below zero. State a price between the two.",
            param="tiers" if draft.tiers else "price_per_million",
        )
    has_tiers = draft.scheme in (Scheme.GRADUATED, Scheme.VOLUME)
    if has_tiers != bool(draft.tiers):
        wanted = "Give tiers, the last one without an end" if has_tiers else "Leave tiers out, or make it graduated"
        raise InvalidRequest(f"The scheme {draft.scheme} does not fit. {wanted}.", param="tiers")
    if has_tiers:
        _refuse_tiers([tier.up_to for tier in draft.tiers])
    if (draft.scheme is Scheme.PACKAGE) != (draft.package_size is not None):
        raise InvalidRequest("A package has a package_size, and nothing else has one.", param="package_size")
    if draft.package_size is not None and not 0 < draft.package_size <= LARGEST_QUANTITY:
        raise InvalidRequest("A package holds at least one unit: give a package_size above 0.", param="package_size")
    if draft.tiers_over is TiersOver.MONTH and not has_tiers:
        raise InvalidRequest("Only graduated and volume prices look at a month. Leave tiers_over out.", "tiers_over")
    _refuse_scheme(draft)


def _refuse_tiers(ends: Sequence[int | None]) -> None:
    *bounded, last = ends
    if last is not None:
        raise InvalidRequest(
            "The last tier has no end, so that every quantity is priced: leave its up_to out.", "tiers"
        )
    numbers = [end for end in bounded if end is not None]
    ascending = all(low < high for low, high in pairwise([0, *numbers]))
    if len(numbers) < len(bounded) or not ascending or max(numbers, default=0) > LARGEST_QUANTITY:
        raise InvalidRequest("Each tier ends above the one before: sort the tiers by up_to, from 1 upwards.", "tiers")
    if len(ends) > MOST_TIERS:
        raise InvalidRequest(f"A price has at most {MOST_TIERS} tiers. Leave some out.", param="tiers")


def _refuse_scheme(draft: PriceDraft) -> None:
    is_by_call = draft.scheme is not Scheme.UNIT and draft.tiers_over is TiersOver.CALL
    if draft.meter is Meter.MINIMUM and draft.scheme is not Scheme.UNIT:
        raise InvalidRequest("The least price of a call is one price: use the scheme unit.", param="scheme")
    if draft.meter is Meter.REQUEST and is_by_call:
        raise InvalidRequest(
            "A call is one request, so steps over one call never come to a second. Use the scheme unit, or tiers over"
            " the month.",
            param="scheme",
        )
