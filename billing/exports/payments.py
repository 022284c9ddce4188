"""`payments`: money that came in, what of it is set against invoices, and what was given back."""

from __future__ import annotations

from typing import Final

from billing.exports.cells import sql_unit
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Lines, Rows, amount, conditions, moment, plain, worded


def _rows(wanted: Wanted) -> Rows:
    condition, values = conditions(wanted, id="posting_id", at="received_at", organization_id="organization_id")
    sql = f"""
      select payment.*, {sql_unit("currency")} as unit,
          (
            select coalesce(sum(allocation.amount), 0) from allocation
              where allocation.payment_id = payment.id
                and coalesce(allocation.posting_id, payment.posting_id) <= :watermark
          ) as allocated,
          (
            select coalesce(sum(transfer.amount), 0)
              from posting about
              join transfer on transfer.posting_id = about.id
              join account on account.id = transfer.credit_account and account.kind = 'cash_clearing'
              where about.organization_id = payment.organization_id and about.kind = 'refund'
                and about.source ->> 'payment_id' = payment.id::text and about.id <= :watermark
          ) as given_back
        from payment where {condition}
    """  # noqa: S608 - made of constants
    return Rows(sql, values)


_LINES: Final = Lines(
    columns=(
        plain("row_id", "id"),
        plain("organization_id"),
        worded("provider"),
        worded("reference"),
        moment("received_at"),
        plain("period", "to_char(received_at at time zone 'UTC', 'YYYY-MM')"),
        amount("amount"),
        plain("currency"),
        amount("allocated"),
        amount("refunded", "given_back"),
        plain("posting_id"),
    ),
    rows=_rows,
    key=(("id", "uuid"),),
    total="amount",
    moment="received_at",
)

PAYMENTS: Final = Kind(
    name="payments",
    schema="tollgate.payments/1",
    pieces=_LINES.pieces,
    count=_LINES.count,
    head=_LINES.head,
    total="amount",
    moment="received_at",
)
