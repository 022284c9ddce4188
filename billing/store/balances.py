"""Balances of organizations as Postgres knows them: what is projected to the hot store.

The row of an organization is also the lock of its money: whoever grants, voids, expires or books takes it first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.money import Units
from models.tables import book, organization, organization_balance, shard


@dataclass(frozen=True, slots=True)
class Balance:
    """A balance with all that its projection needs.

    `posted` is spendable money; `booked_total` is how much of the hot store's running total is inside it; both in
    ledger units of `currency`. `version` grows with every change.
    """

    organization_id: UUID
    currency: str
    shard: int
    epoch: int
    posted: Units
    booked_total: int
    credit_limit: Units
    version: int


_BALANCES: Select[Any] = (
    select(
        organization.c.id,
        organization.c.currency,
        organization.c.shard,
        shard.c.epoch,
        organization_balance.c.posted,
        organization_balance.c.booked_total,
        organization.c.credit_limit,
        organization_balance.c.version,
    )
    .join(organization_balance, organization_balance.c.organization_id == organization.c.id)
    .join(shard, shard.c.id == organization.c.shard)
)

_MOVE = text(
    """
    update organization_balance as balance
      set posted = balance.posted + moved.amount,
          booked_total = greatest(balance.booked_total, moved.booked_total),
          version = balance.version + 1
      from unnest(cast(:organizations as uuid[]), cast(:amounts as numeric[]), cast(:totals as numeric[]))
        as moved (organization_id, amount, booked_total)
      where balance.organization_id = moved.organization_id
    """
)


async def balance_of(connection: AsyncConnection, organization_id: UUID) -> Balance | None:
    """The balance of one organization; None where it has no accounts yet."""
    row = (await connection.execute(_BALANCES.where(organization.c.id == organization_id))).one_or_none()
    return None if row is None else _balance(row)


async def balances_of(connection: AsyncConnection, organization_ids: Collection[UUID]) -> list[Balance]:
    """The balances of some organizations, in the order of their ids."""
    rows = await connection.execute(
        _BALANCES.where(organization.c.id.in_(organization_ids)).order_by(organization.c.id)
    )
    return [_balance(row) for row in rows]


async def balances_of_shard(connection: AsyncConnection, shard_id: int) -> list[Balance]:
    """The balances of all organizations of a shard, in the order of their ids."""
    rows = await connection.execute(_BALANCES.where(organization.c.shard == shard_id).order_by(organization.c.id))
    return [_balance(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a booking needs to know of an organization while its money is locked.

    Charges of months before `open_month` are billed in that one; nothing is posted before `closed_until`.
    """

    currency: str
    timezone: str
    open_month: date
    closed_until: datetime


async def lock_money(connection: AsyncConnection, organization_ids: Collection[UUID]) -> dict[UUID, Terms]:
    """Lock the money of these organizations until the transaction ends; the terms of each that exists.

    Locked in the order of ids, so that two transactions wait for each other and never deadlock. No period closes
    meanwhile.
    """
    rows = await connection.execute(
        select(
            organization.c.id,
            organization.c.currency,
            organization.c.timezone,
            organization_balance.c.open_month,
            book.c.closed_until,
        )
        .join(organization_balance, organization_balance.c.organization_id == organization.c.id)
        .join(book, book.c.id == 1)
        .where(organization.c.id.in_(organization_ids))
        .order_by(organization_balance.c.organization_id)
        .with_for_update(of=organization_balance)
        .suffix_with("for share of book")
    )
    return {row.id: Terms(row.currency, row.timezone, row.open_month, row.closed_until) for row in rows}


async def move_balances(
    connection: AsyncConnection, amounts: Mapping[UUID, int], booked_totals: Mapping[UUID, int] | None = None
) -> None:
    """Add an amount (it may be negative or zero) to each `posted`, and raise `booked_total` to what is booked now.

    A running total never falls within an epoch, so an older one changes nothing. Every row named gets a new version.
    """
    totals = booked_totals or {}
    await connection.execute(
        _MOVE,
        {
            "organizations": list(amounts),
            "amounts": list(amounts.values()),
            "totals": [totals.get(organization_id, 0) for organization_id in amounts],
        },
    )


async def restart_totals(connection: AsyncConnection, shard_id: int) -> None:
    """Begin the running totals of a shard anew, for a new epoch."""
    members = select(organization.c.id).where(organization.c.shard == shard_id)
    # Locked in the order of ids, as everywhere.
    await lock_money(connection, list((await connection.execute(members)).scalars()))
    await connection.execute(
        update(organization_balance)
        .where(organization_balance.c.organization_id.in_(members))
        .values(booked_total=0, version=organization_balance.c.version + 1)
    )


def _balance(row: Row[Any]) -> Balance:
    return Balance(
        organization_id=row.id,
        currency=row.currency,
        shard=row.shard,
        epoch=row.epoch,
        posted=Units(int(row.posted)),
        booked_total=int(row.booked_total),
        credit_limit=Units(int(row.credit_limit)),
        version=row.version,
    )
