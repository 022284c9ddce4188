"""Some rooms of the gateway alone: an application with a few routers, on the real Postgres and Redis of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.keys import SHARDS
from billing.hot.store import HotStore, make_hot_store
from billing.rebuild import ensure_epoch
from billing.store.engine import make_engine
from gateway.api import errors
from gateway.auth import KeyRing
from gateway.catalog import CatalogCache
from gateway.clock import Clock
from gateway.embedded.redis import Redis
from gateway.memory import Memory
from gateway.parts import Parts
from gateway.settings import Settings
from tests.conftest import Database
from tests.stage import listening

PEPPER = b"a pepper of the rooms under test"


class MovableClock(Clock):
    """The billing clock, which a test moves on."""

    def move(self, step: timedelta) -> None:
        """Move on by `step`."""
        self._offset += step


def make_parts(engine: AsyncEngine, hot: HotStore, clock: Clock | None = None, **changes: Any) -> Parts:
    """The parts of a gateway over these stores; `changes` are settings."""
    urls = {"database_url": "postgresql://", "redis_url": "redis://"}
    settings = Settings.model_validate({**urls, "key_pepper": PEPPER.decode(), **changes})
    clock = clock or Clock()
    keys, catalog, memory = KeyRing(engine, PEPPER, clock, 3), CatalogCache(engine, 1), Memory(engine, clock, 60)
    return Parts(settings, clock, engine, hot, keys, catalog, memory)


@asynccontextmanager
async def open_parts(
    database: Database, redis: Redis, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[Parts]:
    """The parts of a gateway on this database and Redis."""
    engine = make_engine(database.app_url)
    hot = await make_hot_store(redis.url)
    try:
        yield make_parts(engine, hot, clock, database_url=database.app_url, redis_url=redis.url, **changes)
    finally:
        await hot.close()
        await engine.dispose()


async def open_all_shards(engine: AsyncEngine, hot: HotStore) -> None:
    """Show the epoch of every shard in an empty Redis, as a worker does."""
    for shard in range(SHARDS):
        assert await ensure_epoch(engine, hot, shard)


def application(parts: Parts, *routers: APIRouter) -> FastAPI:
    """An application with these routers alone."""
    app = FastAPI()
    app.state.parts = parts
    errors.install(app)
    for router in routers:
        app.include_router(router)
    return app


@asynccontextmanager
async def on_free_port(app: FastAPI) -> AsyncIterator[str]:
    """Serve it on a free port; its address."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server, listener = uvicorn.Server(config), listening()
    # Connections wait at the listener until the server takes them: nobody needs to wait for its start.
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()
