"""The tables, as SQLAlchemy Core. Rules that no column can hold (append-only, partitions, roles) are in `migrations/`.

Amounts are ledger units of the row's currency. All times are UTC.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import DATERANGE, JSONB, TSTZRANGE, ExcludeConstraint

metadata: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_N_name)s_fk",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

AMOUNT: Final = Numeric(38, 0, asdecimal=True)
MOMENT: Final = DateTime(timezone=True)


def _one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} in ({', '.join(repr(value) for value in values)})", name=column)


def _created_at() -> Column[object]:
    return Column("created_at", MOMENT, nullable=False, server_default=func.now())


def _limits() -> list[Column[int]]:
    return [
        Column("requests_per_minute", Integer),
        Column("tokens_per_minute", Integer),
        Column("max_in_flight", Integer),
    ]


# Tenancy -------------------------------------------------------------------------------------------------------------

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
    *_limits(),
    _created_at(),
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
    _one_of("currency", "USD", "EUR", "KRW", "JPY"),
    _one_of("billing_mode", "prepaid", "postpaid", "hybrid"),
    CheckConstraint("credit_limit >= 0", name="credit_limit"),
    CheckConstraint("billing_mode <> 'prepaid' or credit_limit = 0", name="prepaid_without_credit"),
    _one_of("language", "en", "ko"),
    CheckConstraint("payment_terms_days between 0 and 365", name="payment_terms_days"),
    CheckConstraint("low_balance > 0", name="low_balance"),
    Index("organization_low_balance_idx", "id", postgresql_where=text("low_balance is not null")),
    _one_of("tax_treatment", "standard", "exempt", "reverse_charge", "zero_rated"),
)

project = Table(
    "project",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    *_limits(),
    _created_at(),
    Column("archived_at", MOMENT),
    # The organization's own name for it elsewhere: kept and shown, nothing more.
    Column("external_key_id", Text),
    # Which models its keys may call: those of the list, or all but those; without a mode every one.
    Column("models_mode", Text),
    Column("models", ARRAY(Text)),
    UniqueConstraint("organization_id", "id"),
    _one_of("models_mode", "allow_list", "deny_list"),
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
    _created_at(),
    Column("deleted_at", MOMENT),
    _one_of("role", "owner", "member", "none"),
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
    _created_at(),
    Column("removed_at", MOMENT),
    # The operator's limit and the organization's own stand beside each other, so that neither lifts the other.
    Column("set_by", Text, nullable=False, server_default="operator"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("project_id is null or api_key_id is null", name="scope"),
    _one_of("set_by", "operator", "organization"),
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
    _created_at(),
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
        _created_at(),
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
    *_limits(),
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

# People: what they may do is for the console; here they are invited, listed, given roles and removed.

organization_user = Table(
    "organization_user",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    # In lower case.
    Column("email", Text, nullable=False),
    Column("name", Text),
    Column("role", Text, nullable=False),
    Column("developer_persona", Text),
    Column("technical_level", Text),
    _created_at(),
    Column("removed_at", MOMENT),
    _one_of("role", "owner", "reader"),
    Index(
        "organization_user_email_key",
        "organization_id",
        "email",
        unique=True,
        postgresql_where=text("removed_at is null"),
    ),
    UniqueConstraint("organization_id", "id"),
)

project_user = Table(
    "project_user",
    metadata,
    Column("project_id", Uuid, primary_key=True),
    Column("user_id", Uuid, primary_key=True, index=True),
    Column("organization_id", Uuid, nullable=False),
    Column("role", Text, nullable=False),
    _created_at(),
    _one_of("role", "owner", "member"),
    ForeignKeyConstraint(["organization_id", "project_id"], ["project.organization_id", "project.id"]),
    ForeignKeyConstraint(["organization_id", "user_id"], ["organization_user.organization_id", "organization_user.id"]),
)

invite = Table(
    "invite",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    Column("email", Text, nullable=False),
    Column("role", Text, nullable=False),
    # [{"id": project, "role": role in it}, ...]
    Column("projects", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    _created_at(),
    Column("expires_at", MOMENT, nullable=False),
    Column("accepted_at", MOMENT),
    Column("deleted_at", MOMENT),
    _one_of("role", "owner", "reader"),
)

operator_key = Table("operator_key", metadata, Column("id", Uuid, primary_key=True), *_credential())

# Catalog -------------------------------------------------------------------------------------------------------------

backend = Table(
    "backend",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("credential", Text),
    Column("max_in_flight", Integer),
    Column("region", Text),
    Column("path_prefix", Text),
    _created_at(),
    Column("disabled_at", MOMENT),
    _one_of("kind", "vllm", "sglang", "llamacpp", "ollama", "tgi", "openai"),
)

model = Table(
    "model",
    metadata,
    Column("id", Text, primary_key=True),
    Column("context_length", Integer, nullable=False),
    Column("tokenizer", Text),
    Column("billed_count", Text, nullable=False, server_default="backend"),
    Column("capabilities", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    # The model that serves where no deployment of this one can, at whose price, and whether also where all are full.
    Column("fallback_id", Text, ForeignKey("model.id")),
    Column("fallback_priced_as", Text, nullable=False, server_default="requested"),
    Column("fallback_when_full", Boolean, nullable=False, server_default=text("false")),
    _created_at(),
    Column("disabled_at", MOMENT),
    _one_of("billed_count", "backend", "tiktoken", "lower"),
    _one_of("fallback_priced_as", "requested", "fallback"),
    CheckConstraint("context_length > 0", name="context_length"),
    CheckConstraint("fallback_id <> id", name="fallback"),
)

alias = Table(
    "alias",
    metadata,
    # An alias is a model, with prices, that has targets instead of deployments: a list of {"model", "weight"}.
    Column("model_id", Text, ForeignKey("model.id"), primary_key=True),
    Column("targets", JSONB, nullable=False),
    # Those before the last change, to go back to in one step.
    Column("previous", JSONB),
    Column("moved_at", MOMENT, nullable=False),
)

deployment = Table(
    "deployment",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("model_id", Text, ForeignKey("model.id"), nullable=False, index=True),
    Column("backend_id", Uuid, ForeignKey("backend.id"), nullable=False),
    Column("backend_model", Text, nullable=False),
    Column("weight", Integer, nullable=False, server_default="1"),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    Column("pool", Text),
    _created_at(),
    Column("disabled_at", MOMENT),
    CheckConstraint("weight > 0", name="weight"),
)

maintenance = Table(
    "maintenance",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("backend_id", Uuid, ForeignKey("backend.id"), nullable=False),
    # None: all models on the backend.
    Column("model_id", Text, ForeignKey("model.id")),
    Column("starts_at", MOMENT, nullable=False),
    Column("ends_at", MOMENT, nullable=False),
    Column("note", Text),
    _created_at(),
    Column("cancelled_at", MOMENT),
    CheckConstraint("starts_at < ends_at", name="order"),
    Index("maintenance_backend_id_idx", "backend_id"),
)

organization_routing = Table(
    "organization_routing",
    metadata,
    Column("organization_id", Uuid, ForeignKey("organization.id"), primary_key=True),
    # None: anywhere.
    Column("regions", ARRAY(Text)),
    Column("pool", Text),
    Column("uses_shared", Boolean, nullable=False, server_default=text("true")),
)

price_book = Table(
    "price_book",
    metadata,
    Column("id", Text, primary_key=True),
    # Said when the book is made and never changed, so that no book inherits from itself.
    Column("parent", Text, ForeignKey("price_book.id")),
    Column("created_by", Text, nullable=False),
    _created_at(),
    # The book that calls of a batch are priced by, where it has a price; it may be changed.
    Column("batch_book", Text, ForeignKey("price_book.id")),
    CheckConstraint("parent <> id", name="parent"),
    CheckConstraint("batch_book <> id", name="batch_book"),
)

price_version = Table(
    "price_version",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("book", Text, nullable=False),
    Column("model_id", Text, ForeignKey("model.id"), nullable=False),
    Column("meter", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("scheme", Text, nullable=False, server_default="unit"),
    # Milli-units per token, request or package; with tiers the dearest of theirs.
    Column("price", BigInteger, nullable=False),
    # [{"up_to": units or null, "price": milli-units per unit}, ...]
    Column("tiers", JSONB(none_as_null=True)),
    Column("package_size", BigInteger),
    Column("tiers_over", Text, nullable=False, server_default="call"),
    Column("effective", TSTZRANGE, nullable=False),
    Column("created_by", Text, nullable=False),
    _created_at(),
    _one_of(
        "meter",
        "input",
        "cached_input",
        "cache_write",
        "output",
        "reasoning",
        "request",
        "image",
        "audio_second",
        "gpu_second",
        "minimum",
    ),
    _one_of("scheme", "unit", "graduated", "volume", "package"),
    _one_of("tiers_over", "call", "month"),
    CheckConstraint("price >= 0", name="price"),
    CheckConstraint("(scheme in ('graduated', 'volume')) = (tiers is not null)", name="tiers"),
    CheckConstraint("(scheme = 'package') = (package_size is not null) and package_size > 0", name="package_size"),
    CheckConstraint("tiers_over = 'call' or tiers is not null", name="month_of_tiers"),
    CheckConstraint("meter <> 'minimum' or scheme = 'unit'", name="one_minimum"),
    # One-point ranges, because GiST compares ranges without btree_gist, which embedded builds of Postgres lack.
    ExcludeConstraint(
        (text("text_range(book, book, '[]')"), "="),
        (text("text_range(model_id, model_id, '[]')"), "="),
        (text("text_range(meter, meter, '[]')"), "="),
        (text("text_range(currency, currency, '[]')"), "="),
        ("effective", "&&"),
        using="gist",
        name="price_version_no_overlap",
    ),
)

allowance = Table(
    "allowance",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("book", Text, ForeignKey("price_book.id"), nullable=False, index=True),
    Column("currency", Text, nullable=False),
    Column("amount", AMOUNT, nullable=False),
    # Null is every model.
    Column("models", ARRAY(Text)),
    Column("created_by", Text, nullable=False),
    _created_at(),
    Column("ended_at", MOMENT),
    _one_of("currency", "USD", "EUR", "KRW", "JPY"),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("models <> '{}'", name="models"),
)

catalog_revision = Table(
    "catalog_revision",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    # Raised by triggers on the tables above, so that a gateway reloads its catalog only when it changed.
    Column("revision", BigInteger, nullable=False),
)

# The book ------------------------------------------------------------------------------------------------------------

account = Table(
    "account",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    Column("kind", Text, nullable=False),
    Column("currency", Text, nullable=False),
    UniqueConstraint("organization_id", "kind", "currency", postgresql_nulls_not_distinct=True),
)

account_balance = Table(
    "account_balance",
    metadata,
    Column("account_id", BigInteger, ForeignKey("account.id"), primary_key=True),
    Column("debits", AMOUNT, nullable=False, server_default="0"),
    Column("credits", AMOUNT, nullable=False, server_default="0"),
    postgresql_with={"fillfactor": "50"},
)

posting = Table(
    "posting",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), index=True),
    Column("idempotency_key", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("effective_at", MOMENT, nullable=False),
    Column("booked_at", MOMENT, nullable=False, server_default=func.now()),
    Column("reverses", BigInteger, ForeignKey("posting.id"), unique=True),
    Column("source", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # Of charges: the first day of the organization's month that they are billed in.
    Column("billing_month", Date),
    Index(
        "posting_organization_id_billing_month_idx",
        "organization_id",
        "billing_month",
        postgresql_where=text("billing_month is not null"),
    ),
    # Journals are read by date; documents are looked up among the few postings that are no charges.
    Index("posting_effective_at_id_idx", "effective_at", "id"),
    Index(
        "posting_organization_id_kind_idx",
        "organization_id",
        "kind",
        postgresql_where=text("kind <> 'charge_batch'"),
    ),
)

transfer = Table(
    "transfer",
    metadata,
    Column("posting_id", BigInteger, ForeignKey("posting.id"), primary_key=True),
    Column("seq", SmallInteger, primary_key=True),
    Column("debit_account", BigInteger, ForeignKey("account.id"), nullable=False),
    Column("credit_account", BigInteger, ForeignKey("account.id"), nullable=False),
    Column("amount", AMOUNT, nullable=False),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("debit_account <> credit_account", name="two_accounts"),
    Index("transfer_debit_account_idx", "debit_account", "posting_id"),
    Index("transfer_credit_account_idx", "credit_account", "posting_id"),
)

credit_grant = Table(
    "credit_grant",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount", AMOUNT, nullable=False),
    Column("remaining", AMOUNT, nullable=False),
    Column("currency", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="50"),
    Column("scope", JSONB),
    Column("effective_at", MOMENT, nullable=False),
    Column("expires_at", MOMENT),
    Column("voided_at", MOMENT),
    # When it was noticed that nothing is left of it, for whatever reason.
    Column("emptied_at", MOMENT),
    _created_at(),
    # How much of what is left at its expiry goes into a grant that begins then, and the grant that this one came from.
    Column("rollover_max", AMOUNT, nullable=False, server_default="0"),
    Column("rolled_from", Uuid, ForeignKey("credit_grant.id"), unique=True),
    _one_of("kind", "paid", "promo", "commit", "refund"),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("rollover_max >= 0 and (rollover_max = 0 or expires_at is not null)", name="rollover_max"),
    CheckConstraint("remaining >= 0 and remaining <= amount", name="remaining"),
    CheckConstraint("expires_at is null or expires_at > effective_at", name="expires_at"),
    Index(
        "credit_grant_draw_order_idx",
        "organization_id",
        "priority",
        text("expires_at nulls last"),
        "effective_at",
        "id",
        postgresql_where=text("remaining > 0 and voided_at is null"),
    ),
    Index("credit_grant_emptied_idx", "id", postgresql_where=text("remaining = 0 and emptied_at is null")),
)

grant_draw = Table(
    "grant_draw",
    metadata,
    Column("posting_id", BigInteger, ForeignKey("posting.id"), primary_key=True),
    Column("grant_id", Uuid, ForeignKey("credit_grant.id"), primary_key=True),
    Column("amount", AMOUNT, nullable=False),
    CheckConstraint("amount <> 0", name="amount"),
    Index("grant_draw_grant_id_idx", "grant_id"),
)

charge = Table(
    "charge",
    metadata,
    # UUIDv7: the month's partition follows from the id alone, so this key is unique over all partitions.
    Column("call_id", Uuid, primary_key=True),
    Column("organization_id", Uuid, nullable=False),
    Column("project_id", Uuid, nullable=False),
    Column("api_key_id", Uuid, nullable=False),
    Column("currency", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("ending", Text, nullable=False),
    Column("usage_source", Text, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("cache_write_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("reasoning_tokens", Integer, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("hold", BigInteger, nullable=False),
    Column("price_version_ids", ARRAY(Uuid), nullable=False),
    Column("created_at", MOMENT, nullable=False),
    Column("ended_at", MOMENT, nullable=False),
    Column("booked_at", MOMENT, nullable=False, server_default=func.now()),
    Column("posting_id", BigInteger, nullable=False),
    # [[source, amount in units], ...]: which grant, or "unbilled", paid how much of it.
    Column("funding", JSONB, nullable=False),
    Column("end_user", Text),
    Column("reported", JSONB),
    Column("counted", JSONB),
    Column("flags", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("corrects", Uuid),
    # The name that the backend has for the model that served the call; empty in charges from before this was kept.
    Column("version", Text, nullable=False, server_default=""),
    Column("images", Integer, nullable=False, server_default="0"),
    Column("audio_seconds", Integer, nullable=False, server_default="0"),
    # Whether it is a call of a batch file.
    Column("batch", Boolean, nullable=False, server_default=text("false")),
    _one_of("ending", "finished", "client_gone", "backend_failed", "hold_spent", "drained", "recovered"),
    _one_of("usage_source", "backend", "backend_partial", "tiktoken", "estimate", "checkpoint"),
    CheckConstraint(
        "input_tokens >= 0 and output_tokens >= 0 and cached_tokens >= 0 and cache_write_tokens >= 0"
        " and cached_tokens + cache_write_tokens <= input_tokens and reasoning_tokens between 0 and output_tokens",
        name="tokens",
    ),
    CheckConstraint("images >= 0 and audio_seconds >= 0", name="quantities"),
    CheckConstraint("amount >= 0 or corrects is not null", name="amount"),
    CheckConstraint("amount <= hold or corrects is not null", name="within_hold"),
    Index("charge_organization_id_call_id_idx", "organization_id", "call_id"),
    Index("charge_posting_id_idx", "posting_id"),
    postgresql_partition_by="RANGE (call_id)",
)

# Between the hot store and the book ----------------------------------------------------------------------------------

shard = Table(
    "shard",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    # The epoch Redis must show for this shard; raised when its balances are rebuilt.
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    # The last stream entry that is booked. The row is locked while a batch is booked: it is the worker's lease.
    Column("position", Text, nullable=False, server_default="0-0"),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
)

organization_balance = Table(
    "organization_balance",
    metadata,
    Column("organization_id", Uuid, ForeignKey("organization.id"), primary_key=True),
    # Spendable money: remaining grants less what is unbilled or receivable.
    Column("posted", AMOUNT, nullable=False, server_default="0"),
    # Sum of the charges of this epoch that are in `posted`, by the hot store's own running total.
    Column("booked_total", AMOUNT, nullable=False, server_default="0"),
    # Raised with every change, so that the hot store keeps the newest whatever the order of arrival.
    Column("version", BigInteger, nullable=False, server_default="0"),
    # The first month that is not cut off yet: charges of earlier ones that come late are billed in it.
    Column("open_month", Date, nullable=False, server_default="2000-01-01"),
    postgresql_with={"fillfactor": "50"},
)

book = Table(
    "book",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    # Nothing is posted before this moment any more: all periods up to it are closed.
    Column("closed_until", MOMENT, nullable=False),
    CheckConstraint("id = 1", name="id"),
)

accounting_period = Table(
    "accounting_period",
    metadata,
    # A month in UTC, such as 2026-11. It has a row once it is closed.
    Column("id", Text, primary_key=True),
    Column("starts_at", MOMENT, nullable=False),
    Column("ends_at", MOMENT, nullable=False, unique=True),
    Column("closed_at", MOMENT, nullable=False),
    Column("closed_by", Text, nullable=False),
    # [{"currency", "account", "debits", "credits"}, ...]: all that was posted before the end, in ledger units.
    Column("trial_balance", JSONB, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    # The highest posting that was there: none of a lower id was added to the period later.
    Column("last_posting", BigInteger, nullable=False),
    CheckConstraint("starts_at < ends_at and ends_at <= closed_at", name="bounds"),
)

posting_seal = Table(
    "posting_seal",
    metadata,
    # The chain: 1, 2, 3, ... in the order of posting ids.
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("posting_id", BigInteger, ForeignKey("posting.id"), nullable=False, unique=True),
    # How the bytes were made that `digest` is of: docs/ledger.md.
    Column("format", SmallInteger, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    CheckConstraint("seq > 0", name="seq"),
    CheckConstraint("octet_length(previous) = 32 and octet_length(digest) = 32", name="lengths"),
)

dead_entry = Table(
    "dead_entry",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("shard", SmallInteger, nullable=False),
    Column("entry_id", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    Column("resolved_at", MOMENT),
)

# Usage: sums of charges, kept by the booking that adds them ----------------------------------------------------------


def _sums() -> list[Column[object]]:
    """Of the charges of a row's group. `calls` leaves corrections out; `unbilled` is the part no grant paid."""
    return [
        Column("calls", BigInteger, nullable=False, server_default="0"),
        Column("input_tokens", BigInteger, nullable=False, server_default="0"),
        Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
        Column("cache_write_tokens", BigInteger, nullable=False, server_default="0"),
        Column("output_tokens", BigInteger, nullable=False, server_default="0"),
        Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
        Column("amount", AMOUNT, nullable=False, server_default="0"),
        Column("unbilled", AMOUNT, nullable=False, server_default="0"),
        Column("images", BigInteger, nullable=False, server_default="0"),
        Column("audio_seconds", BigInteger, nullable=False, server_default="0"),
    ]


