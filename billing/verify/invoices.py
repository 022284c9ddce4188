"""Questions about invoices: each comes from its charges by way of the ledger, and what is owed of them is in it."""

from __future__ import annotations

from typing import Final

from billing.tax import minor_unit
from billing.verify.questions import Question
from billing.verify.report import Claim
from models.money import CURRENCIES

_MINOR: Final = "(values {}) minor (currency, unit)".format(
    ", ".join(f"('{code}', {minor_unit(code)}::numeric)" for code in CURRENCIES)
)


def _half_even(numerator: str, denominator: str) -> str:
    """SQL for a division rounded half-even: `billing.rounding.divide_half_even`, made again in another language."""
    above, below = f"({numerator})", f"({denominator})"
    # Not with /, which ends after some digits.
    rest = f"mod(mod({above}, {below}) + {below}, {below})"
    floor = f"div({above} - {rest}, {below})"
    up = f"2 * {rest} > {below} or (2 * {rest} = {below} and {floor} % 2 <> 0)"
    return f"({floor} + case when {up} then 1 else 0 end)"


def _whole(name: str, sentence: str, unit: str, query: str) -> Question:
    return Question(Claim(name, "P7", sentence, unit), query, sliced=False)


# By way of the postings and their transfers: invoices are made of `usage_day`, so that two ways lead to each total.
_USED: Final = """
    select posting.organization_id, posting.billing_month as month,
        sum(case when account.id = debit_account then amount else -amount end) as exact
      from posting
      join transfer on transfer.posting_id = posting.id
      join account on account.kind = 'unbilled' and account.id in (debit_account, credit_account)
      where posting.kind = 'charge_batch' group by 1, 2
"""
_RATE: Final = "case when rounded > 0 then coalesce((tax_detail ->> 'rate_ppm')::numeric, 0) else 0 end"
# A rebate lessens what is owed; what is below zero by it, or by corrections, is credit.
_OWED: Final = "greatest(coalesce(used.exact, 0) - coalesce(rebates.amount, 0), 0)"
_ROUNDED: Final = _half_even("exact", "unit") + " * unit"
_TAX_ON: Final = _half_even("rounded * rate", "1000000 * unit") + " * unit"
_TAX_IN: Final = _half_even("rounded * rate", "(1000000 + rate) * unit") + " * unit"

