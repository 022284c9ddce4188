"""The application: opens the parts, puts the metered endpoints before the control routes, serves, and closes."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog
import uvloop
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from billing.hot.store import make_hot_store
from billing.journal.journal import open_journal
from billing.store.engine import make_engine
from billing.tokens import Tokenizers
from gateway import telemetry
from gateway.api import (
    alerts,
    batches,
    billing,
    cors,
    counting,
    documents,
    errors,
    files,
    invoices,
    openai,
    operator,
    organization,
    probes,
    responses_kept,
    webhooks,
)
from gateway.api.counting import COUNTING_PATHS, Counting
from gateway.api.limits import CONTROL_BODY_LIMIT_BYTES, BodyLimit
from gateway.api.openapi import describe_calls
from gateway.auth import KeyRing
from gateway.batches.runner import Batches
from gateway.calls.capacity import Capacity
from gateway.calls.intake import ENDPOINTS, Intake
from gateway.calls.running import Running
from gateway.calls.standing import Standing
from gateway.calls.upstream import Upstreams
from gateway.catalog import CatalogCache
from gateway.clock import Clock
from gateway.health import HealthChecks
from gateway.memory import Memory
from gateway.parts import Parts
from gateway.recovery import Recovery
from gateway.server import InternalServer, PublicProtocol, PublicServer, config_of
from gateway.settings import Settings
from models.ids import uuid7

_log = structlog.get_logger("tollgate.app")

GARBAGE_THRESHOLD = 20_000
"""Objects between two looks for garbage; a call makes a few hundred, and almost none in circles."""

DESCRIPTION = """
Tollgate sells calls of open-source language models. `/v1` is the OpenAI API: point the official SDK at it.
Every call is paid for exactly; its receipt is at `/v1/calls/{call_id}`, and the call id is in `x-request-id`.
"""


def make_api(
    *,
    docs_enabled: bool,
    takes_webhooks: bool = True,
    cors_origins: Sequence[str] = (),
    max_file_bytes: int = CONTROL_BODY_LIMIT_BYTES,
    max_body_bytes: int = CONTROL_BODY_LIMIT_BYTES,
) -> FastAPI:
    """The control routes: everything but the metered endpoints. Unknown routes are refused, never passed on.

    Without a secret of a payment provider there is no route for its webhooks.
    """
    api = FastAPI(
        title="Tollgate",
        version="0.1.0",
        description=DESCRIPTION,
        docs_url="/docs" if docs_enabled else None,
        openapi_url="/openapi.json" if docs_enabled else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # Documents before whatever takes `/invoices/{id}`, which would take `{id}.pdf` for an id.
    for room in (
        openai,
        counting,
        responses_kept,
        files,
        batches,
        documents,
        billing,
        alerts,
        invoices,
        organization,
        operator,
        probes,
    ):
        api.include_router(room.router)
    if takes_webhooks:
        api.include_router(webhooks.router)
    describe_calls(api)
    errors.install(api)
    # These read their body themselves, once their caller is known.
    larger = {("POST", path): max(max_body_bytes, CONTROL_BODY_LIMIT_BYTES) for path in COUNTING_PATHS}
    larger[("POST", files.UPLOAD_PATH)] = max_file_bytes + files.FORM_BYTES
    api.add_middleware(BodyLimit, larger=larger)
    if cors_origins:
        cors.install(api, cors_origins)
    return api


class Tollgate:
    """The public ASGI application. `open` before the first request, `drain` and `close` after the last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        takes_webhooks = bool(settings.payment_webhook_secrets)
        self.api = make_api(
            docs_enabled=settings.docs_enabled,
            takes_webhooks=takes_webhooks,
            cors_origins=settings.cors_origins,
            max_file_bytes=settings.max_file_bytes,
            max_body_bytes=settings.max_body_bytes,
        )
        self.parts: Parts
        self.running: Running
        self._counting: Counting
        self.readiness: probes.Readiness
        self._intake: Intake
        self._batches: Batches
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: everything but the metered endpoints, which `protocol` hands to the call path."""
        await self.api(scope, receive, send)

    def protocol(self, *arguments: Any, **options: Any) -> PublicProtocol:
        """The protocol of the public port, to be handed to uvicorn."""
        settings = self.settings
        return PublicProtocol(
            *arguments,
            metered=self._intake.begin,
            paths=ENDPOINTS,
            body_seconds=settings.body_timeout_seconds,
            body_limit_bytes=settings.max_body_bytes,
            patience={files.UPLOAD_PATH.encode(): settings.upload_timeout_seconds},
            **options,
        )

    async def open(self) -> None:
        """Open all parts and start what runs beside the calls. A part that is away now is awaited, not needed."""
        settings = self.settings
        clock = Clock(settings.clock)
        instance = uuid7(datetime.now(UTC))
        journal = (
            None
            if settings.journal_dir is None
            else open_journal(settings.journal_dir, instance, open_calls=2 * settings.max_running_calls)
        )
        engine = make_engine(settings.database_url.get_secret_value(), application_name="tollgate-gateway")
        hot = await make_hot_store(
            settings.redis_url.get_secret_value(),
            timeout_ms=int(settings.hold_timeout_seconds * 1_000),
            instance=str(instance),
        )
        pepper = settings.key_pepper.get_secret_value().encode()
        health = HealthChecks(clock.now)
        self.parts = Parts(
            settings=settings,
            clock=clock,
            engine=engine,
            hot=hot,
            keys=KeyRing(engine, pepper, clock, settings.key_cache_seconds),
            catalog=CatalogCache(engine, settings.catalog_refresh_seconds),
            memory=Memory(engine, clock, settings.total_timeout_seconds),
            health=health,
        )
        upstreams = Upstreams(settings.connect_timeout_seconds)
        capacity = Capacity(settings, health)
        self.running = Running(settings, hot, upstreams, capacity, Tokenizers(), journal, self.parts.memory)
        catalog, check_seconds = self.parts.catalog, settings.health_check_seconds
        standing = Standing(capacity, lambda: catalog.current, health, check_seconds, clock.now)
        telemetry.BACKENDS.read = capacity.gauges
        self._intake = Intake(self.parts, self.running)
        # Connections of its own: batches never keep a key from being looked up.
        batch_engine = make_engine(settings.database_url.get_secret_value(), application_name="tollgate-batches")
        self._batches = Batches(replace(self.parts, engine=batch_engine), self._intake, self.running)
        self.readiness = probes.Readiness(self.parts)
        self.api.state.parts = self.parts
        self.api.state.counting = self._counting = Counting(self.running.tokenizers)
        self.api.state.readiness = self.readiness
        await self.parts.catalog.refresh(force=True)
        await self.parts.keys.warm_up()
        self._tasks = [
            asyncio.create_task(self.parts.catalog.run(self._stop)),
            asyncio.create_task(self.parts.keys.uses.run(self._stop)),
            asyncio.create_task(self.running.watch(self._stop)),
            asyncio.create_task(self.running.keep_checkpoints(self._stop)),
            asyncio.create_task(self._follow_catalog()),
            asyncio.create_task(self._batches.run(self._stop)),
            asyncio.create_task(standing.run(self._stop)),
        ]
        if journal is not None:
            recovery = Recovery(journal, hot, engine, self.parts.catalog, clock.now, self.running.call_ids)
            self._tasks.append(asyncio.create_task(recovery.run(self._stop)))
        for task in self._tasks:
            task.add_done_callback(_tell_of_death)

    async def _follow_catalog(self) -> None:
        """Load tokenizers whenever the catalog has changed."""
        known = None
        while not self._stop.is_set():
            catalog = self.parts.catalog.current
            if catalog is not known:
                known = catalog
                # Here too, not only with the next call: those who wait must learn of a raised limit.
                self.running.capacity.know(catalog)
                await self.running.tokenizers.load(
                    {model.tokenizer for model in catalog.models.values() if model.tokenizer}
                )
            await asyncio.sleep(self.settings.catalog_refresh_seconds)

    async def drain(self) -> None:
        """Take no new calls, let running ones end, make every charge durable."""
        self._intake.is_draining = True
        self.readiness.drain()
        await self.running.drain(self.settings.drain_seconds)

    def hurry(self) -> None:
        """End the drain: the calls that still run are ended and charged for what was delivered."""
        self.running.hurry()

    async def close(self) -> None:
        """Close all parts, in the reverse order of `open`."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._batches.close()
        if self.running.journal is not None:
            await self.running.journal.close()
        await self._counting.close()
        self.running.upstreams.close()
        self.running.tokenizers.close()
        if self.parts.health is not None:
            await self.parts.health.close()
        await self.parts.hot.close()
        await self.parts.keys.uses.write()
        await self.parts.engine.dispose()


