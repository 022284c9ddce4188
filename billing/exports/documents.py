"""Invoices and credit notes as they were at a watermark: what was paid or voided later is not seen.

What is noted on a document's row later on (state, what is settled) is told from postings instead: its own, those of
allocations, and of kind `void_invoice` and `write_off`, which name it by `reverses` or as `invoice_id` in their source.
"""

from __future__ import annotations

from typing import Final

from billing.exports.cells import sql_unit

NUMBER: Final = "concat(series, '-', lpad(number::text, greatest(6, length(number::text)), '0'))"
"""As people see it on the document: `INV-000042`."""


def _named(kind: str, condition: str) -> str:
    """Whether there is a posting of this kind about a document, at or below the watermark."""
    return f"""
      exists (
        select from posting about
          where about.organization_id = invoice.organization_id and about.kind = '{kind}' and about.id <= :watermark
            and {condition}
            and (about.reverses = invoice.posting_id or about.source ->> 'invoice_id' = invoice.id::text)
      )"""


def issued(until: str | None = None) -> str:
    """A select of issued documents, with the moment `issued_at` of their posting and what was so at the watermark.

    `sign` is -1 for credit notes, `applied` what is set against an invoice, `status` one of open, paid, void and
    uncollectible. A credit note is paid when it is issued: what is not set against its invoice is credit. With
    `until`, the name of a parameter, postings of that moment or later are not seen either.
    """
    seen = "true" if until is None else f"about.effective_at < :{until}"
    applied = "true" if until is None else f"applied.effective_at < :{until}"
    return f"""
      select document.*, case
          when is_void then 'void'
          when is_written_off then 'uncollectible'
          when applied >= total then 'paid'
          else 'open' end as status
        from (
          select invoice.id, invoice.organization_id, invoice.kind, invoice.corrects, invoice.series, invoice.number,
              invoice.currency, invoice.month, invoice.starts_at, invoice.ends_at, invoice.issued_on, invoice.due_on,
              invoice.subtotal, invoice.tax, invoice.total, invoice.rounding, invoice.buyer, invoice.seller,
              invoice.tax_detail, invoice.purchase_order, invoice.posting_id, own.effective_at as issued_at,
              own.booked_at, case invoice.kind when 'credit_note' then -1 else 1 end as sign,
              {sql_unit("invoice.currency")} as unit,
              {_named("void_invoice", seen)} as is_void, {_named("write_off", seen)} as is_written_off,
              case invoice.kind when 'credit_note' then invoice.total else (
                select coalesce(sum(allocation.amount), 0)
                  from allocation
                  left join payment on payment.id = allocation.payment_id
                  left join invoice note on note.id = allocation.credit_note_id
                  join posting applied
                    on applied.id = coalesce(allocation.posting_id, payment.posting_id, note.posting_id)
                  where allocation.invoice_id = invoice.id and applied.id <= :watermark and {applied}
              ) end as applied
            from invoice join posting own on own.id = invoice.posting_id
            where invoice.state <> 'draft'
        ) document
    """  # noqa: S608 - made of constants
