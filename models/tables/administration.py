"""Who changed what, and answers to changes that are asked for twice."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Identity, LargeBinary, SmallInteger, Table, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB

from models.tables.columns import MOMENT, created_at, metadata

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
    created_at(),
)
