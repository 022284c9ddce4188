"""Lives and deaths of gateways, as Redis sees them: nobody waits, the last sign of life is made old instead."""

from __future__ import annotations

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import HotStore
from billing.sweeper import Swept, sweep_shard
from models.call import Checkpoint, Hold
from models.usage import TokenUsage, UsageSource
from tests.integration.hot.nouns import NOW

SILENT_MS = 31_000
CONFIRMED_MS = 6_000


def point(hold: Hold, tokens: int = 30, *, accepted: bool = True) -> Checkpoint:
    """A checkpoint with so many tokens of input; a token costs a unit."""
    usage = TokenUsage(tokens, 0)
    return Checkpoint(hold.request.origin, usage, UsageSource.BACKEND_PARTIAL, "tiny@here", accepted)


async def silence(raw: HotConnection, store: HotStore, shard: int, instance: str, ms: int = SILENT_MS) -> None:
    """Make the instance silent for so long in this shard, where it has shown a sign before."""
    sign = await store.clock_ms() - ms
    assert await raw.execute("ZADD", SHARD_KEYS[shard].instances, "XX", "CH", sign, instance) == 1


async def suspected_long_ago(raw: HotConnection, store: HotStore, shard: int, instance: str) -> None:
    """Make the suspicion against an instance old enough to be believed."""
    key = SHARD_KEYS[shard].suspects
    sign, _ = (await raw.execute("HGET", key, instance)).split()
    await raw.execute("HSET", key, instance, b"%s %d" % (sign, await store.clock_ms() - CONFIRMED_MS))


async def sweep(store: HotStore, shard: int) -> Swept:
    """A look that believes its first suspicion."""
    return await sweep_shard(store, shard, NOW, confirm_seconds=0)
