"""Tollgate behind nginx as it comes, with buffering on: streams still flow."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.embedded.ports import free_port
from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.scripted import DONE, Asked, Scripted, end, open_stream, said, scripted_backend, send, usage
from tests.stage import Stage, eventually, raise_curtain

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)"),
]
CONFIGURATION = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {upstream}; proxy_http_version 1.1; }}
  }}
}}
"""


@contextmanager
def nginx(upstream: str, directory: Path) -> Iterator[str]:
    port = free_port()
    path = directory / "nginx.conf"
    path.write_text(CONFIGURATION.format(directory=directory, port=port, upstream=upstream))
    process = subprocess.Popen([str(NGINX), "-c", str(path), "-e", str(directory / "error")])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def backend() -> AsyncIterator[Scripted]:
    async with scripted_backend() as backend:
        yield backend


@pytest.fixture
async def stage(postgres: Database, redis: Redis, backend: Scripted) -> AsyncIterator[Stage]:
    async with raise_curtain(postgres.app_url, redis.url) as stage:
        await stage.backend(backend.url, kind="openai", model="m", known_as="x")
        yield stage


async def test_events_are_not_held_back(stage: Stage, backend: Scripted, tmp_path: Path) -> None:
    tenant = await stage.tenant()
    more = asyncio.Event()

    async def script(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await open_stream(writer)
        await send(writer, said("first"))
        # The rest comes only after the client has seen the first event: were it held back, neither would go on.
        await more.wait()
        await send(writer, said("last", finish="stop"), usage(5, 2), DONE)
        await end(writer)

    backend.script = script
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with nginx(stage.base_url, tmp_path) as url:

        async def is_up() -> bool:
            return (tmp_path / "pid").exists()

        await eventually(is_up)
        call = stage.client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=tenant.headers)
        async with call as answer:
            received = b""
            async for piece in answer.aiter_bytes():
                received += piece
                if b"first" in received:
                    more.set()
        assert received.endswith(DONE)
    (charge,) = await stage.charges(tenant, 1)
    assert charge["ending"] == "finished"
