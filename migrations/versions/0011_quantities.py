"""Charges tell of images, audio, batch files and versions; hours tell endpoints, batches and prices apart."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0014"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # First, and held to the end: nothing is booked between what is summed again and what is added to it.
    """
    alter table charge add column version text not null default '', add column images integer not null default 0,
      add column audio_seconds integer not null default 0, add column batch boolean not null default false,
      add constraint charge_quantities_check check (images >= 0 and audio_seconds >= 0)
    """,
    """
    alter table usage_day add column images bigint not null default 0,
      add column audio_seconds bigint not null default 0
    """,
    "truncate usage_hour",
    """
    alter table usage_hour drop constraint usage_hour_pk, add column endpoint text not null,
      add column batch boolean not null, add column price_version_ids uuid[] not null,
      add column images bigint not null default 0, add column audio_seconds bigint not null default 0,
      add constraint usage_hour_pk
        primary key (organization_id, hour, project_id, api_key_id, model, endpoint, batch, price_version_ids)
    """,
    """
    insert into usage_hour (organization_id, hour, project_id, api_key_id, model, endpoint, batch,
        price_version_ids, calls, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        amount, unbilled)
      select organization_id, date_trunc('hour', ended_at at time zone 'UTC') at time zone 'UTC', project_id,
          api_key_id, model, endpoint, batch, price_version_ids, count(*) filter (where corrects is null),
          sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens),
          sum(reasoning_tokens), sum(amount), sum(tollgate_unbilled(funding))
        from charge group by 1, 2, 3, 4, 5, 6, 7, 8
    """,
)


def upgrade() -> None:
    """Add the columns, and sum the hours again from the charges."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What charges tell is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
