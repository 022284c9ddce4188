"""Counting what is spent against monthly limits: the hot store counts by itself once it was told where to begin."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.hot.store import HotStore
from billing.months import month_of, next_month
from billing.store.spend_limits import StoredLimit, booked_in, limits_of, limits_of_shard, shards_with_limits


async def count_spending(connection: AsyncConnection, hot: HotStore, organization_id: UUID, now: datetime) -> None:
    """Have the limits of an organization counted, this month and the next; what is counted already is left alone.

    A count begins at what is booked: calls that end in this very second may be missing from it.
    """
    await _count(connection, hot, await limits_of(connection, organization_id), now)


async def count_all_spending(engine: AsyncEngine, hot: HotStore, shards: Collection[int], now: datetime) -> None:
    """`count_spending` of all organizations of these shards: for new months, and for a Redis that was made anew."""
    async with engine.connect() as connection:
        for shard in await shards_with_limits(connection):
            if shard in shards:
                await _count(connection, hot, await limits_of_shard(connection, shard), now)


async def _count(connection: AsyncConnection, hot: HotStore, limits: Iterable[StoredLimit], now: datetime) -> None:
    by_organization: dict[UUID, list[StoredLimit]] = {}
    for limit in limits:
        by_organization.setdefault(limit.organization_id, []).append(limit)
    for organization_id, mine in by_organization.items():
        shard = mine[0].shard
        known = await hot.spent(shard, organization_id)
        this = month_of(now, mine[0].timezone)
        booked: dict[str, int] = {}
        for month in (this, next_month(this)):
            for limit in mine:
                scope = f"{limit.scope}:{month:%Y-%m}"
                if scope not in known:
                    booked[scope] = await booked_in(connection, limit, month)
        if booked or any(scope.rpartition(":")[2] < f"{this:%Y-%m}" for scope in known):
            await hot.count_spent(shard, organization_id, booked, f"{this:%Y-%m}")
