"""`journal`: the book itself, two rows a transfer; debits and credits are equal in every posting."""

from __future__ import annotations

from typing import Final

from billing.exports.cells import sql_unit
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Lines, Rows, amount, conditions, moment, optional, plain, worded

SOURCE_DOCUMENT: Final = """
    coalesce(
      'credit note ' || (source ->> 'credit_note_id'), 'invoice ' || (source ->> 'invoice_id'),
      'payment ' || (source ->> 'payment_id'), 'grant ' || (source ->> 'grant_id'), 'call ' || (source ->> 'corrects'),
      'stream ' || (source ->> 'shard') || ' from ' || (source ->> 'first') || ' to ' || (source ->> 'last'), ''
    )
"""
"""What a posting is about, in words; for charges the entries of the stream that they came from."""

MEMO: Final = """
    concat(replace(kind, '_', ' '), ', ' || (source ->> 'calls') || ' calls')
"""


def _rows(wanted: Wanted) -> Rows:
    condition, values = conditions(
        wanted, id="posting.id", at="posting.effective_at", organization_id="posting.organization_id"
    )
    sql = f"""
      select posting.id as posting_id, transfer.seq, side.number as side, posting.effective_at, posting.kind,
          posting.source, posting.organization_id, posting.reverses, posting.billing_month, account.kind as account,
          account.organization_id as account_organization_id, account.currency,
          {sql_unit("account.currency")} as unit,
          case side.number when 0 then transfer.amount else 0 end as debit,
          case side.number when 1 then transfer.amount else 0 end as credit
        from posting
        join transfer on transfer.posting_id = posting.id
        cross join (values (0), (1)) side (number)
        join account
          on account.id = case side.number when 0 then transfer.debit_account else transfer.credit_account end
        where {condition}
    """  # noqa: S608 - made of constants
    return Rows(sql, values)


_LINES: Final = Lines(
    columns=(
        plain("row_id", "concat(posting_id, '-', seq, case side when 0 then '-debit' else '-credit' end)"),
        plain("posting_id"),
        moment("effective_at"),
        plain("date", "to_char(effective_at at time zone 'UTC', 'YYYY-MM-DD')"),
        plain("period", "to_char(effective_at at time zone 'UTC', 'YYYY-MM')"),
        plain("kind"),
        optional("organization_id"),
        plain("account"),
        optional("account_organization_id"),
        amount("debit"),
        amount("credit"),
        plain("currency"),
        worded("memo", MEMO),
        worded("source_document", SOURCE_DOCUMENT),
        optional("billing_month", "to_char(billing_month, 'YYYY-MM')"),
        optional("reversal_of", "reverses"),
    ),
    rows=_rows,
    key=(("posting_id", "bigint"), ("seq", "smallint"), ("side", "integer")),
    total="debit",
    moment="effective_at",
)

JOURNAL: Final = Kind(
    name="journal",
    schema="tollgate.journal/1",
    pieces=_LINES.pieces,
    count=_LINES.count,
    head=_LINES.head,
    total="debit",
    moment="effective_at",
    is_operators=True,
)
