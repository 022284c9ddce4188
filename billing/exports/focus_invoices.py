"""`focus_invoice_detail` and `focus_billing_period`: the other two data sets of FOCUS 1.4."""

from __future__ import annotations

from typing import Final

from billing.exports.cells import sql_text
from billing.exports.documents import NUMBER, issued
from billing.exports.focus import ISSUER
from billing.exports.focus_columns import BILLING_PERIOD_1_4, INVOICE_DETAIL_1_4
from billing.exports.frame import Kind, Wanted
from billing.exports.lines import Column, Lines, Rows

_SELLER: Final = "(select legal_name from seller)"
_ISSUER: Final = f"coalesce(seller ->> 'legal_name', {_SELLER}, '{ISSUER}')"


def _time(sql: str) -> str:
    return f"""to_char({sql} at time zone 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS"Z"')"""


def _date(sql: str) -> str:
    return f"""to_char({sql}, 'YYYY-MM-DD"T00\\:00\\:00Z"')"""


def _null_or(sql: str, cell: str) -> str:
    return f"case when {sql} is null then '' else {cell} end"


def _span(wanted: Wanted, month: str) -> tuple[str, dict[str, object]]:
    """Billing periods that begin within what is wanted, by the calendar."""
    found, values = "", dict[str, object]()
    for name, sign, value in (("start", ">=", wanted.start), ("end", "<", wanted.end)):
        if value is not None:
            found += f" and ({month})::timestamp at time zone 'UTC' {sign} :{name}"
            values[name] = value
    if wanted.organization_id is not None:
        found += " and organization_id = :organization_id"
        values["organization_id"] = wanted.organization_id
    return found, values


def _details(wanted: Wanted) -> Rows:
    condition, values = _span(wanted, "billed_in")
    sql = f"""
      select document.*, line.*,
          coalesce(case document.kind when 'invoice' then starts_at end, billed_in::timestamp at time zone timezone)
            as begins,
          coalesce(case document.kind when 'invoice' then ends_at end,
            (billed_in + interval '1 month')::timestamp at time zone timezone) as finishes
        from (
          select issued.*, organization.timezone,
              -- A credit note is of the month in which it is issued, whichever it corrects.
              coalesce(case issued.kind when 'invoice' then month end,
                date_trunc('month', issued_at at time zone organization.timezone)::date) as billed_in,
              (select {NUMBER} from invoice original where original.id = issued.corrects) as original
            from ({issued()}) issued join organization on organization.id = issued.organization_id
        ) document
        join lateral (
          select seq, kind as line_kind, description, project_id, model, meter, price_version_id, rounded
            from invoice_line where invoice_id = document.id
          union all
          select 2147483647, 'tax', coalesce(tax_detail ->> 'name', 'Tax'), null, null, null, null, tax where tax <> 0
        ) line on true
        where posting_id <= :watermark {condition}
    """  # noqa: S608 - made of constants
    return Rows(sql, values | {"watermark": wanted.watermark})


_DETAIL_CELLS: Final = {
    "BilledCost": "sign * rounded * unit",
    "BillingAccountId": sql_text("organization_id::text"),
    "BillingCurrency": sql_text("currency"),
    "BillingPeriodEnd": _time("finishes"),
    "BillingPeriodStart": _time("begins"),
    "ChargeCategory": sql_text(
        "case line_kind when 'usage' then 'Usage' when 'credit' then 'Credit' when 'tax' then 'Tax'"
        " else 'Adjustment' end"
    ),
    "InvoiceDetailCreated": _time("booked_at"),
    "InvoiceDetailDescription": sql_text("description"),
    "InvoiceDetailGrain": _null_or(
        "coalesce(project_id::text, model)",
        sql_text(
            "jsonb_strip_nulls(jsonb_build_object('SubAccountId', project_id, 'SkuId', model || '/' || meter,"
            " 'SkuPriceId', price_version_id))::text"
        ),
    ),
    "InvoiceDetailId": sql_text("concat(id, '-', case line_kind when 'tax' then 'tax' else seq::text end)"),
    "InvoiceDetailLastUpdated": _time("booked_at"),
    "InvoiceId": sql_text(NUMBER),
    "InvoiceIssueDate": _null_or("issued_on", _date("issued_on")),
    "InvoiceIssueStatus": sql_text("case status when 'void' then 'Voided' else 'Issued' end"),
    "InvoiceIssuerName": sql_text(_ISSUER),
    "PaymentDueDate": _null_or("due_on", _date("due_on")),
    "PaymentTerms": sql_text("coalesce('Net ' || (due_on - issued_on), 'None')"),
    "PurchaseOrderNumber": _null_or("purchase_order", sql_text("purchase_order")),
    "ReferenceInvoiceId": sql_text(f"coalesce(original, {NUMBER})"),
}

