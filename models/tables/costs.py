"""Shares and costs: who else gets a part of the revenue, and what usage costs the seller."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Date, ForeignKey, Index, Integer, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import DATERANGE, TSTZRANGE, ExcludeConstraint

from models.tables.columns import AMOUNT, created_at, metadata, one_of

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
    created_at(),
    one_of("role", "model_owner", "infrastructure_owner", "reseller"),
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
    created_at(),
    one_of("kind", "input_token", "cached_token", "output_token", "request", "gpu_hour", "kwh"),
    one_of("currency", "USD", "EUR", "KRW", "JPY"),
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
