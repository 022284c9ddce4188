"""The price of a call, from its tokens and its pinned rates: pure integer arithmetic, rounded once."""

from __future__ import annotations

from billing.rounding import divide_half_even, divide_up
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
        + rates.request
    )
    return Units(divide_half_even(milli, 1_000))


def ceiling(input_bound: int, output_bound: int, rates: Rates) -> Units:
    """Highest possible price of a call with at most these tokens, rounded up: the amount of its hold."""
    dearest_input = max(rates.input, rates.cached_input, rates.cache_write)
    dearest_output = max(rates.output, rates.reasoning)
    milli = input_bound * dearest_input + output_bound * dearest_output + rates.request
    return Units(divide_up(milli, 1_000))
