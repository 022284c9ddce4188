"""`charges`: one row a call, in the order of call ids; the sub-ledger that everything else sums."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from billing.exports.cells import sql_unit
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Lines, Rows, amount, conditions, moment, optional, plain, worded
from billing.exports.watermarks import charged_watermark
from models.ids import first_uuid7

_CLOCK_SLACK: Final = timedelta(days=1)
"""How far the time in a call's id may lie from its `created_at`: far more than it ever does."""

# Almost every call is paid by one source, and taking a list apart costs as much as all the rest of a row.
_FUNDING: Final = """
    case jsonb_array_length(funding)
      when 1 then concat(funding -> 0 ->> 0, '=', (funding -> 0 ->> 1)::numeric * unit)
      else (
        select string_agg(concat(source ->> 0, '=', (source ->> 1)::numeric * unit), ' ' order by place)
          from jsonb_array_elements(funding) with ordinality as listed (source, place)
      ) end
"""
# Of the first source it is enough to know how it begins; it may be empty, and then `=` comes first.
_FUNDING_BEGINS: Final = "case when jsonb_array_length(funding) > 0 then concat(funding -> 0 ->> 0, '=') end"


def rows_of_charges(wanted: Wanted) -> Rows:
    """The charges that are wanted, with the unit of their currency."""
    condition, values = conditions(wanted, id="posting_id", at="created_at", organization_id="organization_id")
    for name in ("project_id", "api_key_id", "model"):
        if (value := getattr(wanted, name)) is not None:
            condition += f" and {name} = :{name}"
            values[name] = value
    # The table is partitioned by id: bounds on it keep a query out of the months it has no business in.
    if wanted.start is not None:
        condition += " and call_id >= :first_id"
        values["first_id"] = first_uuid7(wanted.start - _CLOCK_SLACK)
    if wanted.end is not None:
        condition += " and call_id < :end_id"
        values["end_id"] = first_uuid7(wanted.end + _CLOCK_SLACK)
    sql = f"select *, {sql_unit('currency')} as unit from charge where {condition}"  # noqa: S608 - made of constants
    return Rows(sql, values)


LINES: Final = Lines(
    columns=(
        plain("row_id", "call_id"),
        plain("organization_id"),
        plain("project_id"),
        plain("api_key_id"),
        moment("created_at"),
        moment("ended_at"),
        plain("period", "to_char(created_at at time zone 'UTC', 'YYYY-MM')"),
        worded("endpoint"),
        worded("model"),
        worded("deployment"),
        worded("end_user"),
        plain("streamed", "case when streamed then 'true' else 'false' end"),
        plain("ending"),
        plain("usage_source"),
        plain("input_tokens"),
        plain("cached_tokens"),
        plain("cache_write_tokens"),
        plain("output_tokens"),
        plain("reasoning_tokens"),
        amount("amount"),
        plain("currency"),
        amount("hold"),
        worded("funding", _FUNDING, _FUNDING_BEGINS),
        # Ids, so there is nothing to guard.
        plain("price_version_ids", """concat('"', array_to_string(price_version_ids, ' '), '"')"""),
        worded("flags", "array_to_string(flags, ' ')"),
        optional("corrects"),
        plain("posting_id"),
        # New columns come last, so that who reads by place still can.
        plain("images"),
        plain("audio_seconds"),
        plain("batch", "case when batch then 'true' else 'false' end"),
        worded("version"),
    ),
    rows=rows_of_charges,
    key=(("call_id", "uuid"),),
    total="amount",
    moment="created_at",
    pairs=True,
)
"""`row_id` is the call id, `period` the UTC month; `funding` is `<grant or unbilled>=<amount>`, joined by blanks."""

COLUMNS: Final = tuple(column.name for column in LINES.columns)

CHARGES: Final = Kind(
    name="charges",
    schema="tollgate.charges/2",
    pieces=LINES.pieces,
    count=LINES.count,
    head=LINES.head,
    total="amount",
    moment="created_at",
    newest=charged_watermark,
)
