"""The embedded servers: that each starts, keeps what it was given, and leaves with its parent."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis as RedisClient
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.postgres import Postgres
from gateway.embedded.redis import Redis
from gateway.embedded.redis import binary as redis_binary
from tests.conftest import APP, PASSWORD, Database, RedisProcess

pytestmark = pytest.mark.anyio


async def test_program_role_is_no_superuser(postgres_server: Postgres) -> None:
    connection = await asyncpg.connect(postgres_server.url("postgres", APP, PASSWORD))
    try:
        assert not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
    finally:
        await connection.close()


async def test_every_test_has_a_migrated_database_of_its_own(postgres: Database) -> None:
    connection = await asyncpg.connect(postgres.app_url)
    try:
        assert await connection.fetchval("select count(*) from organization") == 0
    finally:
        await connection.close()


async def test_redis_refuses_to_evict_and_writes_its_file(redis: Redis) -> None:
    async with RedisClient.from_url(redis.url) as client:
        for name, value in {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}.items():
            assert await client.config_get(name) == {name: value}
        assert await client.dbsize() == 0


def test_system_redis_serves_where_the_wheel_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").symlink_to(redis_binary())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_binary() == tmp_path / "redis-server"


async def test_killed_redis_keeps_what_it_acknowledged(redis_process: RedisProcess) -> None:
    async with RedisClient.from_url(redis_process.url) as client:
        await client.set("hold", "1")
        redis_process.kill()
        with pytest.raises(RedisConnectionError):
            await client.get("hold")
        redis_process.restart()
        assert await client.get("hold") == b"1"


def test_demo_model_answers_with_its_own_count(llamacpp: LlamaCpp) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", llamacpp.port, timeout=30)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert 1 <= answer["usage"]["completion_tokens"] <= 3
