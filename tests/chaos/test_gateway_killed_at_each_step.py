"""A gateway dies at each step of a call's life: the call has the one end that its step owes, and nothing stays held."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from gateway.embedded.redis import Redis
from tests.beside import environment_beside
from tests.conftest import Database, RedisProcess
from tests.scripted import DONE, Asked, end, open_stream, said, scripted_backend, send, usage
from tests.stage import Stage, Tenant, eventually, raise_curtain

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


Owed = tuple[str, int] | None
"""Ending and output tokens of a charge; None where none is owed."""

STEPS: dict[str, Owed] = {
    "before_hold": None,
    "after_hold": None,
    "after_send": ("recovered", 0),
    "after_journal": ("finished", 2),
    "after_settle": ("finished", 2),
}
"""What is owed for a call by the point at which its gateway dies; the points are in the order of a call's life."""


_GATEWAYS = """
import os, sys
from billing import failpoints
from gateway.app import serve
from gateway.settings import Settings

for failpoint in sys.argv[1:]:
    if not os.fork():
        failpoints._CHOSEN = failpoint
        # In one write, or the lines of several processes would mix.
        serve(Settings(), lambda port, _: os.write(1, f"{failpoint} {port}\\n".encode()))
for _ in sys.argv[1:]:
    os.write(1, f"ended {os.waitstatus_to_exitcode(os.wait()[1])}\\n".encode())
"""
"""A gateway for each point, all from one program, since its start is the dearest part of it."""


async def live_and_die(stage: Stage, tenants: dict[str, Tenant], journal: Path) -> dict[str, str]:
    """A streamed call through a gateway for each point, at which that gateway dies; what the clients got."""
    environment = environment_beside(stage, 0, journal)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _GATEWAYS, *tenants, env=environment, stdout=PIPE, start_new_session=True
    )
    assert program.stdout is not None
    try:
        async with asyncio.timeout(60):
            lines = [(await program.stdout.readline()).decode().split() for _ in tenants]
        heard = await asyncio.gather(*(_listen(stage, int(port), tenants[failpoint]) for failpoint, port in lines))
        async with asyncio.timeout(15):
            codes = [(await program.stdout.readline()).decode().split()[1] for _ in tenants]
        assert set(codes) == {str(-signal.SIGKILL)}, "not every gateway died where it should"
        assert await program.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    return {failpoint: text for (failpoint, _), text in zip(lines, heard, strict=True)}


async def _listen(stage: Stage, port: int, tenant: Tenant) -> str:
    """What a client hears until the connection breaks, as it must."""
    listener = stage.listen(tenant, "hi", f"http://127.0.0.1:{port}")
    with pytest.raises(httpx.TransportError):
        await listener.task
    return listener.text


async def ended(stage: Stage, tenant: Tenant, owed: Owed) -> None:
    """Wait until the call of a tenant has the end that is owed, and nothing else."""

    async def is_booked() -> bool:
        return len(await stage.listed(tenant)) >= (owed is not None)

    await eventually(is_booked)
    await stage.verified(tenant)
    charges = await stage.listed(tenant)
    assert [(charge["ending"], charge["output_tokens"]) for charge in charges] == ([] if owed is None else [owed])
    assert all(charge["amount"]["amount"] > "0" for charge in charges)


async def test_each_step(postgres: Database, redis: Redis, tmp_path: Path) -> None:
    async with scripted_backend() as backend, raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenants = {failpoint: await stage.tenant() for failpoint in STEPS}
        heard = await live_and_die(stage, tenants, tmp_path)
        assert not any("[DONE]" in text for text in heard.values())
        assert len(backend.asked) == sum(owed is not None for owed in STEPS.values())
    async with raise_curtain(postgres.app_url, redis.url, journal_dir=tmp_path) as stage:
        for failpoint, tenant in tenants.items():
            await ended(stage, tenant, STEPS[failpoint])


async def test_the_journal_alone_has_the_charge(
    postgres: Database, redis_process: RedisProcess, tmp_path: Path
) -> None:
    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("hello"))
        redis_process.kill()
        await send(writer, said(" there", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    async with scripted_backend(script) as backend, raise_curtain(postgres.app_url, redis_process.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        tenant = await stage.tenant()
        heard = await live_and_die(stage, {"after_journal": tenant}, tmp_path)
        assert "[DONE]" not in heard["after_journal"]
        redis_process.restart()
    async with raise_curtain(postgres.app_url, redis_process.url, journal_dir=tmp_path) as stage:
        await ended(stage, tenant, ("finished", 2))
