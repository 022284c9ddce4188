"""Answers that are kept: of calls with an Idempotency-Key, and responses that are to be gone on from."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0006"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    create table call_answer (
      project_id uuid,
      key_digest bytea,
      request_digest bytea not null,
      call_id uuid not null,
      created_at timestamptz not null default now(),
      ended_at timestamptz,
      status smallint,
      content_type text,
      body bytea,
      constraint call_answer_pk primary key (project_id, key_digest)
    )
    """,
    "create index call_answer_created_at_idx on call_answer (created_at)",
    """
    create table stored_response (
      id uuid constraint stored_response_pk primary key,
      organization_id uuid not null constraint stored_response_organization_id_fk references organization (id),
      project_id uuid not null,
      created_at timestamptz not null default now(),
      expires_at timestamptz not null,
      response jsonb not null,
      input jsonb not null
    )
    """,
    "create index stored_response_expires_at_idx on stored_response (expires_at)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Nothing of the book is in them."""
    op.execute("drop table call_answer, stored_response")
