"""Files, batches with their lines, and the price book of calls in a batch."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0010"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # The book of a batch's calls may be changed; all else of a price book stays as it was made.
    """
    alter table price_book
      add column batch_book text constraint price_book_batch_book_fk references price_book,
      add constraint price_book_batch_book_check check (batch_book <> id)
    """,
    "drop trigger price_book_append_only on price_book",
    """
    create trigger price_book_append_only before delete on price_book
      for each row execute function tollgate_deny()
    """,
    """
    create trigger price_book_keep before update on price_book for each row
      when ((old.id, old.parent, old.created_by, old.created_at)
        is distinct from (new.id, new.parent, new.created_by, new.created_at))
      execute function tollgate_deny()
    """,
    "drop trigger price_book_revision on price_book",
    """
    create trigger price_book_revision after insert or update on price_book
      for each statement execute function tollgate_raise_catalog_revision()
    """,
    # Files.
    """
    create table file (
      id uuid constraint file_pk primary key,
      organization_id uuid not null constraint file_organization_id_fk references organization (id),
      project_id uuid not null constraint file_project_id_fk references project (id),
      purpose text not null,
      filename text not null,
      size_bytes bigint not null default 0,
      is_complete boolean not null default false,
      created_at timestamptz not null default now(),
      expires_at timestamptz not null,
      constraint file_purpose_check check (purpose in ('batch', 'batch_output'))
    )
    """,
    "create index file_organization_id_idx on file (organization_id)",
    "create index file_expires_at_idx on file (expires_at)",
    "create index file_project_id_id_idx on file (project_id, id)",
    """
    create table file_chunk (
      file_id uuid constraint file_chunk_file_id_fk references file (id) on delete cascade,
      seq integer,
      content bytea not null,
      constraint file_chunk_pk primary key (file_id, seq)
    )
    """,
    # Batches.
    """
    create table batch (
      id uuid constraint batch_pk primary key,
      organization_id uuid not null constraint batch_organization_id_fk references organization (id),
      project_id uuid not null constraint batch_project_id_fk references project (id),
      api_key_id uuid not null constraint batch_api_key_id_fk references api_key (id),
      endpoint text not null,
      input_file_id uuid not null,
      output_file_id uuid,
      error_file_id uuid,
      status text not null,
      metadata jsonb,
      output_seconds integer not null,
      model text,
      errors jsonb,
      total integer not null default 0,
      completed integer not null default 0,
      failed integer not null default 0,
      input_tokens bigint not null default 0,
      cached_tokens bigint not null default 0,
      output_tokens bigint not null default 0,
      reasoning_tokens bigint not null default 0,
      created_at timestamptz not null default now(),
      expires_at timestamptz not null,
      in_progress_at timestamptz,
      finalizing_at timestamptz,
      completed_at timestamptz,
      failed_at timestamptz,
      expired_at timestamptz,
      cancelling_at timestamptz,
      cancelled_at timestamptz,
      constraint batch_status_check check (status in
        ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled'))
    )
    """,
    "create index batch_project_id_id_idx on batch (project_id, id)",
    """
    create index batch_open_idx on batch (id)
      where status in ('validating', 'in_progress', 'finalizing', 'cancelling')
    """,
    """
    create table batch_line (
      batch_id uuid constraint batch_line_batch_id_fk references batch (id),
      line integer,
      custom_id text not null,
      model text,
      body bytea not null,
      state text not null default 'waiting',
      call_id uuid,
      due_at timestamptz not null default now(),
      delays integer not null default 0,
      failures smallint not null default 0,
      status smallint,
      answer bytea,
      constraint batch_line_pk primary key (batch_id, line),
      constraint batch_line_state_check check (state in ('waiting', 'running', 'done')),
      constraint batch_line_answer_check check ((state = 'done') = (answer is not null)),
      constraint batch_line_call_id_check check (state = 'waiting' or call_id is not null)
    )
    """,
    "create index batch_line_due_idx on batch_line (batch_id, due_at) where state <> 'done'",
    """
    create table lost_attempt (
      call_id uuid constraint lost_attempt_pk primary key,
      batch_id uuid not null constraint lost_attempt_batch_id_fk references batch (id),
      line integer not null,
      organization_id uuid not null constraint lost_attempt_organization_id_fk references organization (id),
      seen_at timestamptz not null default now(),
      look_at timestamptz default now(),
      returned numeric(38, 0) not null default 0
    )
    """,
    "create index lost_attempt_look_at_idx on lost_attempt (look_at) where look_at is not null",
)


def upgrade() -> None:
    """Add the tables, and a column."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What was charged by is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