usage_hour = Table(
    "usage_hour",
    metadata,
    # By the hour, in UTC, in which calls ended.
    Column("organization_id", Uuid, primary_key=True),
    Column("hour", MOMENT, primary_key=True),
    Column("project_id", Uuid, primary_key=True),
    Column("api_key_id", Uuid, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("batch", Boolean, primary_key=True),
    Column("price_version_ids", ARRAY(Uuid), primary_key=True),
    *_sums(),
    postgresql_with={"fillfactor": "80"},
)

usage_day = Table(
    "usage_day",
    metadata,
    # By the day, in the organization's time zone, in which calls ended, and the month that they are billed in.
    Column("organization_id", Uuid, primary_key=True),
    Column("billing_month", Date, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("project_id", Uuid, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("price_version_ids", ARRAY(Uuid), primary_key=True),
    *_sums(),
    postgresql_with={"fillfactor": "80"},
)

# Shares and costs: who else gets a part of the revenue, and what usage costs the seller -------------------------------

revenue_share = Table(
    "revenue_share",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("role", Text, nullable=False),
    Column("party", Text, nullable=False),
    # Null is every model, or every organization; of two rules for one role and party the narrower one counts.
    Column("model", Text, ForeignKey("model.id")),
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    # Parts per million of a call's amount.
    Column("ppm", Integer, nullable=False),
    Column("effective", TSTZRANGE, nullable=False),
    Column("created_by", Text, nullable=False),
    _created_at(),
    _one_of("role", "model_owner", "infrastructure_owner", "reseller"),
    CheckConstraint("ppm between 0 and 1000000", name="ppm"),
    CheckConstraint("not isempty(effective)", name="effective"),
    ExcludeConstraint(
        (text("text_range(role, role, '[]')"), "="),
        (text("text_range(party, party, '[]')"), "="),
        (text("text_range(coalesce(model, ''), coalesce(model, ''), '[]')"), "="),
        (text("text_range(coalesce(organization_id::text, ''), coalesce(organization_id::text, ''), '[]')"), "="),
        ("effective", "&&"),
        using="gist",
        name="revenue_share_no_overlap",
    ),
)

share = Table(
    "share",
    metadata,
    # What a posting of charges gave to a party; below zero: what a correction took back.
    Column("posting_id", BigInteger, ForeignKey("posting.id"), primary_key=True),
    Column("role", Text, primary_key=True),
    Column("party", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("amount", AMOUNT, nullable=False),
    CheckConstraint("amount <> 0", name="amount"),
    Index("share_party_idx", "party", "posting_id"),
)

model_cost = Table(
    "model_cost",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("model", Text, ForeignKey("model.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("currency", Text, nullable=False),
    # Milli-units per token, per request, per GPU-hour or per kWh.
    Column("price", BigInteger, nullable=False),
    Column("effective", DATERANGE, nullable=False),
    Column("created_by", Text, nullable=False),
    _created_at(),
    _one_of("kind", "input_token", "cached_token", "output_token", "request", "gpu_hour", "kwh"),
    _one_of("currency", "USD", "EUR", "KRW", "JPY"),
    CheckConstraint("price >= 0", name="price"),
    CheckConstraint("not isempty(effective)", name="effective"),
    # Whatever the currency: a token that costs in two would be counted twice.
    ExcludeConstraint(
        (text("text_range(model, model, '[]')"), "="),
        (text("text_range(kind, kind, '[]')"), "="),
        ("effective", "&&"),
        using="gist",
        name="model_cost_no_overlap",
    ),
)

machine_use = Table(
    "machine_use",
    metadata,
    # What a model ran on, as the operator declares it: by day in UTC, model, and backend.
    Column("day", Date, primary_key=True),
    Column("model", Text, ForeignKey("model.id"), primary_key=True),
    Column("backend", Text, primary_key=True),
    Column("gpu_seconds", BigInteger, nullable=False),
    Column("watt_hours", BigInteger, nullable=False),
    CheckConstraint("gpu_seconds >= 0 and watt_hours >= 0", name="quantities"),
)

cost = Table(
    "cost",
    metadata,
    # What a posting of costs added to a month; below zero: what it took off again.
    Column("posting_id", BigInteger, ForeignKey("posting.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("month", Date, nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    # Null: of machines that ran without a call.
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    Column("currency", Text, nullable=False),
    Column("amount", AMOUNT, nullable=False),
    CheckConstraint("amount <> 0", name="amount"),
    Index("cost_month_idx", "month", "model"),
)

# Invoices and payments: amounts on them are whole minor units, in ledger units ----------------------------------------

seller = Table(
    "seller",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("legal_name", Text, nullable=False),
    Column("country", Text, nullable=False),
    Column("tax_id", Text),
    Column("address", Text),
    Column("email", Text),
    Column("phone", Text),
    # Lines below the total: where to pay.
    Column("payment_details", Text),
    Column("invoice_series", Text, nullable=False, server_default="INV"),
    Column("credit_note_series", Text, nullable=False, server_default="CN"),
    CheckConstraint("id = 1", name="id"),
)

tax_rule = Table(
    "tax_rule",
    metadata,
    Column("id", Uuid, primary_key=True),
    # Of the buyer; null is every country without a rule of its own.
    Column("country", Text),
    Column("treatment", Text, nullable=False),
    # Parts per million: 100000 is 10 %.
    Column("rate_ppm", Integer, nullable=False),
    # Whether prices contain the tax.
    Column("is_inclusive", Boolean, nullable=False, server_default=text("false")),
    Column("name", Text, nullable=False),
    Column("effective", TSTZRANGE, nullable=False),
    Column("created_by", Text, nullable=False),
    _created_at(),
    _one_of("treatment", "standard", "exempt", "reverse_charge", "zero_rated"),
    CheckConstraint("rate_ppm between 0 and 1000000", name="rate"),
    CheckConstraint("treatment = 'standard' or rate_ppm = 0", name="untaxed"),
    ExcludeConstraint(
        (text("text_range(coalesce(country, ''), coalesce(country, ''), '[]')"), "="),
        ("effective", "&&"),
        using="gist",
        name="tax_rule_no_overlap",
    ),
)

billing_month = Table(
    "billing_month",
    metadata,
    # Bounds of an organization's month in its time zone, computed once.
    Column("organization_id", Uuid, ForeignKey("organization.id"), primary_key=True),
    Column("month", Date, primary_key=True),
    Column("timezone", Text, nullable=False),
    Column("starts_at", MOMENT, nullable=False),
    Column("ends_at", MOMENT, nullable=False),
    # Charges that were booked before are in the month; what comes later is in the next.
    Column("cut_off_at", MOMENT, nullable=False),
    CheckConstraint("starts_at < ends_at and ends_at <= cut_off_at", name="bounds"),
)

invoice_series = Table(
    "invoice_series",
    metadata,
    # The lock under which numbers are given, so that none is missing.
    Column("id", Text, primary_key=True),
    Column("last_number", BigInteger, nullable=False, server_default="0"),
)

invoice = Table(
    "invoice",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    # `invoice`, or `credit_note` of the invoice that `corrects` names; the amounts of both are positive.
    Column("kind", Text, nullable=False),
    Column("corrects", Uuid, ForeignKey("invoice.id")),
    Column("state", Text, nullable=False),
    Column("series", Text, nullable=False),
    Column("number", BigInteger),
    Column("currency", Text, nullable=False),
    # Of an invoice for usage: the organization's month, and its bounds.
    Column("month", Date),
    Column("starts_at", MOMENT),
    Column("ends_at", MOMENT),
    Column("issued_on", Date),
    Column("due_on", Date),
    Column("subtotal", AMOUNT, nullable=False, server_default="0"),
    Column("tax", AMOUNT, nullable=False, server_default="0"),
    Column("total", AMOUNT, nullable=False, server_default="0"),
    # What the sum of the charges was rounded by: subtotal (without tax) less that sum.
    Column("rounding", AMOUNT, nullable=False, server_default="0"),
    # Payments and credit notes that were set against it.
    Column("settled", AMOUNT, nullable=False, server_default="0"),
    Column("buyer", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("seller", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # Treatment, rate, name and base of the tax.
    Column("tax_detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    # What a Korean tax invoice has besides (facts: billing, section 7).
    Column("korea", JSONB),
    Column("language", Text, nullable=False, server_default="en"),
    Column("purchase_order", Text),
    Column("reason", Text),
    Column("pdf_sha256", LargeBinary),
    Column("posting_id", BigInteger, ForeignKey("posting.id")),
    _created_at(),
    Column("finalized_at", MOMENT),
    Column("closed_at", MOMENT),
    _one_of("kind", "invoice", "credit_note"),
    _one_of("state", "draft", "open", "paid", "void", "uncollectible"),
    _one_of("language", "en", "ko"),
    CheckConstraint("(state = 'draft') = (number is null)", name="number"),
    CheckConstraint("(kind = 'credit_note') = (corrects is not null)", name="corrects"),
    CheckConstraint("total = subtotal + tax and tax >= 0", name="total"),
    CheckConstraint("settled >= 0 and settled <= greatest(total, 0)", name="settled"),
    UniqueConstraint("series", "number"),
    Index(
        "invoice_one_a_month_key",
        "organization_id",
        "month",
        unique=True,
        postgresql_where=text("kind = 'invoice' and month is not null and state <> 'void'"),
    ),
    Index("invoice_organization_id_idx", "organization_id", "id"),
    Index("invoice_corrects_idx", "corrects", postgresql_where=text("corrects is not null")),
)

invoice_line = Table(
    "invoice_line",
    metadata,
    Column("invoice_id", Uuid, ForeignKey("invoice.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    # `usage`, `credit` (paid by grants; negative), `rebate`, `adjustment` or `item`.
    Column("kind", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("project_id", Uuid),
    Column("project_name", Text),
    Column("model", Text),
    Column("meter", Text),
    Column("price_version_id", Uuid),
    Column("quantity", AMOUNT, nullable=False, server_default="0"),
    # Milli-units per unit of the meter.
    Column("unit_price", BigInteger),
    # Exact, in ledger units; the lines add up to the charges.
    Column("amount", AMOUNT, nullable=False),
    # Whole minor units, in ledger units; the lines add up to the subtotal.
    Column("rounded", AMOUNT, nullable=False),
    _one_of("kind", "usage", "credit", "rebate", "adjustment", "item"),
)

payment = Table(
    "payment",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    # `manual`, or who collected it; a reference is taken once.
    Column("provider", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("amount", AMOUNT, nullable=False),
    Column("currency", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    # What is not set against invoices is the customer's credit: a grant.
    Column("grant_id", Uuid, ForeignKey("credit_grant.id")),
    Column("refunded", AMOUNT, nullable=False, server_default="0"),
    Column("posting_id", BigInteger, ForeignKey("posting.id"), nullable=False),
    _created_at(),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("refunded between 0 and amount", name="refunded"),
    UniqueConstraint("provider", "reference"),
)

allocation = Table(
    "allocation",
    metadata,
    # What was set against an invoice: by a payment or by a credit note.
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("invoice_id", Uuid, ForeignKey("invoice.id"), nullable=False, index=True),
    Column("payment_id", Uuid, ForeignKey("payment.id"), index=True),
    Column("credit_note_id", Uuid, ForeignKey("invoice.id")),
    Column("amount", AMOUNT, nullable=False),
    Column("posting_id", BigInteger, ForeignKey("posting.id")),
    _created_at(),
    CheckConstraint("amount <> 0", name="amount"),
    CheckConstraint("(payment_id is null) <> (credit_note_id is null)", name="source"),
)

# Payment providers, and alerts ----------------------------------------------------------------------------------------

webhook_event = Table(
    "webhook_event",
    metadata,
    Column("id", Uuid, primary_key=True),
    # What a provider tells is taken once: the row and its booking commit together.
    Column("provider", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("received_at", MOMENT, nullable=False),
    Column("kind", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    # Why it was not booked, or by which other event it was.
    Column("reason", Text),
    # The payment's own, the same in every event about it.
    Column("reference", Text, nullable=False),
    # Only where there is such an organization.
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    # In the minor unit of the currency that the provider names.
    Column("amount_minor", BigInteger),
    Column("currency", Text),
    # What else is kept of the event: nothing of cards, names or addresses.
    Column("payload", JSONB, nullable=False),
    _one_of("kind", "succeeded", "refunded", "disputed"),
    _one_of("state", "booked", "repeated", "unbooked"),
    CheckConstraint("octet_length(digest) = 32", name="digest"),
    UniqueConstraint("provider", "event_id"),
    Index("webhook_event_provider_reference_idx", "provider", "reference"),
)

alert = Table(
    "alert",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    # Null where it is the operator's alone.
    Column("organization_id", Uuid, ForeignKey("organization.id")),
    # What it is about: one that has not ended is not given again.
    Column("subject", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    _created_at(),
    Column("ended_at", MOMENT),
    Index(
        "alert_once_key",
        "kind",
        "subject",
        unique=True,
        postgresql_where=text("ended_at is null"),
    ),
    Index("alert_organization_id_idx", "organization_id", "id"),
)

alert_endpoint = Table(
    "alert_endpoint",
    metadata,
    Column("id", Uuid, primary_key=True),
    # Whose alerts it gets; null is everybody's, and the operator's own.
    Column("organization_id", Uuid, ForeignKey("organization.id"), index=True),
    Column("url", Text, nullable=False),
    # The secret that alerts are signed with, sealed with the pepper.
    Column("sealed_secret", Text, nullable=False),
    Column("kinds", ARRAY(Text), nullable=False),
    _created_at(),
    Column("removed_at", MOMENT),
)

alert_delivery = Table(
    "alert_delivery",
    metadata,
    # The outbox: written with the alert, and tried until the receiver has taken it.
    Column("alert_id", Uuid, ForeignKey("alert.id"), primary_key=True),
    Column("endpoint_id", Uuid, ForeignKey("alert_endpoint.id"), primary_key=True),
    Column("attempts", Integer, nullable=False, server_default="0"),
    # When it is tried next; null once it is delivered or given up.
    Column("next_at", MOMENT),
    Column("delivered_at", MOMENT),
    # The receiver's last status, or why there was none.
    Column("last_status", Integer),
    Column("last_error", Text),
    Index("alert_delivery_next_at_idx", "next_at", postgresql_where=text("next_at is not null")),
)

reconciliation = Table(
    "reconciliation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    # By name, as charges name it: what was found outlives the backend.
    Column("backend", Text, nullable=False),
    Column("at", MOMENT, nullable=False),
    Column("since", MOMENT),
    Column("verdict", Text, nullable=False),
    Column("reason", Text),
    Column("calls_in_flight", Integer),
    # Where the next one starts: the backend's counters, and the ledger's sums of calls begun at `counted_from` or
    # later.
    Column("counter_input", BigInteger),
    Column("counter_output", BigInteger),
    Column("input_rounding", BigInteger),
    Column("output_rounding", BigInteger),
    Column("counted_from", MOMENT, nullable=False),
    Column("ledger_input", BigInteger),
    Column("ledger_output", BigInteger),
    Column("ledger_estimated_calls", BigInteger),
    # Tokens from `since` to `at`: by the backend's count, and by the ledger's.
    Column("metered_input", BigInteger),
    Column("metered_output", BigInteger),
    Column("charged_input", BigInteger),
    Column("charged_output", BigInteger),
    Column("estimated_calls", BigInteger),
    _one_of("verdict", "baseline", "equal", "differs", "restarted", "unreachable"),
    Index("reconciliation_backend_id_idx", "backend", "id"),
)

# Files and batches ---------------------------------------------------------------------------------------------------

file = Table(
    "file",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False, index=True),
    Column("project_id", Uuid, ForeignKey("project.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    # Of the content that is there now.
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    # False while its content is on its way: nobody sees such a file, and it is dropped when it stays so.
    Column("is_complete", Boolean, nullable=False, server_default="false"),
    _created_at(),
    Column("expires_at", MOMENT, nullable=False, index=True),
    _one_of("purpose", "batch", "batch_output"),
    Index("file_project_id_id_idx", "project_id", "id"),
)

file_chunk = Table(
    "file_chunk",
    metadata,
    Column("file_id", Uuid, ForeignKey("file.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

batch = Table(
    "batch",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    Column("project_id", Uuid, ForeignKey("project.id"), nullable=False),
    # The caller of every line.
    Column("api_key_id", Uuid, ForeignKey("api_key.id"), nullable=False),
    Column("endpoint", Text, nullable=False),
    # No references: a file may be deleted, and the batch goes on naming it.
    Column("input_file_id", Uuid, nullable=False),
    Column("output_file_id", Uuid),
    Column("error_file_id", Uuid),
    Column("status", Text, nullable=False),
    Column("metadata", JSONB),
    # How long its output files are kept.
    Column("output_seconds", Integer, nullable=False),
    # Of the first line.
    Column("model", Text),
    # Why it failed or was stopped.
    Column("errors", JSONB),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    _created_at(),
    Column("expires_at", MOMENT, nullable=False),
    Column("in_progress_at", MOMENT),
    Column("finalizing_at", MOMENT),
    Column("completed_at", MOMENT),
    Column("failed_at", MOMENT),
    Column("expired_at", MOMENT),
    Column("cancelling_at", MOMENT),
    Column("cancelled_at", MOMENT),
    _one_of(
        "status",
        *("validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"),
    ),
    Index("batch_project_id_id_idx", "project_id", "id"),
    Index(
        "batch_open_idx",
        "id",
        postgresql_where=text("status in ('validating', 'in_progress', 'finalizing', 'cancelling')"),
    ),
)

batch_line = Table(
    "batch_line",
    metadata,
    # Rows are there from the validation of a batch until its output files are written.
    Column("batch_id", Uuid, ForeignKey("batch.id"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("custom_id", Text, nullable=False),
    Column("model", Text),
    Column("body", LargeBinary, nullable=False),
    Column("state", Text, nullable=False, server_default="waiting"),
    # Of the attempt that runs or was the last; stored before the call is sent.
    Column("call_id", Uuid),
    # When it may be taken: by anybody where it waits, by another gateway where it runs. Of the database's clock.
    Column("due_at", MOMENT, nullable=False, server_default=func.now()),
    # Times it was put off, and times it failed.
    Column("delays", Integer, nullable=False, server_default="0"),
    Column("failures", SmallInteger, nullable=False, server_default="0"),
    Column("status", SmallInteger),
    Column("answer", LargeBinary),
    _one_of("state", "waiting", "running", "done"),
    CheckConstraint("(state = 'done') = (answer is not null)", name="answer"),
    CheckConstraint("state = 'waiting' or call_id is not null", name="call_id"),
    Index("batch_line_due_idx", "batch_id", "due_at", postgresql_where=text("state <> 'done'")),
)

lost_attempt = Table(
    "lost_attempt",
    metadata,
    # Of a batch's line whose answer nobody has got: what it was charged, if it was, is given back.
    Column("call_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, ForeignKey("batch.id"), nullable=False),
    Column("line", Integer, nullable=False),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    Column("seen_at", MOMENT, nullable=False, server_default=func.now()),
    # When the book is asked next what it was charged; null once that is settled. Of the database's clock.
    Column("look_at", MOMENT, server_default=func.now()),
    Column("returned", AMOUNT, nullable=False, server_default="0"),
    Index("lost_attempt_look_at_idx", "look_at", postgresql_where=text("look_at is not null")),
)

# Administration ------------------------------------------------------------------------------------------------------

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("organization_id", Uuid, index=True),
    Column("detail", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("project_id", Uuid),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("actor", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("status", SmallInteger),
    Column("response", JSONB),
    _created_at(),
)

# Answers that are kept ----------------------------------------------------------------------------------------------

call_answer = Table(
    "call_answer",
    metadata,
    # A call that was sent with an Idempotency-Key, by the SHA-256 of the key.
    Column("project_id", Uuid, primary_key=True),
    Column("key_digest", LargeBinary, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("call_id", Uuid, nullable=False),
    _created_at(),
    # Null while the call runs; the answer itself is null where it could not be kept.
    Column("ended_at", MOMENT),
    Column("status", SmallInteger),
    Column("content_type", Text),
    Column("body", LargeBinary),
    Index("call_answer_created_at_idx", "created_at"),
)

stored_response = Table(
    "stored_response",
    metadata,
    # The id of the call that made it.
    Column("id", Uuid, primary_key=True),
    Column("organization_id", Uuid, ForeignKey("organization.id"), nullable=False),
    Column("project_id", Uuid, nullable=False),
    _created_at(),
    Column("expires_at", MOMENT, nullable=False, index=True),
    Column("response", JSONB, nullable=False),
    # All items of the conversation before the output.
    Column("input", JSONB, nullable=False),
)