def _tell_of_death(task: asyncio.Task[Any]) -> None:
    """What runs beside the calls must not end unnoticed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background_work_ended", name=getattr(task.get_coro(), "__qualname__", ""), exc_info=error)


def serve(settings: Settings, on_ready: Callable[[int, int], None] | None = None) -> None:
    """Run the gateway until SIGTERM or SIGINT; raises `OSError` where a port is taken.

    `on_ready` is told the public and the internal port, which the system picks where they are 0.
    """
    telemetry.configure_logging(settings.log_level)
    uvloop.run(_serve(settings, on_ready))


async def _serve(settings: Settings, on_ready: Callable[[int, int], None] | None) -> None:
    public_socket = _listen(settings.host, settings.port)
    internal_socket = _listen(settings.internal_host, settings.internal_port)
    app = Tollgate(settings)
    await app.open()
    internal = InternalServer(config_of(probes.internal_app(app.parts, app.readiness), http="httptools"))
    public = PublicServer(config_of(app, http=app.protocol), app.drain, app.hurry)
    internal_task = asyncio.create_task(internal.serve(sockets=[internal_socket]))
    ports = public_socket.getsockname()[1], internal_socket.getsockname()[1]
    _log.info("listening", host=settings.host, port=ports[0])
    if on_ready is not None:
        on_ready(*ports)
    # What is open now lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 50, 50)
    try:
        await public.serve(sockets=[public_socket])
    finally:
        internal.should_exit = True
        await internal_task
        await app.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2_048)
    listener.setblocking(False)
    return listener
