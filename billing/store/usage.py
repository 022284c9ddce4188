"""Sums of charges in Postgres. Only the transaction that inserts charges adds to them, so they are never off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.usage import DayKey, HourKey, Sums

_SUMS: Final = tuple(field.name for field in fields(Sums))


def _upsert(table: str, key: Mapping[str, str]) -> TextClause:
    """A statement that adds sums to the rows of their keys. In the order of keys, so that two never deadlock."""
    arrays = {name: f"cast(:{name} as {'text' if kind == 'uuid[]' else kind}[])" for name, kind in key.items()}
    arrays |= {name: f"cast(:{name} as numeric[])" for name in _SUMS}
    names = ", ".join(arrays)
    # An array of arrays would be taken apart to the last element, so those come as text.
    values = ", ".join(f"cast({name} as uuid[])" if kind == "uuid[]" else name for name, kind in key.items())
    added = ", ".join(f"{name} = kept.{name} + excluded.{name}" for name in _SUMS)
    return text(
        f"insert into {table} as kept ({names}) select {values}, {', '.join(_SUMS)}"  # noqa: S608 - made of constants
        f" from unnest({', '.join(arrays.values())}) as row ({names}) order by {', '.join(key)}"
        f" on conflict ({', '.join(key)}) do update set {added}"
    )


_HOURS: Final = _upsert(
    "usage_hour",
    {
        "organization_id": "uuid",
        "hour": "timestamptz",
        "project_id": "uuid",
        "api_key_id": "uuid",
        "model": "text",
        "endpoint": "text",
        "batch": "boolean",
        "price_version_ids": "uuid[]",
    },
)
_DAYS: Final = _upsert(
    "usage_day",
    {
        "organization_id": "uuid",
        "billing_month": "date",
        "day": "date",
        "project_id": "uuid",
        "model": "text",
        "price_version_ids": "uuid[]",
    },
)


async def add_hours(connection: AsyncConnection, sums: Mapping[HourKey, Sums]) -> None:
    """Add to the sums of hours."""
    await connection.execute(_HOURS, _columns(HourKey._fields, sums))


async def add_days(connection: AsyncConnection, sums: Mapping[DayKey, Sums]) -> None:
    """Add to the sums of days."""
    await connection.execute(_DAYS, _columns(DayKey._fields, sums))


def _columns(names: tuple[str, ...], sums: Mapping[Any, Sums]) -> dict[str, list[Any]]:
    keys = {name: [key[place] for key in sums] for place, name in enumerate(names)}
    keys["price_version_ids"] = [f"{{{','.join(map(str, prices))}}}" for prices in keys["price_version_ids"]]
    return keys | {name: [getattr(each, name) for each in sums.values()] for name in _SUMS}
