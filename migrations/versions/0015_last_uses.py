"""When each key was last used."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0012"
branch_labels = None
depends_on = None

_KEYS = ("api_key", "admin_key", "operator_key")


def upgrade() -> None:
    """Make the columns; what was used before is not known."""
    for table in _KEYS:
        op.execute(f"alter table {table} add last_used_at timestamptz")


def downgrade() -> None:
    """Forget the uses."""
    for table in _KEYS:
        op.execute(f"alter table {table} drop last_used_at")
