"""Names of the keys in Redis, and the shard an organization is given; the table of them is in docs/architecture.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

SHARDS: Final = 16


def shard_of(organization_id: UUID) -> int:
    """The shard of a new organization, 0 to 15; the low bits of a UUIDv7 are random, so shards fill evenly."""
    return organization_id.int % SHARDS


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """Key names of one shard: whole ones, and the prefixes to which the text of an organization or call is added.

    All carry the tag `{sN}`, so that a script touches a single slot of a Redis Cluster.
    """

    epoch: str
    stream: str
    open: str
    instances: str
    suspects: str
    organization: str
    holds: str
    done: str
    rates: str
    in_flight: str
    checkpoints: str

    @classmethod
    def of(cls, shard: int) -> ShardKeys:
        """The names of shard `shard`."""
        tag = f"{{s{shard}}}"
        return cls(
            epoch=f"{tag}:epoch",
            stream=f"{tag}:stream",
            open=f"{tag}:open",
            instances=f"{tag}:instances",
            suspects=f"{tag}:suspects",
            organization=f"{tag}:o:",
            holds=f"{tag}:h:",
            done=f"{tag}:d:",
            rates=f"{tag}:r:",
            in_flight=f"{tag}:f:",
            checkpoints=f"{tag}:c:",
        )


SHARD_KEYS: Final = tuple(ShardKeys.of(shard) for shard in range(SHARDS))
"""The names by shard, made once because every call needs them."""
