"""Invoices are looked up by what corrects them and payments by what they paid; lines are added to drafts only."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "create index invoice_corrects_idx on invoice (corrects) where corrects is not null",
    "create index allocation_payment_id_idx on allocation (payment_id)",
    """
    create function tollgate_line_of_draft() returns trigger
      language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
    begin
      if exists (
        select from added join invoice on invoice.id = added.invoice_id where invoice.state <> 'draft'
      ) then
        raise exception 'an issued invoice gets no more lines: issue a credit note, or void it'
          using errcode = 'restrict_violation', table = tg_table_name;
      end if;
      return null;
    end $$
    """,
    """
    create trigger invoice_line_of_draft after insert on invoice_line referencing new table as added
      for each statement execute function tollgate_line_of_draft()
    """,
    """
    create function tollgate_end_for_good() returns trigger language plpgsql set search_path = pg_catalog as $$
    begin
      if old.state in ('void', 'uncollectible') and new.state <> old.state then
        raise exception 'an invoice that is % stays it', old.state
          using errcode = 'restrict_violation', table = tg_table_name;
      end if;
      return new;
    end $$
    """,
    """
    create trigger invoice_end_for_good before update on invoice
      for each row execute function tollgate_end_for_good()
    """,
)


def upgrade() -> None:
    """Add indexes, and what the database refuses by itself."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """There is no way back from what was invoiced."""
    raise NotImplementedError("restore a backup instead")
