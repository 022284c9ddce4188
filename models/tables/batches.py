"""Files and batches."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from models.tables.columns import AMOUNT, MOMENT, created_at, metadata, one_of

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
    created_at(),
    Column("expires_at", MOMENT, nullable=False, index=True),
    one_of("purpose", "batch", "batch_output"),
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
    created_at(),
    Column("expires_at", MOMENT, nullable=False),
    Column("in_progress_at", MOMENT),
    Column("finalizing_at", MOMENT),
    Column("completed_at", MOMENT),
    Column("failed_at", MOMENT),
    Column("expired_at", MOMENT),
    Column("cancelling_at", MOMENT),
    Column("cancelled_at", MOMENT),
    one_of(
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
    one_of("state", "waiting", "running", "done"),
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
