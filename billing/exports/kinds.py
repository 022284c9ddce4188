"""All kinds of export, by the names that the command line and the API have for them."""

from __future__ import annotations

from typing import Final

from billing.exports.ageing import AGEING
from billing.exports.charges import CHARGES
from billing.exports.focus import FOCUS, FOCUS_1_4
from billing.exports.focus_invoices import FOCUS_BILLING_PERIOD, FOCUS_INVOICE_DETAIL
from billing.exports.frame import Kind
from billing.exports.invoices import INVOICE_LINES, INVOICES
from billing.exports.journal import JOURNAL
from billing.exports.parquet import PARQUET
from billing.exports.payments import PAYMENTS
from billing.exports.plain_text import BEANCOUNT, HLEDGER
from billing.exports.trial_balance import TRIAL_BALANCE

_ALL: Final = (
    *(CHARGES, INVOICES, INVOICE_LINES, PAYMENTS, JOURNAL, TRIAL_BALANCE, AGEING),
    *(FOCUS, FOCUS_1_4, FOCUS_INVOICE_DETAIL, FOCUS_BILLING_PERIOD),
    *(HLEDGER, BEANCOUNT, PARQUET),
)

KINDS: Final[dict[str, Kind]] = {kind.name: kind for kind in _ALL}
