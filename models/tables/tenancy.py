"""Tenancy: organizations, their projects and keys, and what these are limited to."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)

from models.tables.columns import AMOUNT, MOMENT, created_at, limits, metadata, one_of

organization = Table(
    "organization",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("legal_name", Text),
    Column("country", Text),
    Column("tax_id", Text),
    Column("currency", Text, nullable=False),
    Column("timezone", Text, nullable=False, server_default="UTC"),
    Column("billing_mode", Text, nullable=False),
    Column("credit_limit", AMOUNT, nullable=False, server_default="0"),
    Column("price_book", Text, nullable=False, server_default="default"),
    Column("shard", SmallInteger, ForeignKey("shard.id"), nullable=False),
    *limits(),
    created_at(),
    Column("closed_at", MOMENT),
    # On invoices from now on; those that were issued keep what they showed.
    Column("address", Text),
    Column("email", Text),
    Column("language", Text, nullable=False, server_default="en"),
    Column("payment_terms_days", Integer, nullable=False, server_default="30"),
    Column("purchase_order", Text),
    # How its supplies are taxed where no rule for its country is to decide.
    Column("tax_treatment", Text),
    # Why no invoice of it is issued until a person has looked.
    Column("parked_reason", Text),
    # Below this balance there is an alert; null is none.
    Column("low_balance", AMOUNT),
    one_of("currency", "USD", "EUR", "KRW", "JPY"),
    one_of("billing_mode", "prepaid", "postpaid", "hybrid"),
    CheckConstraint("credit_limit >= 0", name="credit_limit"),
    CheckConstraint("billing_mode <> 'prepaid' or credit_limit = 0", name="prepaid_without_credit"),
    one_of("language", "en", "ko"),
    CheckConstraint("payment_terms_days between 0 and 365", name="payment_terms_days"),
    CheckConstraint("low_balance > 0", name="low_balance"),
    Index("organization_low_balance_idx", "id", postgresql_where=text("low_balance is not null")),
    one_of("tax_treatment", "standard", "exempt", "reverse_charge", "zero_rated"),
)

project = Table(
    "project",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    *limits(),
    created_at(),
    Column("archived_at", MOMENT),
    # The organization's own name for it elsewhere: kept and shown, nothing more.
    Column("external_key_id", Text),
    # Which models its keys may call: those of the list, or all but those; without a mode every one.
    Column("models_mode", Text),
    Column("models", ARRAY(Text)),
    UniqueConstraint("organization_id", "id"),
    one_of("models_mode", "allow_list", "deny_list"),
    CheckConstraint("(models_mode is null) = (models is null)", name="models"),
)

rate_limit = Table(
    "rate_limit",
    metadata,
    # What the organization's administrators set for one model in one of its projects; null is no limit.
    Column("project_id", Uuid, ForeignKey("project.id"), primary_key=True),
    # As it is called.
    Column("model", Text, primary_key=True),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("requests_per_day", Integer),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
)

service_account = Table(
    "service_account",
    metadata,
    # A program that owns API keys of a project.
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, nullable=False),
    Column("project_id", Uuid, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    created_at(),
    Column("deleted_at", MOMENT),
    one_of("role", "owner", "member", "none"),
    ForeignKeyConstraint(["organization_id", "project_id"], ["project.organization_id", "project.id"]),
)

spend_limit = Table(
    "spend_limit",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    # One of its projects or keys; without either it is the organization's own.
    Column("project_id", Uuid, ForeignKey("project.id")),
    Column("api_key_id", Uuid, ForeignKey("api_key.id")),
    # The most that may be spent in a month of the organization.
    Column("amount", AMOUNT, nullable=False),
    # Whether calls beyond it are refused; otherwise it only alerts.
    Column("is_hard", Boolean, nullable=False, server_default=text("true")),
    # Parts of it, in percent, at which an alert is given.
    Column("alert_percents", ARRAY(SmallInteger), nullable=False, server_default=text("'{}'::smallint[]")),
    created_at(),
    Column("removed_at", MOMENT),
    # The operator's limit and the organization's own stand beside each other, so that neither lifts the other.
    Column("set_by", Text, nullable=False, server_default="operator"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("project_id is null or api_key_id is null", name="scope"),
    one_of("set_by", "operator", "organization"),
    Index(
        "spend_limit_one_a_scope_key",
        "organization_id",
        "project_id",
        "api_key_id",
        "set_by",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=text("removed_at is null"),
    ),
)

spend_alert = Table(
    "spend_alert",
    metadata,
    # An amount at which an alert is given when a month has come to it; of a project, or of the organization.
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    Column("project_id", Uuid, ForeignKey("project.id")),
    Column("amount", AMOUNT, nullable=False),
    # Told to whoever receives the alert, who sends the mail.
    Column("recipients", ARRAY(Text), nullable=False),
    Column("subject_prefix", Text),
    created_at(),
    Column("removed_at", MOMENT),
    CheckConstraint("amount > 0", name="amount"),
)


def _credential() -> list[Column[object]]:
    """What is kept of a secret: `HMAC-SHA256(pepper, key)` and enough to recognise it. Never the secret."""
    return [
        Column("name", Text, nullable=False),
        Column("digest", LargeBinary, nullable=False, unique=True),
        Column("pepper_version", SmallInteger, nullable=False, server_default="1"),
        Column("redacted_value", Text, nullable=False),
        created_at(),
        Column("expires_at", MOMENT),
        Column("revoked_at", MOMENT),
        # Written by gateways about once a minute, so it may be that much behind.
        Column("last_used_at", MOMENT),
    ]


api_key = Table(
    "api_key",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, nullable=False, index=True),
    Column("project_id", Uuid, nullable=False),
    *_credential(),
    Column("models", ARRAY(Text)),
    *limits(),
    # Metered paths, and networks as text, from and for which it may be used; null is every one.
    Column("endpoints", ARRAY(Text)),
    Column("networks", ARRAY(Text)),
    # Who it belongs to; null is nobody but the project.
    Column("service_account_id", Uuid, ForeignKey("service_account.id"), index=True),
    # The key that it took the place of: what that key was limited to holds for both together.
    Column("counted_as", Uuid, ForeignKey("api_key.id"), index=True),
    # The pair, so that a key can never name a project of another organization.
    ForeignKeyConstraint(["organization_id", "project_id"], ["project.organization_id", "project.id"]),
)

admin_key = Table(
    "admin_key",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    *_credential(),
)

operator_key = Table("operator_key", metadata, Column("id", Uuid, primary_key=True), *_credential())
