"""What the program's own role may do: nothing that would rewrite history, and no change of the schema."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

_KEEP: Final = "select, insert, update"
_APPEND: Final = "select, insert"

RIGHTS: Final = {
    "organization": _KEEP,
    "project": _KEEP,
    "rate_limit": _KEEP,
    "service_account": "select, insert, update (name, role, deleted_at)",
    "spend_alert": "select, insert, update (amount, recipients, subject_prefix, removed_at)",
    "spend_limit": "select, insert, update (amount, is_hard, alert_percents, removed_at)",
    "api_key": _KEEP,
    "admin_key": _KEEP,
    "operator_key": _KEEP,
    "organization_user": _KEEP,
    # Who leaves a project has no row in it; the audit log tells that there was one.
    "project_user": f"{_KEEP}, delete",
    "invite": "select, insert, update (accepted_at, deleted_at)",
    "backend": _KEEP,
    "model": _KEEP,
    "deployment": _KEEP,
    "alias": "select, insert, update (targets, previous, moved_at)",
    "maintenance": "select, insert, update (cancelled_at)",
    "organization_routing": _KEEP,
    "price_book": "select, insert, update (batch_book)",
    "allowance": "select, insert, update (ended_at)",
    "price_version": "select, insert, update (effective)",
    "catalog_revision": "select",
    "account": _APPEND,
    # Kept by the trigger on transfer.
    "account_balance": "select",
    "posting": _APPEND,
    "transfer": _APPEND,
    "credit_grant": "select, insert, update (remaining, voided_at, emptied_at)",
    "grant_draw": _APPEND,
    "charge": _APPEND,
    "shard": "select, update (epoch, position, updated_at)",
    "organization_balance": _KEEP,
    "dead_entry": "select, insert, update (resolved_at)",
    "book": "select, update (closed_until)",
    "accounting_period": _APPEND,
    "posting_seal": _APPEND,
    "revenue_share": "select, insert, update (effective)",
    "share": _APPEND,
    "model_cost": "select, insert, update (effective)",
    "machine_use": _KEEP,
    "cost": _APPEND,
    "usage_hour": _KEEP,
    "usage_day": _KEEP,
    "seller": _KEEP,
    "tax_rule": "select, insert, update (effective)",
    "billing_month": _APPEND,
    "invoice_series": _KEEP,
    # Drafts may be thrown away.
    "invoice": f"{_KEEP}, delete",
    "invoice_line": f"{_APPEND}, delete",
    "payment": "select, insert, update (refunded, grant_id)",
    "allocation": _APPEND,
    "webhook_event": "select, insert, update (state, reason, organization_id)",
    "alert": "select, insert, update (ended_at)",
    "alert_endpoint": "select, insert, update (removed_at)",
    "alert_delivery": "select, insert, update (attempts, next_at, delivered_at, last_status, last_error)",
    # Content of customers, not of the book: they delete it, and it expires.
    "file": f"{_KEEP}, delete",
    "file_chunk": f"{_APPEND}, delete",
    "batch": _KEEP,
    "batch_line": f"{_KEEP}, delete",
    "lost_attempt": "select, insert, update (look_at, returned)",
    "reconciliation": _APPEND,
    "audit_log": _APPEND,
    # Claims of requests are dropped when they are old.
    "idempotency": f"{_KEEP}, delete",
    # What is kept for a day or a month is dropped then.
    "call_answer": f"{_KEEP}, delete",
    "stored_response": f"{_APPEND}, delete",
    "alembic_version": "select",
}
"""Rights of the program's role by table. A table that is not named here is closed to it."""

_SESSION: Final = {
    "timezone": "UTC",
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
}
"""Defaults of the role's sessions: kept by the server, because a pooler between would lose them."""


def grant_role(connection: Connection, role: str) -> None:
    """Make `role` exist and have exactly `RIGHTS` in this database; it can be repeated."""
    quoted = connection.dialect.identifier_preparer.quote_identifier(role)
    if connection.scalar(text("select 1 from pg_catalog.pg_roles where rolname = :role"), {"role": role}) is None:
        _run(connection, f"create role {quoted} nologin nosuperuser nobypassrls nocreatedb nocreaterole")
    database = connection.scalar(text("select quote_ident(current_database())"))
    _run(connection, "revoke create on schema public from public")
    _run(connection, f"grant connect on database {database} to {quoted}")
    _run(connection, f"grant usage on schema public to {quoted}")
    for table, rights in RIGHTS.items():
        _run(connection, f"revoke all on {table} from {quoted}")
        _run(connection, f"grant {rights} on {table} to {quoted}")
    _run(connection, f"grant execute on function tollgate_ensure_partitions(timestamptz) to {quoted}")
    _bound_sessions(connection, f"{quoted} in database {database}")


def _bound_sessions(connection: Connection, role_in_database: str) -> None:
    """Set the session defaults where the owner may: an owner without CREATEROLE leaves them to the administrator."""
    try:
        with connection.begin_nested():
            for name, value in _SESSION.items():
                _run(connection, f"alter role {role_in_database} set {name} = '{value}'")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise


def _run(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement)
