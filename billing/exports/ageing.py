"""`ageing`: what organizations owe at a moment, by how long it is overdue; beside it the same from the ledger."""

from __future__ import annotations

from typing import Final

from billing.exports.cells import sql_unit
from billing.exports.documents import issued
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Lines, Rows, amount, conditions, moment, plain
from models.errors import InvalidRequest

_BUCKETS: Final = (
    ("not_due", "overdue <= 0"),
    ("days_1_to_30", "overdue between 1 and 30"),
    ("days_31_to_60", "overdue between 31 and 60"),
    ("days_61_to_90", "overdue between 61 and 90"),
    ("days_over_90", "overdue > 90"),
)


def _rows(wanted: Wanted) -> Rows:
    assert wanted.end is not None, "refused before"
    own = "" if wanted.organization_id is None else "and organization_id = :organization_id"
    condition, values = conditions(
        wanted, id="posting.id", at="effective_at", organization_id="posting.organization_id"
    )
    sums = ", ".join(f"coalesce(sum(owed) filter (where {when}), 0) as {name}" for name, when in _BUCKETS)
    names = ", ".join(f"coalesce({name}, 0) as {name}" for name, _ in _BUCKETS)
    sql = f"""
      select organization_id, currency collate "C" as currency, cast(:end as timestamptz) as as_of, {names},
          coalesce(owed, 0) as owed, coalesce(in_ledger, 0) as in_ledger, {sql_unit("currency")} as unit
        from (
          select organization_id, currency, {sums}, sum(owed) as owed
            from (
              select organization_id, currency, total - applied as owed,
                  (cast(:end as timestamptz) at time zone 'UTC' - interval '1 microsecond')::date - due_on as overdue
                from ({issued("end")}) issued
                where kind = 'invoice' and status = 'open' and total > applied and posting_id <= :watermark
                  and issued_at < :end {own}
            ) debt
            group by 1, 2
        ) aged
        full join (
          select account.organization_id, account.currency, sum(
              case account.id when transfer.debit_account then transfer.amount else -transfer.amount end) as in_ledger
            from posting
            join transfer on transfer.posting_id = posting.id
            join account on account.id in (transfer.debit_account, transfer.credit_account)
              and account.kind = 'receivable'
            where {condition}
            group by 1, 2
        ) receivable using (organization_id, currency)
        where owed is not null or in_ledger <> 0
    """  # noqa: S608 - made of constants
    return Rows(sql, values)


_LINES: Final = Lines(
    columns=(
        plain("row_id", "concat(organization_id, '-', currency)"),
        plain("organization_id"),
        moment("as_of"),
        plain("currency"),
        *(amount(name) for name, _ in _BUCKETS),
        amount("total", "owed"),
        # What is not in a document: credit that is not set against an invoice yet.
        amount("ledger_receivable", "in_ledger"),
    ),
    rows=_rows,
    key=(("organization_id", "uuid"), ("currency", "text")),
    total="owed",
    moment="as_of",
)


def _refuse(wanted: Wanted) -> None:
    if wanted.end is None:
        raise InvalidRequest("Receivables are aged at a moment; give it as to, such as to=2026-04-01.", param="to")
    if wanted.start is not None:
        raise InvalidRequest("Receivables are aged at a moment; give to and leave from out.", param="from")


AGEING: Final = Kind(
    name="ageing",
    schema="tollgate.ageing/1",
    pieces=_LINES.pieces,
    head=_LINES.head,
    total="total",
    moment="as_of",
    takes_since=False,
    refuse=_refuse,
)
