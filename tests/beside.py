"""A real `tollgate serve` beside the gateway of a stage, to be stopped or killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from gateway.embedded.children import Child
from gateway.embedded.ports import free_port
from tests.stage import PEPPER, Stage, eventually


class Gateway:
    """A real `tollgate serve`."""

    def __init__(self, child: Child, base_url: str) -> None:
        self.child = child
        self.base_url = base_url

    async def ended(self, seconds: float) -> int:
        """Its exit code, once it has ended."""

        async def is_over() -> bool:
            return self.child.exit_code() is not None

        await eventually(is_over, seconds)
        code = self.child.exit_code()
        assert code is not None
        return code


def environment_beside(stage: Stage, port: int, journal: Path) -> dict[str, str]:
    """The environment of a second gateway over the stores of a stage."""
    settings = stage.settings
    return os.environ | {
        "TOLLGATE_DATABASE_URL": settings.database_url.get_secret_value(),
        "TOLLGATE_REDIS_URL": settings.redis_url.get_secret_value(),
        "TOLLGATE_KEY_PEPPER": PEPPER,
        "TOLLGATE_PORT": str(port),
        "TOLLGATE_INTERNAL_PORT": "0",
        "TOLLGATE_JOURNAL_DIR": str(journal),
        # Scripted backends count their visitors.
        "TOLLGATE_HEALTH_CHECK_SECONDS": "0",
    }


@contextmanager
def gateway_beside(stage: Stage, directory: Path, *, drain_seconds: float) -> Iterator[Gateway]:
    """A second gateway over the stores of a stage, in a process of its own."""
    port = free_port()
    environment = environment_beside(stage, port, directory / "journal")
    environment["TOLLGATE_DRAIN_SECONDS"] = str(drain_seconds)
    program = [sys.executable, "-m", "gateway.cli", "serve"]
    child = Child("tollgate serve", program, log=directory / "serve.log", environment=environment)
    try:
        yield Gateway(child, f"http://127.0.0.1:{port}")
    finally:
        child.stop(seconds=10)


async def is_ready(client: httpx.AsyncClient) -> bool:
    """Whether the gateway of this client says so."""
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False
