"""Key names as docs/architecture.md lists them, and the shard of an organization."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from uuid import UUID

import pytest

from billing.hot.connection import Script
from billing.hot.keys import SHARD_KEYS, SHARDS, ShardKeys, shard_of
from models.ids import uuid7


def test_names_are_those_of_the_architecture() -> None:
    assert SHARD_KEYS[7] == ShardKeys(
        epoch="{s7}:epoch",
        stream="{s7}:stream",
        open="{s7}:open",
        instances="{s7}:instances",
        suspects="{s7}:suspects",
        organization="{s7}:o:",
        holds="{s7}:h:",
        done="{s7}:d:",
        rates="{s7}:r:",
        in_flight="{s7}:f:",
        checkpoints="{s7}:c:",
        spent="{s7}:s:",
    )


def test_every_shard_has_its_own_tag() -> None:
    assert [keys.epoch for keys in SHARD_KEYS] == [f"{{s{shard}}}:epoch" for shard in range(SHARDS)]


@pytest.mark.parametrize(("number", "shard"), [(0, 0), (15, 15), (16, 0), (2**128 - 1, 15)])
def test_shard(number: int, shard: int) -> None:
    assert shard_of(UUID(int=number)) == shard


def test_organizations_of_one_moment_are_spread_over_all_shards() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    counts = Counter(shard_of(uuid7(now)) for _ in range(1_600))
    assert len(counts) == SHARDS
    assert min(counts.values()) > 40


def test_a_script_has_the_sha1_that_redis_gives_it() -> None:
    assert Script.of("amounts").sha1 == Script.of("amounts").sha1 != Script.of("amounts", "settle").sha1
    assert Script.of("amounts", "void").source.index("negative") < Script.of("amounts", "void").source.index("KEYS")
