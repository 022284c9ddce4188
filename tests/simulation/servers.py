"""A Postgres without durability and a Redis without files, for simulations from the command line."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from gateway.embedded import postgres, redis
from migrations.run import migrate
from tests.simulation.book import Databases
from tests.simulation.run import Servers

OWNER: Final = "tollgate_owner"
APP: Final = "tollgate_app"
PASSWORD: Final = "password"
TEMPLATE: Final = "simulation_template"
_POSTGRES: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
}
_REDIS: Final = {"appendonly": "no"}


@contextmanager
def started() -> Iterator[Servers]:
    """Both servers, which go with the context."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-sim-", ignore_cleanup_errors=True)))
        # Postgres refuses to run as root, so under root it runs as another account that must get this far.
        directory.chmod(0o755)
        log = directory / "postgres.log"
        postgres.initialise(directory / "pg", PASSWORD, log=log)
        book = postgres.start(directory / "pg", PASSWORD, log=log, settings=_POSTGRES)
        stack.callback(book.child.stop, seconds=10)
        asyncio.run(_prepare(book))
        migrate(book.url(TEMPLATE, OWNER, PASSWORD), APP)
        socket = directory / "redis.sock"
        hot = redis.start(
            directory / "redis", PASSWORD, log=directory / "redis.log", socket_path=socket, settings=_REDIS
        )
        stack.callback(hot.child.stop, seconds=5)
        yield Servers(socket, PASSWORD, Databases(book, TEMPLATE, OWNER, APP, PASSWORD))


async def _prepare(book: postgres.Postgres) -> None:
    for role in (OWNER, APP):
        await postgres.create_role(book, role, PASSWORD)
    await postgres.create_database(book, TEMPLATE, OWNER)
