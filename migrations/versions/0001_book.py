"""The book: every table of the first release, and the rules that the database itself keeps."""

from __future__ import annotations

from pathlib import Path

from alembic import op
from sqlalchemy import text
from sqlalchemy.util import await_only

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL beside this file, as it stands."""
    connection = op.get_bind()
    # SQLAlchemy opens its transaction with its first statement; the driver, asked directly, would run outside of it.
    connection.execute(text("select 1"))
    driver = connection.connection.driver_connection
    assert driver is not None
    for name in ("0001_tables.sql", "0001_rules.sql"):
        await_only(driver.execute(Path(__file__).with_name(name).read_text(encoding="utf-8")))


def downgrade() -> None:
    """There is no way back from the record of what people paid."""
    raise NotImplementedError("restore a backup instead")
