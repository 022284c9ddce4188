"""The tables, as SQLAlchemy Core. Rules that no column can hold (append-only, partitions, roles) are in `migrations/`.

Amounts are ledger units of the row's currency. All times are UTC. A file for each kind of thing; columns name those of
other files by text, so that no file needs another but `columns`.
"""

from __future__ import annotations

from models.tables.administration import audit_log, idempotency
from models.tables.answers import call_answer, stored_response
from models.tables.batches import batch, batch_line, file, file_chunk, lost_attempt
from models.tables.catalog import (
    alias,
    allowance,
    backend,
    catalog_revision,
    deployment,
    maintenance,
    model,
    organization_routing,
    price_book,
    price_version,
)
from models.tables.columns import metadata
from models.tables.costs import cost, machine_use, model_cost, revenue_share, share
from models.tables.invoices import (
    allocation,
    billing_month,
    invoice,
    invoice_line,
    invoice_series,
    payment,
    seller,
    tax_rule,
)
from models.tables.ledger import (
    account,
    account_balance,
    accounting_period,
    book,
    charge,
    credit_grant,
    grant_draw,
    posting,
    posting_seal,
    transfer,
)
from models.tables.people import invite, organization_user, project_user
from models.tables.shards import dead_entry, organization_balance, shard
from models.tables.tenancy import (
    admin_key,
    api_key,
    operator_key,
    organization,
    project,
    rate_limit,
    service_account,
    spend_alert,
    spend_limit,
)
from models.tables.usage import reconciliation, usage_day, usage_hour
from models.tables.webhooks import alert, alert_delivery, alert_endpoint, webhook_event

__all__ = [
    "account",
    "account_balance",
    "accounting_period",
    "admin_key",
    "alert",
    "alert_delivery",
    "alert_endpoint",
    "alias",
    "allocation",
    "allowance",
    "api_key",
    "audit_log",
    "backend",
    "batch",
    "batch_line",
    "billing_month",
    "book",
    "call_answer",
    "catalog_revision",
    "charge",
    "cost",
    "credit_grant",
    "dead_entry",
    "deployment",
    "file",
    "file_chunk",
    "grant_draw",
    "idempotency",
    "invite",
    "invoice",
    "invoice_line",
    "invoice_series",
    "lost_attempt",
    "machine_use",
    "maintenance",
    "metadata",
    "model",
    "model_cost",
    "operator_key",
    "organization",
    "organization_balance",
    "organization_routing",
    "organization_user",
    "payment",
    "posting",
    "posting_seal",
    "price_book",
    "price_version",
    "project",
    "project_user",
    "rate_limit",
    "reconciliation",
    "revenue_share",
    "seller",
    "service_account",
    "shard",
    "share",
    "spend_alert",
    "spend_limit",
    "stored_response",
    "tax_rule",
    "transfer",
    "usage_day",
    "usage_hour",
    "webhook_event",
]
