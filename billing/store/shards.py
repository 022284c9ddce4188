"""The shards' rows: the epoch Redis must show, and how far its stream is booked. The row's lock is a worker's lease."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.tables import shard as shards


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard whose row this transaction has locked; `position` is the id of the last booked stream entry."""

    shard: int
    epoch: int
    position: str


async def epochs(connection: AsyncConnection) -> dict[int, int]:
    """The epoch of each shard; a Redis that shows another one must not be believed."""
    rows = await connection.execute(select(shards.c.id, shards.c.epoch))
    return {row.id: row.epoch for row in rows}


async def positions(connection: AsyncConnection) -> dict[int, str]:
    """The last booked stream entry of each shard."""
    rows = await connection.execute(select(shards.c.id, shards.c.position))
    return {row.id: row.position for row in rows}


async def lease(connection: AsyncConnection, shard: int) -> Lease | None:
    """Lock a shard until the transaction ends; None where another worker has it."""
    rows = await connection.execute(
        select(shards.c.id, shards.c.epoch, shards.c.position)
        .where(shards.c.id == shard)
        .with_for_update(skip_locked=True)
    )
    row = rows.one_or_none()
    return None if row is None else Lease(row.id, row.epoch, row.position)


async def hold_all(connection: AsyncConnection, wait_ms: int = 5_000) -> None:
    """Wait for the bookings that run, and let none begin until the transaction ends; end it soon.

    Gives up after `wait_ms` with the database's error: meanwhile shards that it has already wait too.
    """
    await connection.execute(text(f"set local lock_timeout = {wait_ms:d}"))
    await connection.execute(select(shards.c.id).order_by(shards.c.id).with_for_update(read=True))


async def move(connection: AsyncConnection, lease: Lease, position: str, *, epoch: int | None = None) -> None:
    """Record how far the shard is booked, and a new epoch where one begins."""
    changed: dict[str, object] = {"position": position, "updated_at": func.now()}
    if epoch is not None:
        changed["epoch"] = epoch
    await connection.execute(update(shards).where(shards.c.id == lease.shard).values(changed))
