"""The price of a call, from what it used and its pinned rates: pure integer arithmetic, rounded once."""

from __future__ import annotations

from billing.rounding import divide_half_even, divide_up
from billing.schemes import AUDIO_METERS, IMAGE_METERS, INPUT_METERS, OUTPUT_METERS, highest, stepped_price
from models.catalog import Rates
from models.money import Units
from models.usage import TokenUsage


def price(usage: TokenUsage, rates: Rates) -> Units:
    """Exact price of one call, rounded half-even to the ledger unit, once (DESIGN section 4)."""
    fresh = usage.input - usage.cached - usage.cache_write
    plain = usage.output - usage.reasoning
    milli = (
        fresh * rates.input
        + usage.cached * rates.cached_input
        + usage.cache_write * rates.cache_write
        + plain * rates.output
        + usage.reasoning * rates.reasoning
        + usage.images * rates.image
        + usage.audio_seconds * rates.audio_second
        + rates.request
    )
    if rates.steps is not None:
        milli = max(milli + stepped_price(usage, rates.steps.tariffs), rates.steps.minimum)
    return Units(divide_half_even(milli, 1_000))


def ceiling(input_bound: int, output_bound: int, rates: Rates, images: int = 0, audio_seconds: int = 0) -> Units:
    """Highest possible price of a call with at most these tokens, images and seconds, rounded up: its hold."""
    dearest_input = max(rates.input, rates.cached_input, rates.cache_write)
    dearest_output = max(rates.output, rates.reasoning)
    if rates.steps is None:
        milli = input_bound * dearest_input + output_bound * dearest_output + rates.request
        if images or audio_seconds:
            milli += images * rates.image + audio_seconds * rates.audio_second
        return Units(divide_up(milli, 1_000))
    most = sum(
        highest(bound, rate, [tariff for tariff in rates.steps.tariffs if not meters.isdisjoint(tariff.meters)])
        for bound, rate, meters in (
            (input_bound, dearest_input, INPUT_METERS),
            (output_bound, dearest_output, OUTPUT_METERS),
            (images, rates.image, IMAGE_METERS),
            (audio_seconds, rates.audio_second, AUDIO_METERS),
        )
    )
    return Units(divide_up(max(most + rates.request, rates.steps.minimum), 1_000))
