"""Writing balances as Postgres knows them into the hot store; it may be repeated, reordered or lost and done again."""

from __future__ import annotations

import asyncio
from itertools import islice
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.hot.store import HotStore
from billing.store.balances import Balance, balance_of, balances_of_shard
from models.money import LARGEST_BALANCE_UNITS, Units

_AT_ONCE = 200


async def project(hot: HotStore, balance: Balance) -> bool:
    """Write one balance to the hot store; False where it is known there already, or the epoch is another.

    Raises `Unavailable` where Redis cannot answer.
    """
    return await hot.project(
        balance.shard,
        balance.organization_id,
        posted=shown(balance.posted),
        booked_total=balance.booked_total,
        credit_limit=balance.credit_limit,
        version=balance.version,
        epoch=balance.epoch,
    )


def shown(posted: Units) -> Units:
    """A balance as the hot store may hold it: what is too large to be compared exactly there is cut off.

    Nothing is sold to who has such a debt either way: no credit limit reaches that far. Grants do not come to more, but
    an invoice may be paid after them.
    """
    return Units(min(max(posted, -LARGEST_BALANCE_UNITS), LARGEST_BALANCE_UNITS))


async def project_balance(connection: AsyncConnection, hot: HotStore, organization_id: UUID) -> None:
    """Project an organization's balance as `connection` sees it: call it after the commit that changed it.

    Does nothing for an organization without accounts. Raises `Unavailable` where Redis cannot answer; a worker
    projects it then, some seconds later.
    """
    balance = await balance_of(connection, organization_id)
    if balance is not None:
        await project(hot, balance)


async def project_all(engine: AsyncEngine, hot: HotStore, shard: int) -> int:
    """Project every balance of a shard; how many the hot store did not know.

    Mends what a program left undone that died between its commit and its projection.
    """
    async with engine.connect() as connection:
        pending = iter(await balances_of_shard(connection, shard))
    applied = 0
    while chunk := list(islice(pending, _AT_ONCE)):
        applied += sum(await asyncio.gather(*(project(hot, balance) for balance in chunk)))
    return applied
