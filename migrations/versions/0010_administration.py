"""What administrators of an organization set: limits, models, service accounts, scopes of keys, people."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0011"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    alter table project
      add external_key_id text,
      add models_mode text,
      add models text[],
      add constraint project_models_mode_check check (models_mode in ('allow_list', 'deny_list')),
      add constraint project_models_check check ((models_mode is null) = (models is null))
    """,
    """
    create table rate_limit (
      project_id uuid constraint rate_limit_project_id_fk references project (id),
      model text,
      requests_per_minute integer,
      tokens_per_minute integer,
      requests_per_day integer,
      updated_at timestamptz not null default now(),
      constraint rate_limit_pk primary key (project_id, model)
    )
    """,
    """
    create table service_account (
      id uuid constraint service_account_pk primary key,
      organization_id uuid not null,
      project_id uuid not null,
      name text not null,
      role text not null,
      created_at timestamptz not null default now(),
      deleted_at timestamptz,
      constraint service_account_role_check check (role in ('owner', 'member', 'none')),
      constraint service_account_organization_id_project_id_fk
        foreign key (organization_id, project_id) references project (organization_id, id)
    )
    """,
    "create index service_account_project_id_idx on service_account (project_id)",
    """
    alter table spend_limit
      add set_by text not null default 'operator',
      add constraint spend_limit_set_by_check check (set_by in ('operator', 'organization'))
    """,
    "drop index spend_limit_one_a_scope_key",
    """
    create unique index spend_limit_one_a_scope_key on spend_limit (organization_id, project_id, api_key_id, set_by)
      nulls not distinct where removed_at is null
    """,
    """
    create table spend_alert (
      id uuid constraint spend_alert_pk primary key,
      organization_id uuid not null constraint spend_alert_organization_id_fk references organization (id),
      project_id uuid constraint spend_alert_project_id_fk references project (id),
      amount numeric(38, 0) not null,
      recipients text[] not null,
      subject_prefix text,
      created_at timestamptz not null default now(),
      removed_at timestamptz,
      constraint spend_alert_amount_check check (amount > 0)
    )
    """,
    "create index spend_alert_organization_id_idx on spend_alert (organization_id)",
    # Who receives alerts of limits is told of these as well.
    """
    update alert_endpoint set kinds = array_append(kinds, 'spend_alert.reached')
      where 'spend_limit.reached' = any(kinds) and removed_at is null
    """,
    """
    alter table api_key
      add endpoints text[],
      add networks text[],
      add service_account_id uuid constraint api_key_service_account_id_fk references service_account (id),
      add counted_as uuid constraint api_key_counted_as_fk references api_key (id)
    """,
    "create index api_key_service_account_id_idx on api_key (service_account_id)",
    "create index api_key_counted_as_idx on api_key (counted_as)",
    """
    create table organization_user (
      id uuid constraint organization_user_pk primary key,
      organization_id uuid not null constraint organization_user_organization_id_fk references organization (id),
      email text not null,
      name text,
      role text not null,
      developer_persona text,
      technical_level text,
      created_at timestamptz not null default now(),
      removed_at timestamptz,
      constraint organization_user_role_check check (role in ('owner', 'reader')),
      constraint organization_user_organization_id_id_key unique (organization_id, id)
    )
    """,
    "create unique index organization_user_email_key on organization_user (organization_id, email)"
    " where removed_at is null",
    """
    create table project_user (
      project_id uuid,
      user_id uuid,
      organization_id uuid not null,
      role text not null,
      created_at timestamptz not null default now(),
      constraint project_user_pk primary key (project_id, user_id),
      constraint project_user_role_check check (role in ('owner', 'member')),
      constraint project_user_organization_id_project_id_fk
        foreign key (organization_id, project_id) references project (organization_id, id),
      constraint project_user_organization_id_user_id_fk
        foreign key (organization_id, user_id) references organization_user (organization_id, id)
    )
    """,
    "create index project_user_user_id_idx on project_user (user_id)",
    """
    create table invite (
      id uuid constraint invite_pk primary key,
      organization_id uuid not null constraint invite_organization_id_fk references organization (id),
      email text not null,
      role text not null,
      projects jsonb not null default '[]'::jsonb,
      created_at timestamptz not null default now(),
      expires_at timestamptz not null,
      accepted_at timestamptz,
      deleted_at timestamptz,
      constraint invite_role_check check (role in ('owner', 'reader'))
    )
    """,
    "create index invite_organization_id_idx on invite (organization_id)",
    "alter table audit_log add project_id uuid",
)


def upgrade() -> None:
    """Add the tables and columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What was agreed on is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
