"""Answers that are kept: of calls with an idempotency key, and those that a client wants to read again."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, SmallInteger, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from models.tables.columns import MOMENT, created_at, metadata

call_answer = Table(
    "call_answer",
    metadata,
    # A call that was sent with an Idempotency-Key, by the SHA-256 of the key.
    Column("project_id", Uuid, primary_key=True),
    Column("key_digest", LargeBinary, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False),
    Column("call_id", Uuid, nullable=False),
    created_at(),
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
    created_at(),
    Column("expires_at", MOMENT, nullable=False, index=True),
    Column("response", JSONB, nullable=False),
    # All items of the conversation before the output.
    Column("input", JSONB, nullable=False),
)
