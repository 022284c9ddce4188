"""Prices of calls computed in SQL: few sets of price versions price very many charges, too many to fetch.

This is the arithmetic of `billing.pricing` and `billing.schemes` written a second time, in exact numbers: `verify`
compares the two on live data, and a test on made-up calls.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from models.catalog import Rates

PLAIN_MILLI_UNITS: Final = """
    (input_tokens - cached_tokens - cache_write_tokens) * input + cached_tokens * cached_input
      + cache_write_tokens * cache_write + (output_tokens - reasoning_tokens) * output
      + reasoning_tokens * reasoning + images * image + audio_seconds * audio_second + request
"""
"""The exact price of what has one price each, at `numeric` rates."""

_TIERS: Final = "jsonb_to_recordset(tariff.tiers) as tier (up_to numeric, price numeric)"

_STEPPED_MILLI_UNITS: Final = f"""
    (
      select coalesce(sum(case tariff.scheme
          when 'unit' then quantity * tariff.price
          when 'package' then div(quantity + tariff.package_size - 1, tariff.package_size) * tariff.price
          when 'volume' then quantity * (
            select tier.price from {_TIERS}
              where tier.up_to is null or quantity <= tier.up_to order by tier.up_to nulls last limit 1
          )
          when 'graduated' then (
            select sum(greatest(least(quantity, coalesce(filled.up_to, quantity)) - filled.below, 0) * filled.price)
              from (
                select tier.*, coalesce(lag(tier.up_to) over (order by tier.up_to nulls last), 0) as below from {_TIERS}
              ) filled
          )
        end), 0)
        from jsonb_to_recordset(steps -> 'tariffs') as tariff (
          meters text[], scheme text, price numeric, tiers jsonb, package_size numeric
        )
        cross join lateral (
          select cast(0 as numeric)
            + case when 'input' = any(tariff.meters) then input_tokens - cached_tokens - cache_write_tokens else 0 end
            + case when 'cached_input' = any(tariff.meters) then cached_tokens else 0 end
            + case when 'cache_write' = any(tariff.meters) then cache_write_tokens else 0 end
            + case when 'output' = any(tariff.meters) then output_tokens - reasoning_tokens else 0 end
            + case when 'reasoning' = any(tariff.meters) then reasoning_tokens else 0 end
            + case when 'request' = any(tariff.meters) then 1 else 0 end
            + case when 'image' = any(tariff.meters) then images else 0 end
            + case when 'audio_second' = any(tariff.meters) then audio_seconds else 0 end as quantity
        ) counted
    )
"""  # noqa: S608 - made of constants

MILLI_UNITS: Final = f"""
    case when steps is null then {PLAIN_MILLI_UNITS}
      else greatest({PLAIN_MILLI_UNITS} + {_STEPPED_MILLI_UNITS}, cast(steps ->> 'minimum' as numeric)) end
"""
"""The exact price of what a charge used; `steps` is null for most."""

UNITS: Final = """
    div(milli, 1000) + case
      when mod(milli, 1000) > 500 or mod(milli, 1000) = 500 and mod(div(milli, 1000), 2) = 1 then 1 else 0 end
"""
"""`milli` rounded half-even, as `billing.rounding` rounds."""

ONCE: Final = "offset 0"
"""Ends a subselect of `MILLI_UNITS`. Without it the planner puts the expression wherever `milli` stands, and computes
it six times a row."""

RATE_COLUMNS: Final = """
    input numeric, output numeric, cached_input numeric, cache_write numeric, reasoning numeric, request numeric,
    steps jsonb, image numeric, audio_second numeric
"""
"""The columns that `rate_json` fills in a `jsonb_to_recordset`."""


def rate_json(rates: Rates) -> dict[str, Any]:
    """Rates as an object of `RATE_COLUMNS`."""
    found = asdict(rates)
    del found["version_ids"]
    if rates.steps is None:
        # A null in JSON would be a value.
        del found["steps"]
    return found
