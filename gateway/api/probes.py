"""Whether this process is alive and whether it can serve: the probes, and the application of the internal port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy import text
from starlette.responses import Response

from billing.hot.keys import SHARDS
from gateway.api.errors import install
from gateway.auth import public_route
from gateway.parts import Parts
from gateway.telemetry import PARTS_UP, REGISTRY

CHECK_TIMEOUT_SECONDS: Final = 1.5
"""A part that takes longer is as good as away; the probe answers within 2 seconds in any case."""

POSTGRES_GRACE_SECONDS: Final = 10.0
"""A gateway serves known keys without Postgres, so a restart of it must not take every gateway out of rotation."""

REUSE_SECONDS: Final = 0.5
"""An answer is good for this long: /readyz is public, and asking it must not load the parts."""

router = APIRouter(tags=["probes"], dependencies=[Depends(public_route)])


class Readiness:
    """Whether calls can be served now. `gateway.app` makes one, and tells it when draining begins."""

    def __init__(self, parts: Parts, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._monotonic = monotonic
        self._draining = False
        self._postgres_seen = float("-inf")
        self._missing: dict[str, str] = {}
        self._looked_at = float("-inf")
        self._look: asyncio.Task[dict[str, str]] | None = None

    def drain(self) -> None:
        """From now on no new calls should be sent here."""
        self._draining = True

    async def missing(self) -> dict[str, str]:
        """What stands in the way, as a sentence per part; empty when ready. Answers within 2 seconds, never raises."""
        if self._monotonic() - self._looked_at >= REUSE_SECONDS:
            # One look for all who ask meanwhile; shielded, so that one who hangs up does not end it for the others.
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._check())
            self._missing = await asyncio.shield(self._look)
            self._looked_at = self._monotonic()
        return {**self._missing, **({"gateway": "It is draining before a stop."} if self._draining else {})}

    async def _check(self) -> dict[str, str]:
        redis, postgres = await asyncio.gather(_answer(self._redis), _answer(self._postgres))
        PARTS_UP.set("redis", redis is None)
        PARTS_UP.set("postgres", postgres is None)
        if postgres is None:
            self._postgres_seen = self._monotonic()
        missing = {} if redis is None else {"redis": redis}
        if postgres is not None and self._monotonic() - self._postgres_seen > POSTGRES_GRACE_SECONDS:
            missing["postgres"] = postgres
        if not self._parts.catalog.loaded:
            missing["catalog"] = "The catalog has not been read yet."
        return missing

    async def _redis(self) -> str | None:
        hot, known = self._parts.hot, self._parts.catalog.epochs
        await hot.ping()
        shown = await asyncio.gather(*(hot.epoch(shard) for shard in range(SHARDS)))
        wrong = [shard for shard in range(SHARDS) if shown[shard] is None or shown[shard] != known.get(shard)]
        if not wrong:
            return None
        return f"{len(wrong)} of {SHARDS} shards wait for a worker to build their balances."

    async def _postgres(self) -> str | None:
        async with self._parts.engine.connect() as connection:
            await connection.execute(text("select 1"))
        return None


async def _answer(check: Callable[[], Awaitable[str | None]]) -> str | None:
    """What a check says, or that its part is away. A check that hangs is left behind, not waited for."""
    task = asyncio.ensure_future(check())
    # Its exception is looked at even when nobody waits for it any more.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait([task], timeout=CHECK_TIMEOUT_SECONDS)
    if not task.done():
        task.cancel()
        return f"It did not answer within {CHECK_TIMEOUT_SECONDS:g} seconds."
    if task.cancelled() or task.exception() is not None:
        return "It cannot be reached."
    return task.result()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive. It says nothing about its parts: restarting this process would not mend them."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 when calls can be served; else 503 with what is missing."""
    readiness: Readiness = request.app.state.readiness
    return ready_answer(await readiness.missing())


def ready_answer(missing: dict[str, str]) -> Response:
    """The answer of `/readyz`, also for a server without FastAPI."""
    if not missing:
        return JSONResponse({"status": "ready", "missing": []})
    content = {"status": "unavailable", "missing": [{"part": part, "reason": why} for part, why in missing.items()]}
    return JSONResponse(content, 503, {"retry-after": "1"})


def internal_app(parts: Parts, readiness: Readiness | None = None, registry: CollectorRegistry = REGISTRY) -> FastAPI:
    """The application of the internal port: the probes, and `/metrics` for Prometheus.

    `readiness` is the one of the public application, so that both say the same while draining.
    """
    app = FastAPI(title="Tollgate, internal port", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.parts = parts
    app.state.readiness = readiness or Readiness(parts)
    install(app)
    app.include_router(router)
    metrics: dict[str, Any] = {"include_in_schema": False, "dependencies": [Depends(public_route)]}

    @app.get("/metrics", **metrics)
    async def read_metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app
