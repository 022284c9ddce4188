"""Names of the keys in Redis, and the shard an organization is given; the table of them is in docs/architecture.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from models.call import CallOrigin

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
    spent: str

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
            spent=f"{tag}:s:",
        )


SHARD_KEYS: Final = tuple(ShardKeys.of(shard) for shard in range(SHARDS))
"""The names by shard, made once because every call needs them."""


class OrganizationKeys(NamedTuple):
    """Key names of one organization; `done` is the prefix to which the text of a call is added, `id` its own text."""

    id: str
    epoch: str
    stream: str
    open: str
    instances: str
    organization: str
    holds: str
    done: str
    rates: str
    in_flight: str
    checkpoints: str
    spent: str


_MOST_NAMED: Final = 100_000
_named: dict[int, OrganizationKeys] = {}


def names_of(origin: CallOrigin) -> OrganizationKeys:
    """The names for a call's organization, kept because every call of it needs them twice.

    An organization never changes its shard. They are kept by the number in the UUID, whose hash costs nothing.
    """
    known = _named.get(origin.organization_id.int)
    if known is None:
        if len(_named) >= _MOST_NAMED:
            _named.clear()
        keys, organization = SHARD_KEYS[origin.shard], str(origin.organization_id)
        known = _named[origin.organization_id.int] = OrganizationKeys(
            id=organization,
            epoch=keys.epoch,
            stream=keys.stream,
            open=keys.open,
            instances=keys.instances,
            organization=keys.organization + organization,
            holds=keys.holds + organization,
            done=keys.done,
            rates=keys.rates + organization,
            in_flight=keys.in_flight + organization,
            checkpoints=keys.checkpoints + organization,
            spent=keys.spent + organization,
        )
    return known
