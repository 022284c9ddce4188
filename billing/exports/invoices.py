"""`invoices` and `invoice_lines`: issued documents and what is on them; the amounts of credit notes are negative."""

from __future__ import annotations

from typing import Final

from billing.exports.documents import NUMBER, issued
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Lines, Rows, amount, conditions, optional, plain, worded


def _documents(wanted: Wanted) -> Rows:
    condition, values = conditions(wanted, id="posting_id", at="issued_at", organization_id="organization_id")
    return Rows(f"select * from ({issued()}) issued where {condition}", values)  # noqa: S608 - made of constants


def _lines(wanted: Wanted) -> Rows:
    condition, values = conditions(wanted, id="posting_id", at="issued_at", organization_id="organization_id")
    sql = f"""
      select issued.*, line.invoice_id, line.seq, line.kind as line_kind, line.description, line.project_id,
          line.project_name, line.model, line.meter, line.price_version_id, line.quantity, line.unit_price,
          line.amount as line_amount, line.rounded
        from ({issued()}) issued join invoice_line line on line.invoice_id = issued.id where {condition}
    """  # noqa: S608 - made of constants
    return Rows(sql, values)


_INVOICES: Final = Lines(
    columns=(
        plain("row_id", "id"),
        plain("organization_id"),
        worded("organization_name", "buyer ->> 'legal_name'"),
        worded("organization_tax_id", "buyer ->> 'tax_id'"),
        plain("kind"),
        worded("number", NUMBER),
        plain("status"),
        plain("issued_on", "coalesce(issued_on::text, '')"),
        optional("due_on"),
        optional("month", "to_char(month, 'YYYY-MM')"),
        plain("starts_at", "coalesce(to_char(starts_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24\\:MI\\:SS\"Z\"'), '')"),
        plain("ends_at", "coalesce(to_char(ends_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24\\:MI\\:SS\"Z\"'), '')"),
        plain("currency"),
        amount("subtotal", "sign * subtotal"),
        amount("tax", "sign * tax"),
        amount("total", "sign * total"),
        amount("rounding", "sign * rounding"),
        amount("settled", "sign * applied"),
        amount("outstanding", "case status when 'open' then sign * (total - applied) else 0 end"),
        optional("corrects"),
        worded("tax_treatment", "tax_detail ->> 'treatment'"),
        worded("purchase_order"),
        plain("posting_id"),
    ),
    rows=_documents,
    key=(("id", "uuid"),),
    total="sign * total",
    moment="issued_at",
)

_LINES: Final = Lines(
    columns=(
        plain("row_id", "concat(invoice_id, '-', seq)"),
        plain("invoice_id"),
        worded("number", NUMBER),
        plain("status"),
        plain("seq"),
        plain("organization_id"),
        plain("kind", "line_kind"),
        worded("description"),
        optional("project_id"),
        worded("project_name"),
        worded("model"),
        worded("meter"),
        plain("quantity", "sign * quantity"),
        # Milli-units a token are ledger units a thousand: exact with three digits more.
        plain("unit_price", "coalesce((unit_price * unit * 0.001)::text, '')"),
        optional("price_version_id"),
        amount("amount", "sign * line_amount"),
        amount("rounded", "sign * rounded"),
        plain("currency"),
        plain("posting_id"),
    ),
    rows=_lines,
    key=(("invoice_id", "uuid"), ("seq", "integer")),
    total="sign * rounded",
    moment="issued_at",
)

INVOICES: Final = Kind(
    name="invoices",
    schema="tollgate.invoices/1",
    pieces=_INVOICES.pieces,
    count=_INVOICES.count,
    head=_INVOICES.head,
    total="total",
    moment="issued_at",
)

INVOICE_LINES: Final = Kind(
    name="invoice_lines",
    schema="tollgate.invoice_lines/1",
    pieces=_LINES.pieces,
    count=_LINES.count,
    head=_LINES.head,
    total="rounded",
    moment="issued_at",
)
