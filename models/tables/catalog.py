"""The catalog: models, the backends that serve them, and their prices."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSTZRANGE, ExcludeConstraint

from models.tables.columns import AMOUNT, MOMENT, created_at, metadata, one_of

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
    created_at(),
    Column("disabled_at", MOMENT),
    one_of("kind", "vllm", "sglang", "llamacpp", "ollama", "tgi", "openai"),
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
    created_at(),
    Column("disabled_at", MOMENT),
    one_of("billed_count", "backend", "tiktoken", "lower"),
    one_of("fallback_priced_as", "requested", "fallback"),
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
    created_at(),
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
    created_at(),
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
    created_at(),
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
    created_at(),
    one_of(
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
    one_of("scheme", "unit", "graduated", "volume", "package"),
    one_of("tiers_over", "call", "month"),
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
    created_at(),
    Column("ended_at", MOMENT),
    one_of("currency", "USD", "EUR", "KRW", "JPY"),
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
