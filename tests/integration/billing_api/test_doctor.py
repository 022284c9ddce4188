"""The doctor on real servers: a healthy house, and each fault by itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.dialects.postgresql import Range

from billing.store.engine import make_engine
from gateway.doctor import Finding, Patient, examine
from gateway.embedded import redis as embedded_redis
from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.postgres import Postgres
from gateway.embedded.redis import Redis
from models.ids import uuid7
from models.tables import backend, deployment, model, price_version
from tests.conftest import Database

pytestmark = pytest.mark.anyio

NOW = datetime.now(UTC)
USUAL_PASSWORDS = {"database_url", "redis_url"}
"""The servers of the test session have the password "password", which is a fault of its own."""


def _faults(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {finding.check: finding.sentence for finding in findings if not finding.ok}


async def _examine(database_url: str, redis_url: str) -> dict[str, str]:
    faults = _faults(await examine(Patient(database_url, redis_url), NOW))
    assert all(faults.pop(name).endswith(f"in TOLLGATE_{name.upper()}.") for name in USUAL_PASSWORDS)
    assert all(sentence.endswith(".") for sentence in faults.values())
    return faults


async def _sell(database: Database, url: str, *, priced: bool = True, tokenizer: str | None = None) -> None:
    engine = make_engine(database.owner_url)
    ids = [uuid7(NOW) for _ in range(3)]
    async with engine.begin() as connection:
        await connection.execute(insert(backend).values(id=ids[0], name="gpu-1", kind="llamacpp", url=url))
        await connection.execute(insert(model).values(id="tiny", context_length=4_096, tokenizer=tokenizer))
        served = {"model_id": "tiny", "backend_id": ids[0], "backend_model": "tiny"}
        await connection.execute(insert(deployment).values(id=ids[1], **served))
        if priced:
            await connection.execute(
                insert(price_version).values(
                    id=ids[2],
                    book="default",
                    model_id="tiny",
                    meter="input",
                    currency="USD",
                    price=150_000,
                    effective=Range(datetime(2020, 1, 1, tzinfo=UTC), None),
                    created_by="test",
                )
            )
    await engine.dispose()


async def test_a_healthy_house(
    postgres: Database, redis: Redis, llamacpp: LlamaCpp, tiny_model: tuple[Path, Path]
) -> None:
    await _sell(postgres, llamacpp.url, tokenizer=str(tiny_model[1]))
    assert await _examine(postgres.app_url, redis.url) == {}


async def test_what_is_sold(postgres: Database, redis: Redis, free_url: str) -> None:
    await _sell(postgres, free_url, priced=False, tokenizer="/nowhere/tokenizer.json")
    faults = await _examine(postgres.app_url, redis.url)
    assert set(faults) == {"backend", "tokenizer", "price"}
    assert "gpu-1 cannot be reached" in faults["backend"]
    assert "tollgate price set" in faults["price"]


@pytest.fixture
def free_url() -> str:
    """A URL where nothing listens."""
    return "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        pytest.param({"appendonly": "no"}, "redis_aof", id="no append-only file"),
        pytest.param({"maxmemory-policy": "allkeys-lru"}, "redis_eviction", id="evicts"),
    ],
)
async def test_a_redis_that_forgets(postgres: Database, scratch: Path, settings: dict[str, str], check: str) -> None:
    """G03"""
    directory = scratch / f"redis-{check}"
    server = embedded_redis.start(directory, "password", log=directory.with_suffix(".log"), settings=settings)
    try:
        faults = await _examine(postgres.app_url, server.url)
    finally:
        server.child.stop(seconds=5)
    assert set(faults) == {check}
    assert next(iter(settings)).split("-")[0] in faults[check]


async def test_roles_that_are_above_the_rules(postgres: Database, postgres_server: Postgres, redis: Redis) -> None:
    """G03"""
    assert set(await _examine(postgres.owner_url, redis.url)) == {"postgres_owner"}
    superuser = postgres_server.url(postgres.app_url.rsplit("/", 1)[1])
    assert set(await _examine(superuser, redis.url)) == {"postgres_superuser", "postgres_row_security"}


async def test_a_schema_that_is_old_or_missing(postgres: Database, redis: Redis) -> None:
    engine = make_engine(postgres.owner_url)
    async with engine.begin() as connection:
        await connection.execute(text("update alembic_version set version_num = 'older'"))
    await engine.dispose()
    faults = await _examine(postgres.app_url, redis.url)
    assert "tollgate migrate" in faults["migrations"]


async def test_servers_that_are_away(postgres: Database, redis: Redis) -> None:
    assert set(await _examine(postgres.app_url, "redis://:password@127.0.0.1:1/0")) == {"redis"}
    assert set(await _examine("postgresql://a:password@127.0.0.1:1/x", redis.url)) == {"postgres"}
