"""What payment providers tell, and alerts with those who receive them."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    alter table organization
      add low_balance numeric(38, 0),
      add constraint organization_low_balance_check check (low_balance > 0)
    """,
    "create index organization_low_balance_idx on organization (id) where low_balance is not null",
    "alter table credit_grant add emptied_at timestamptz",
    # What was used up before is no news.
    "update credit_grant set emptied_at = now() where remaining = 0",
    "create index credit_grant_emptied_idx on credit_grant (id) where remaining = 0 and emptied_at is null",
    """
    create table webhook_event (
      id uuid constraint webhook_event_pk primary key,
      provider text not null,
      event_id text not null,
      received_at timestamptz not null,
      kind text not null,
      digest bytea not null,
      state text not null,
      reason text,
      reference text not null,
      organization_id uuid constraint webhook_event_organization_id_fk references organization (id),
      amount_minor bigint,
      currency text,
      payload jsonb not null,
      constraint webhook_event_kind_check check (kind in ('succeeded', 'refunded', 'disputed')),
      constraint webhook_event_state_check check (state in ('booked', 'repeated', 'unbooked')),
      constraint webhook_event_digest_check check (octet_length(digest) = 32),
      constraint webhook_event_provider_event_id_key unique (provider, event_id)
    )
    """,
    "create index webhook_event_provider_reference_idx on webhook_event (provider, reference)",
    """
    create table alert (
      id uuid constraint alert_pk primary key,
      kind text not null,
      organization_id uuid constraint alert_organization_id_fk references organization (id),
      subject text not null,
      detail jsonb not null,
      created_at timestamptz not null default now(),
      ended_at timestamptz
    )
    """,
    "create unique index alert_once_key on alert (kind, subject) where ended_at is null",
    "create index alert_organization_id_idx on alert (organization_id, id)",
    """
    create table alert_endpoint (
      id uuid constraint alert_endpoint_pk primary key,
      organization_id uuid constraint alert_endpoint_organization_id_fk references organization (id),
      url text not null,
      sealed_secret text not null,
      kinds text[] not null,
      created_at timestamptz not null default now(),
      removed_at timestamptz
    )
    """,
    "create index alert_endpoint_organization_id_idx on alert_endpoint (organization_id)",
    """
    create table alert_delivery (
      alert_id uuid constraint alert_delivery_alert_id_fk references alert (id),
      endpoint_id uuid constraint alert_delivery_endpoint_id_fk references alert_endpoint (id),
      attempts integer not null default 0,
      next_at timestamptz,
      delivered_at timestamptz,
      last_status integer,
      last_error text,
      constraint alert_delivery_pk primary key (alert_id, endpoint_id)
    )
    """,
    "create index alert_delivery_next_at_idx on alert_delivery (next_at) where next_at is not null",
)


def upgrade() -> None:
    """Add the tables, and two columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What was paid and told is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
