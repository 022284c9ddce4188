"""What organizations, projects and keys may spend in a month."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    create table spend_limit (
      id uuid constraint spend_limit_pk primary key,
      organization_id uuid not null constraint spend_limit_organization_id_fk references organization (id),
      project_id uuid constraint spend_limit_project_id_fk references project (id),
      api_key_id uuid constraint spend_limit_api_key_id_fk references api_key (id),
      amount numeric(38, 0) not null,
      is_hard boolean not null default true,
      alert_percents smallint[] not null default '{}'::smallint[],
      created_at timestamptz not null default now(),
      removed_at timestamptz,
      constraint spend_limit_amount_check check (amount >= 0),
      constraint spend_limit_scope_check check (project_id is null or api_key_id is null)
    )
    """,
    """
    create unique index spend_limit_one_a_scope_key on spend_limit (organization_id, project_id, api_key_id)
      nulls not distinct where removed_at is null
    """,
)


def upgrade() -> None:
    """Add the table."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What was agreed on is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