QUESTIONS: Final = (
    _whole(
        "invoices",
        "Every invoice is what its month's charges left unbilled, less rebates, rounded once, and the tax on it.",
        "invoices",
        f"""
        with used as ({_USED}), rebates as (
          select invoice_id, -sum(amount) as amount from invoice_line where kind = 'rebate' group by 1
        ), owed as (
          select invoice.*, minor.unit, {_OWED} as exact
            from invoice
            join {_MINOR} on minor.currency = invoice.currency
            left join used on used.organization_id = invoice.organization_id and used.month = invoice.month
            left join rebates on rebates.invoice_id = invoice.id
            where kind = 'invoice' and invoice.month is not null
        ), sums as (
          select owed.*, {_ROUNDED} as rounded from owed
        ), rated as (
          select sums.*, {_RATE} as rate, coalesce((tax_detail ->> 'is_inclusive')::boolean, false) as contained
            from sums
        ), due as (
          select rated.*, case when contained then {_TAX_IN} else {_TAX_ON} end as expected_tax from rated
        ), expected as (
          select due.*, rounded - case when contained then expected_tax else 0 end as expected_subtotal from due
        )
        select format('invoice %s', id) as subject,
            format('%s and %s of tax, rounded by %s', expected_subtotal, expected_tax, rounded - exact) as expected,
            format('%s and %s of tax, rounded by %s', subtotal, tax, rounding) as found,
            (subtotal, tax, total, rounding)
              <> (expected_subtotal, expected_tax, expected_subtotal + expected_tax, rounded - exact) as wrong
          from expected
        """,  # noqa: S608 - made of constants
    ),
    _whole(
        "invoice_lines",
        "The lines of every document add up: exactly to its charges, rounded to its subtotal.",
        "invoices and credit notes",
        """
        with line as (
          select invoice_id, sum(amount) as amount, sum(rounded) as rounded from invoice_line group by 1
        ), expected as (
          select id, subtotal,
              subtotal - rounding + case when (tax_detail ->> 'is_inclusive')::boolean and kind = 'invoice'
                then tax else 0 end as exact
            from invoice
        )
        select format('invoice %s', id) as subject, format('%s, rounded %s', exact, subtotal) as expected,
            format('%s, rounded %s', coalesce(line.amount, 0), coalesce(line.rounded, 0)) as found,
            (exact, subtotal) <> (coalesce(line.amount, 0), coalesce(line.rounded, 0)) as wrong
          from expected left join line on line.invoice_id = id
        """,
    ),
    _whole(
        "credit_notes",
        "No invoice is credited by more than its total, and its tax by no more than its tax.",
        "credited invoices",
        """
        select format('invoice %s', invoice.id) as subject,
            format('at most %s with %s of tax', invoice.total, invoice.tax) as expected,
            format('%s with %s of tax', sum(note.total), sum(note.tax)) as found,
            sum(note.total) > invoice.total or sum(note.tax) > invoice.tax as wrong
          from invoice join invoice note on note.corrects = invoice.id
          group by invoice.id, invoice.total, invoice.tax
        """,
    ),
    _whole(
        "allocations",
        "What is settled of every invoice is what payments and credit notes were set against it; one is paid when it is"
        " all.",
        "invoices",
        """
        with allocated as (select invoice_id, sum(amount) as amount from allocation group by 1)
        select format('invoice %s', id) as subject, format('%s settled', coalesce(allocated.amount, 0)) as expected,
            format('%s settled, %s', settled, state) as found,
            settled <> coalesce(allocated.amount, 0)
              or (state = 'paid' and settled <> total) or (state = 'open' and settled = total)
              or (state in ('draft', 'void') and settled <> 0) as wrong
          from invoice left join allocated on allocated.invoice_id = id
          where kind = 'invoice'
        """,
    ),
    _whole(
        "payments",
        "No payment pays or gives back more than came in.",
        "payments",
        """
        with allocated as (
          select payment_id, sum(amount) as amount from allocation where payment_id is not null group by 1
        )
        select format('payment %s', id) as subject, format('at most %s', payment.amount) as expected,
            format('%s set against invoices, %s refunded', coalesce(allocated.amount, 0), refunded) as found,
            coalesce(allocated.amount, 0) not between 0 and payment.amount or refunded > payment.amount as wrong
          from payment left join allocated on allocated.payment_id = id
        """,
    ),
    _whole(
        "receivables",
        "What every organization owes by its account is what is open of its invoices.",
        "organizations",
        """
        with owed as (
          select organization_id, debits - credits as amount
            from account join account_balance on account_id = account.id where kind = 'receivable'
        ), unpaid as (
          select organization_id, sum(total - settled) as amount
            from invoice where kind = 'invoice' and state = 'open' group by 1
        )
        select format('organization %s', organization_id) as subject, coalesce(unpaid.amount, 0) as expected,
            coalesce(owed.amount, 0) as found, coalesce(unpaid.amount, 0) <> coalesce(owed.amount, 0) as wrong
          from owed full join unpaid using (organization_id)
        """,
    ),
    _whole(
        "billed_once",
        "What every organization has unbilled by its account are the charges of the months without an issued invoice.",
        "organizations",
        f"""
        with used as ({_USED}), waiting as (
          select organization_id, sum(exact) as amount from used
            where not exists (
              select from invoice
                where invoice.organization_id = used.organization_id and invoice.month = used.month
                  and kind = 'invoice' and state not in ('draft', 'void')
            )
            group by 1
        ), kept as (
          select organization_id, debits - credits as amount
            from account join account_balance on account_id = account.id where kind = 'unbilled'
        )
        select format('organization %s', organization_id) as subject, coalesce(waiting.amount, 0) as expected,
            coalesce(kept.amount, 0) as found, coalesce(waiting.amount, 0) <> coalesce(kept.amount, 0) as wrong
          from kept full join waiting using (organization_id)
        """,  # noqa: S608 - made of constants
    ),
    _whole(
        "invoice_months",
        "No month is on two invoices.",
        "months",
        """
        select format('%s of organization %s', to_char(month, 'YYYY-MM'), organization_id) as subject,
            '1 invoice' as expected, format('%s invoices', count(*)) as found, count(*) > 1 as wrong
          from invoice where kind = 'invoice' and month is not null and state <> 'void'
          group by organization_id, month
        """,
    ),
    _whole(
        "invoice_numbers",
        "The numbers of every series are 1 to its last one, each given once.",
        "series",
        """
        with given as (
          select series, count(distinct number) as numbers, count(*) as documents, max(number) as last
            from invoice where number is not null group by 1
        )
        select format('series %s', coalesce(given.series, invoice_series.id)) as subject,
            format('%s numbers', coalesce(last_number, 0)) as expected,
            format('%s documents with %s numbers up to %s', coalesce(documents, 0), coalesce(numbers, 0),
              coalesce(last, 0)) as found,
            (coalesce(documents, 0), coalesce(numbers, 0), coalesce(last, 0))
              <> (coalesce(last_number, 0), coalesce(last_number, 0), coalesce(last_number, 0)) as wrong
          from given full join invoice_series on invoice_series.id = given.series
        """,
    ),
)
