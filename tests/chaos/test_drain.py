"""A deploy: a real gateway gets SIGTERM with two hundred open streams, cuts none that ends in time, and charges all."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.embedded.redis import Redis
from tests.beside import Gateway, gateway_beside, is_ready
from tests.conftest import Database
from tests.scripted import DONE, Asked, Script, end, open_stream, said, scripted_backend, send, usage
from tests.stage import Listener, Stage, Tenant, all_hear, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

STREAMS = 200
AT_ONCE = 50
"""Streams begun together: the backend of these tests takes so many connections in one breath."""
STREAM_SECONDS = 2.0
PIECES = 10
WINDOW_SECONDS = 4.0
OUTLASTING = 20
"""Streams that are still open when the drain window ends."""
EXIT_SECONDS = 5.0
"""How long a gateway may take to end after its drain window."""
ENDLESS = "never stop"


def slow(deploy: asyncio.Event) -> Script:
    """A backend whose answers end two seconds after the deploy began, or, where it was asked for, never."""

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hello"))
        if asked.body["messages"][0]["content"] == ENDLESS:
            await asyncio.Event().wait()
        await deploy.wait()
        for _ in range(PIECES):
            # The speed of a model, not a wait for something.
            await asyncio.sleep(STREAM_SECONDS / PIECES)
            await send(writer, said(" there"))
        await send(writer, said("", finish="stop"), usage(5, 4), DONE)
        await end(writer)

    return script


async def begin_streams(stage: Stage, gateway: Gateway, tenant: Tenant, count: int, words: str) -> list[Listener]:
    """Streams that have all begun."""
    listeners: list[Listener] = []
    while len(listeners) < count:
        some = [stage.listen(tenant, words, gateway.base_url) for _ in range(min(AT_ONCE, count - len(listeners)))]
        await all_hear(some, "hello")
        listeners += some
    return listeners


async def refused_while_draining(kept: httpx.AsyncClient, stage: Stage, tenant: Tenant) -> None:
    """What a client sees on a connection that it had before the drain began: not ready, and no new call."""

    async def is_draining() -> bool:
        return not await is_ready(kept)

    await eventually(is_draining)
    answer = await kept.post("/v1/chat/completions", **stage.chat_options(tenant, "hi", stream=False))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    # Its next call must go to another gateway, and not here again for as long as this one drains.
    assert answer.headers["connection"] == "close"


@pytest.fixture
def deploy() -> asyncio.Event:
    """Set when the deploy begins."""
    return asyncio.Event()


@pytest.fixture
async def stage(postgres: Database, redis: Redis, deploy: asyncio.Event) -> AsyncIterator[Stage]:
    """The gateway and the worker that stay while another gateway is replaced."""
    async with scripted_backend(slow(deploy)) as backend, raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


async def test_a_deploy_cuts_only_what_outlasts_its_window(stage: Stage, deploy: asyncio.Event, tmp_path: Path) -> None:
    tenant, endless = await stage.tenant(), await stage.tenant()
    limits = httpx.Limits(max_connections=1)
    with gateway_beside(stage, tmp_path, drain_seconds=WINDOW_SECONDS) as gateway:
        async with httpx.AsyncClient(base_url=gateway.base_url, limits=limits, trust_env=False, timeout=10) as kept:
            await eventually(lambda: is_ready(kept))
            cut = await begin_streams(stage, gateway, endless, OUTLASTING, ENDLESS)
            whole = await begin_streams(stage, gateway, tenant, STREAMS, "hi")
            assert await is_ready(kept)
            gateway.child.signal(signal.SIGTERM)
            stopped = time.monotonic()
            deploy.set()
            await refused_while_draining(kept, stage, tenant)
        await asyncio.gather(*(listener.task for listener in [*whole, *cut]))
        assert await gateway.ended(WINDOW_SECONDS + EXIT_SECONDS) == 0
        assert time.monotonic() - stopped <= WINDOW_SECONDS + EXIT_SECONDS
    assert all(listener.status == 200 and listener.is_done for listener in whole)
    for listener in cut:
        assert "event: error\ndata: " in listener.text
        assert "[DONE]" not in listener.text
    assert await endings(stage, tenant, whole) == {("finished", 4)}
    [(ending, output_tokens)] = await endings(stage, endless, cut)
    assert ending == "drained"
    # One word was delivered; without a tokenizer its tokens are bounded by its bytes.
    assert 0 < output_tokens <= len("hello")
    await stage.verified(tenant, endless)


async def endings(stage: Stage, tenant: Tenant, listeners: list[Listener]) -> set[tuple[str, int]]:
    """How these calls ended and with how many output tokens; each has one charge, and there are no others."""
    charges = await stage.charges(tenant, len(listeners))
    assert sorted(charge["call_id"] for charge in charges) == sorted(listener.call_id for listener in listeners)
    return {(charge["ending"], charge["output_tokens"]) for charge in charges}
