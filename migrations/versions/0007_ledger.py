"""Periods with their trial balances, sealed postings, shares of the revenue, own costs, and credit that rolls over."""

from __future__ import annotations

from pathlib import Path

from alembic import op
from sqlalchemy import text
from sqlalchemy.util import await_only

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL beside this file, as it stands."""
    connection = op.get_bind()
    connection.execute(text("select 1"))
    driver = connection.connection.driver_connection
    assert driver is not None
    await_only(driver.execute(Path(__file__).with_name("0007_ledger.sql").read_text(encoding="utf-8")))


def downgrade() -> None:
    """There is no way back from what was sealed."""
    raise NotImplementedError("restore a backup instead")
