"""What a part of an organization's usage cost, by model and meter, as its cost report names it. Pure.

Each call's price is rounded once, over all its meters, so the parts by meter are not whole ledger units. They are
shared out by largest remainder, as on invoices: whatever is summed, its line items add up to its charges to the unit.
What prices times quantities do not explain (minimums, several stepped prices, holds that were spent, corrections) is
an item of its own, `adjustments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from billing.invoicing import UsageGroup, group_lines
from models.catalog import Meter, PriceVersion

ADJUSTMENTS: Final = "adjustments"
_NAMES: Final = {
    Meter.INPUT: ("input_tokens", "tokens"),
    Meter.CACHED_INPUT: ("cached_input_tokens", "tokens"),
    Meter.CACHE_WRITE: ("cache_write_tokens", "tokens"),
    Meter.OUTPUT: ("output_tokens", "tokens"),
    Meter.REASONING: ("reasoning_tokens", "tokens"),
    Meter.REQUEST: ("requests", "requests"),
    Meter.IMAGE: ("images", "images"),
    Meter.AUDIO_SECOND: ("audio_seconds", "duration_seconds"),
}
"""The second half of an item's name, and the unit of its quantity."""


@dataclass(frozen=True, slots=True)
class LineItem:
    """An item: its amount in ledger units, and what was used for it, in `unit`; both None for adjustments."""

    name: str
    amount: int
    quantity: int | None = None
    unit: str | None = None


def line_items(group: UsageGroup, prices: Mapping[UUID, PriceVersion]) -> list[LineItem]:
    """The items of a group of charges with one model and one set of prices; they add up to its amount.

    The name is the model's and the meter's, as in `llama-3, input_tokens`.
    """
    found = []
    for line in group_lines(group, prices):
        if line.meter is None:
            found.append(LineItem(f"{group.model}, {ADJUSTMENTS}", line.amount))
        else:
            name, unit = _NAMES[Meter(line.meter)]
            found.append(LineItem(f"{group.model}, {name}", line.amount, line.quantity, unit))
    return found


def merged(one: LineItem, two: LineItem) -> LineItem:
    """Two items of one name as one."""
    quantity = None if one.quantity is None or two.quantity is None else one.quantity + two.quantity
    return LineItem(one.name, one.amount + two.amount, quantity, one.unit)
