"""What the tables are made of: their metadata, the types of amounts and moments, and columns that several have."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, DateTime, Integer, MetaData, Numeric, func

metadata: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_N_name)s_fk",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

AMOUNT: Final = Numeric(38, 0, asdecimal=True)
MOMENT: Final = DateTime(timezone=True)


def one_of(column: str, *values: str) -> CheckConstraint:
    """The column holds one of these texts."""
    return CheckConstraint(f"{column} in ({', '.join(repr(value) for value in values)})", name=column)


def created_at() -> Column[object]:
    """When the row was written."""
    return Column("created_at", MOMENT, nullable=False, server_default=func.now())


def limits() -> list[Column[int]]:
    """What may be called at a time; null is no limit."""
    return [
        Column("requests_per_minute", Integer),
        Column("tokens_per_minute", Integer),
        Column("max_in_flight", Integer),
    ]