_DETAILS: Final = Lines(
    columns=tuple(Column(column.name, _DETAIL_CELLS[column.name]) for column in INVOICE_DETAIL_1_4),
    rows=_details,
    key=(("id", "uuid"), ("seq", "integer")),
    total="sign * rounded",
    moment="issued_at",
)


def _periods(wanted: Wanted) -> Rows:
    condition, values = _span(wanted, "month")
    sql = f"""
      select month, starts, finishes, max(changed_at) as changed_at, bool_and(is_billed) as is_closed,
          null::text as currency, '{{}}'::jsonb as seller
        from (
          select owned.organization_id, owned.month, owned.changed_at,
              owned.month::timestamp at time zone organization.timezone as starts,
              (owned.month + interval '1 month')::timestamp at time zone organization.timezone as finishes,
              owed = 0 and organization.billing_mode = 'prepaid' or exists (
                select from ({issued()}) issued
                  where issued.organization_id = owned.organization_id and issued.month = owned.month
                    and issued.status <> 'void' and issued.kind = 'invoice' and issued.posting_id <= :watermark
              ) as is_billed
            from (
              select posting.organization_id, posting.billing_month as month, max(posting.booked_at) as changed_at,
                  coalesce(sum(transfer.amount) filter (where debit.kind = 'unbilled'), 0) as owed
                from posting
                left join transfer on transfer.posting_id = posting.id
                left join account debit on debit.id = transfer.debit_account
                where posting.billing_month is not null and posting.id <= :watermark
                group by 1, 2
            ) owned
            join organization on organization.id = owned.organization_id
        ) period
        where true {condition}
        group by 1, 2, 3
    """  # noqa: S608 - made of constants
    return Rows(sql, values | {"watermark": wanted.watermark})


_PERIOD_CELLS: Final = {
    "BillingPeriodCreated": _time("starts"),
    "BillingPeriodEnd": _time("finishes"),
    "BillingPeriodLastUpdated": _time("changed_at"),
    "BillingPeriodStart": _time("starts"),
    "BillingPeriodStatus": sql_text("case when is_closed then 'Closed' else 'Open' end"),
    "InvoiceIssuerName": sql_text(_ISSUER),
}

_PERIODS: Final = Lines(
    columns=tuple(Column(column.name, _PERIOD_CELLS[column.name]) for column in BILLING_PERIOD_1_4),
    rows=_periods,
    key=(("starts", "timestamptz"), ("finishes", "timestamptz")),
    total="0",
    moment="starts",
)

FOCUS_INVOICE_DETAIL: Final = Kind(
    name="focus_invoice_detail",
    schema="focus.invoice_detail/1.4",
    pieces=_DETAILS.pieces,
    head=_DETAILS.head,
    total="BilledCost",
    moment="issued_at",
    takes_since=False,
)
FOCUS_BILLING_PERIOD: Final = Kind(
    name="focus_billing_period",
    schema="focus.billing_period/1.4",
    pieces=_PERIODS.pieces,
    head=_PERIODS.head,
    total="nothing",
    moment="starts_at",
    takes_since=False,
)
