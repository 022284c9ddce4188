"""Where calls go: classes, pools and regions of deployments, fallbacks, aliases, maintenance, organizations' rules."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0013"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "alter table backend add region text, add path_prefix text",
    """
    alter table model
      add capabilities text[] not null default '{}'::text[],
      add fallback_id text constraint model_fallback_id_fk references model (id),
      add fallback_priced_as text not null default 'requested',
      add fallback_when_full boolean not null default false,
      add constraint model_fallback_priced_as_check check (fallback_priced_as in ('requested', 'fallback')),
      add constraint model_fallback_check check (fallback_id <> id)
    """,
    "alter table deployment add priority integer not null default 0, add pool text",
    """
    create table alias (
      model_id text constraint alias_pk primary key constraint alias_model_id_fk references model (id),
      targets jsonb not null,
      previous jsonb,
      moved_at timestamptz not null
    )
    """,
    """
    create table maintenance (
      id uuid constraint maintenance_pk primary key,
      backend_id uuid not null constraint maintenance_backend_id_fk references backend (id),
      model_id text constraint maintenance_model_id_fk references model (id),
      starts_at timestamptz not null,
      ends_at timestamptz not null,
      note text,
      created_at timestamptz not null default now(),
      cancelled_at timestamptz,
      constraint maintenance_order_check check (starts_at < ends_at)
    )
    """,
    "create index maintenance_backend_id_idx on maintenance (backend_id)",
    """
    create table organization_routing (
      organization_id uuid constraint organization_routing_pk primary key
        constraint organization_routing_organization_id_fk references organization (id),
      regions text[],
      pool text,
      uses_shared boolean not null default true
    )
    """,
    *(
        f"create trigger {table}_revision after insert or update or delete or truncate on {table}"
        " for each statement execute function tollgate_raise_catalog_revision()"
        for table in ("alias", "maintenance", "organization_routing")
    ),
)


def upgrade() -> None:
    """Add columns and tables; what changes them changes the catalog."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What was decided about calls is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
