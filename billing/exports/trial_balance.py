"""`trial_balance`: every account of the chart in every currency, opening to closing; each column sums to nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from billing.exports.cells import sql_unit
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Lines, Rows, amount, conditions, plain
from models.ledger import DEBIT_NORMAL

_DEBIT_NORMAL: Final = ", ".join(f"'{kind.value}'" for kind in sorted(DEBIT_NORMAL))


def _rows(wanted: Wanted) -> Rows:
    """Sums of transfers and not the balances that are kept: those are of now."""
    condition, values = conditions(
        replace(wanted, start=None), id="posting.id", at="effective_at", organization_id="posting.organization_id"
    )
    before = "false" if wanted.start is None else "effective_at < :start"
    if wanted.start is not None:
        values["start"] = wanted.start
    sql = f"""
      select kind collate "C" as kind, currency collate "C" as currency, {sql_unit("currency")} as unit,
          sum(debit - credit) filter (where is_before) as opening, sum(debit) filter (where not is_before) as debits,
          sum(credit) filter (where not is_before) as credits, sum(debit - credit) as closing,
          max(effective_at) as effective_at
        from (
          select account.kind, account.currency, {before} as is_before, effective_at,
              case side.number when 0 then transfer.amount else 0 end as debit,
              case side.number when 1 then transfer.amount else 0 end as credit
            from posting
            join transfer on transfer.posting_id = posting.id
            cross join (values (0), (1)) side (number)
            join account
              on account.id = case side.number when 0 then transfer.debit_account else transfer.credit_account end
            where {condition}
        ) entry
        group by kind, currency
    """  # noqa: S608 - made of constants
    return Rows(sql, values)


_LINES: Final = Lines(
    columns=(
        plain("row_id", "concat(kind, '-', currency)"),
        plain("account", "kind"),
        plain("currency"),
        plain("normal_side", f"case when kind in ({_DEBIT_NORMAL}) then 'debit' else 'credit' end"),
        amount("opening", "coalesce(opening, 0)"),
        amount("debits", "coalesce(debits, 0)"),
        amount("credits", "coalesce(credits, 0)"),
        amount("closing"),
    ),
    rows=_rows,
    key=(("currency", "text"), ("kind", "text")),
    total="coalesce(debits, 0)",
    moment="effective_at",
)

TRIAL_BALANCE: Final = Kind(
    name="trial_balance",
    schema="tollgate.trial_balance/1",
    pieces=_LINES.pieces,
    head=_LINES.head,
    total="debits",
    moment="effective_at",
    is_operators=True,
    takes_since=False,
)
"""`opening` and `closing` are debits less credits, so that a credit balance is negative."""
