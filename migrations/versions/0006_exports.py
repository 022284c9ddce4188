"""Indexes for exports: journals are read by date, and documents are looked up among the postings about them."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the indexes."""
    op.execute("create index posting_effective_at_id_idx on posting (effective_at, id)")
    op.execute(
        "create index posting_organization_id_kind_idx on posting (organization_id, kind) where kind <> 'charge_batch'"
    )


def downgrade() -> None:
    """Nothing of the book is in an index."""
    op.execute("drop index posting_organization_id_kind_idx")
    op.execute("drop index posting_effective_at_id_idx")
