"""The book: accounts, postings and their transfers, credit, charges, and the periods that are closed and sealed."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Identity,
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
from sqlalchemy.dialects.postgresql import JSONB

from models.tables.columns import AMOUNT, MOMENT, created_at, metadata, one_of

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
    created_at(),
    # How much of what is left at its expiry goes into a grant that begins then, and the grant that this one came from.
    Column("rollover_max", AMOUNT, nullable=False, server_default="0"),
    Column("rolled_from", Uuid, ForeignKey("credit_grant.id"), unique=True),
    one_of("kind", "paid", "promo", "commit", "refund"),
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
    one_of("ending", "finished", "client_gone", "backend_failed", "hold_spent", "drained", "recovered"),
    one_of("usage_source", "backend", "backend_partial", "tiktoken", "estimate", "checkpoint"),
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
