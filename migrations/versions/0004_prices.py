"""Prices in steps, price books that inherit, and free allowances of a month."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # Steps of a price: prices that were published before have none, and their rows stay as they are.
    """
    alter table price_version
      add column package_size bigint,
      add column tiers_over text not null default 'call',
      drop constraint price_version_meter_check,
      add constraint price_version_meter_check check (meter in
        ('input', 'cached_input', 'cache_write', 'output', 'reasoning', 'request', 'image', 'audio_second',
         'gpu_second', 'minimum')),
      add constraint price_version_tiers_over_check check (tiers_over in ('call', 'month')),
      add constraint price_version_tiers_check check ((scheme in ('graduated', 'volume')) = (tiers is not null)),
      add constraint price_version_package_size_check
        check ((scheme = 'package') = (package_size is not null) and package_size > 0),
      add constraint price_version_month_of_tiers_check check (tiers_over = 'call' or tiers is not null),
      add constraint price_version_one_minimum_check check (meter <> 'minimum' or scheme = 'unit')
    """,
    # Books.
    """
    create table price_book (
      id text constraint price_book_pk primary key,
      parent text constraint price_book_parent_fk references price_book,
      created_by text not null,
      created_at timestamptz not null default now(),
      constraint price_book_parent_check check (parent <> id)
    )
    """,
    """
    create trigger price_book_append_only before update or delete on price_book
      for each row execute function tollgate_deny()
    """,
    """
    create trigger price_book_no_truncate before truncate on price_book
      for each statement execute function tollgate_deny()
    """,
    """
    create trigger price_book_revision after insert on price_book
      for each statement execute function tollgate_raise_catalog_revision()
    """,
    """
    insert into price_book (id, created_by)
      select 'default', 'migration' union select book, 'migration' from price_version
    """,
    # Free allowances.
    """
    create table allowance (
      id uuid constraint allowance_pk primary key,
      book text not null constraint allowance_book_fk references price_book,
      currency text not null,
      amount numeric(38, 0) not null,
      models text[],
      created_by text not null,
      created_at timestamptz not null default now(),
      ended_at timestamptz,
      constraint allowance_currency_check check (currency in ('USD', 'EUR', 'KRW', 'JPY')),
      constraint allowance_amount_check check (amount > 0),
      constraint allowance_models_check check (models <> '{}')
    )
    """,
    "create index allowance_book_idx on allowance (book)",
    """
    create trigger allowance_keep before delete on allowance
      for each row execute function tollgate_deny()
    """,
    """
    create trigger allowance_no_truncate before truncate on allowance
      for each statement execute function tollgate_deny()
    """,
)


def upgrade() -> None:
    """Add the columns and the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """What was published is kept, as the book is."""
    raise NotImplementedError("restore a backup instead")
