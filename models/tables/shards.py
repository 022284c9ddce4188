"""Between the hot store and the book: how far each shard is booked, what is spendable, and what could not be booked."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    ForeignKey,
    Identity,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
)

from models.tables.columns import AMOUNT, MOMENT, metadata

shard = Table(
    "shard",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    # The epoch Redis must show for this shard; raised when its balances are rebuilt.
    Column("epoch", BigInteger, nullable=False, server_default="0"),
    # The last stream entry that is booked. The row is locked while a batch is booked: it is the worker's lease.
    Column("position", Text, nullable=False, server_default="0-0"),
    Column("updated_at", MOMENT, nullable=False, server_default=func.now()),
)

organization_balance = Table(
    "organization_balance",
    metadata,
    Column("organization_id", Uuid, ForeignKey("organization.id"), primary_key=True),
    # Spendable money: remaining grants less what is unbilled or receivable.
    Column("posted", AMOUNT, nullable=False, server_default="0"),
    # Sum of the charges of this epoch that are in `posted`, by the hot store's own running total.
    Column("booked_total", AMOUNT, nullable=False, server_default="0"),
    # Raised with every change, so that the hot store keeps the newest whatever the order of arrival.
    Column("version", BigInteger, nullable=False, server_default="0"),
    # The first month that is not cut off yet: charges of earlier ones that come late are billed in it.
    Column("open_month", Date, nullable=False, server_default="2000-01-01"),
    postgresql_with={"fillfactor": "50"},
)

dead_entry = Table(
    "dead_entry",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("shard", SmallInteger, nullable=False),
    Column("entry_id", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", MOMENT, nullable=False, server_default=func.now()),
    Column("resolved_at", MOMENT),
)
