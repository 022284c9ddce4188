"""Making the balances of a blank or mistaken Redis anew, under a new epoch."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.failpoints import failpoint
from billing.hot.store import START, HotStore, NewBalance
from billing.projection import shown
from billing.settlement import book_entries
from billing.store import balances, shards
from models.errors import Unavailable

_BATCH: Final = 1_000
_ATTEMPTS: Final = 20


async def ensure_epoch(engine: AsyncEngine, hot: HotStore, shard: int) -> bool:
    """See that Redis shows the shard's epoch; where it does not, book what is in the stream and rebuild the balances.

    True where the epochs agree now; False where another worker has the shard. Safe to die in: until the commit the
    two epochs differ, gateways refuse, and the next try begins again. Raises `Unavailable` and SQLAlchemy's errors
    where Redis or Postgres cannot answer.
    """
    async with engine.begin() as connection:
        lease = await shards.lease(connection, shard)
        if lease is None:
            return False
        redis_epoch = await hot.epoch(shard)
        if redis_epoch == lease.epoch:
            return True
        # Above both: a Redis that outlived a restored Postgres must not show a number that will be used again.
        epoch = max(lease.epoch, redis_epoch or 0) + 1
        position = await _drain_and_install(connection, hot, lease, epoch)
        await shards.move(connection, lease, position, epoch=epoch)
        failpoint("before_epoch_commit")
    await hot.trim(shard, position)
    return True


async def _drain_and_install(connection: AsyncConnection, hot: HotStore, lease: shards.Lease, epoch: int) -> str:
    """Book the stream to its end and write all balances; the position that was reached.

    While the epoch is missing calls still end and put charges on the stream, so it is done until none came between.
    """
    # From the start, whatever the position: it belongs to the Redis that is gone, and a younger clock numbers lower.
    position, reached = START, lease.position
    for attempt in range(_ATTEMPTS):
        while entries := await hot.read(lease.shard, position, _BATCH):
            await book_entries(connection, lease, entries, totals=False)
            position = reached = entries[-1].id
        await balances.restart_totals(connection, lease.shard)
        rows = await balances.balances_of_shard(connection, lease.shard)
        installed = [NewBalance(row.organization_id, shown(row.posted), row.credit_limit, row.version) for row in rows]
        if await hot.install(lease.shard, epoch, reached, installed):
            return reached
        await asyncio.sleep(0.01 * attempt)
    raise Unavailable(f"charges kept coming while shard {lease.shard} was rebuilt")
