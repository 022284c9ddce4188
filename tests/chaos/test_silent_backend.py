"""A backend falls silent: a call that got nothing costs nothing, one in the middle is charged what was delivered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.scripted import Asked, open_stream, said, scripted_backend, send
from tests.stage import Stage, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PATIENCE = {"first_byte_timeout_seconds": 0.5, "idle_timeout_seconds": 0.5}


async def mute(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Take the request and say nothing, or a word and then nothing."""
    if asked.body["messages"][0]["content"] == "a word":
        await open_stream(writer)
        await send(writer, said("hello"))
    await asyncio.Event().wait()


@pytest.fixture
async def stage(postgres: Database, redis: Redis) -> AsyncIterator[Stage]:
    async with scripted_backend(mute) as backend, raise_curtain(postgres.app_url, redis.url, **PATIENCE) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


async def test_before_the_first_token(stage: Stage) -> None:
    tenant = await stage.tenant()
    answer = await stage.chat(tenant, "nothing")
    assert answer.status_code == 504
    await stage.verified(tenant)
    assert await stage.listed(tenant) == []


async def test_in_the_middle(stage: Stage) -> None:
    tenant = await stage.tenant()
    listener = stage.listen(tenant, "a word")
    await listener.task
    assert "event: error\ndata: " in listener.text
    assert not listener.is_done
    [charge] = await stage.charges(tenant, 1)
    assert (charge["ending"], charge["call_id"]) == ("backend_failed", listener.call_id)
    assert 0 < charge["output_tokens"] <= len("hello")
    await stage.verified(tenant)
