"""A whole Tollgate inside a test: the gateway on a real port and the worker, over the servers of the test session."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import structlog
from pydantic import SecretStr

from billing.store.engine import make_engine
from gateway import worker
from gateway.app import Tollgate
from gateway.keys import issue_operator_key
from gateway.retries import RetryBudget
from gateway.server import PublicServer, config_of
from gateway.settings import Settings
from gateway.telemetry import BACKENDS, configure_logging
from models.money import parse_amount
from tests.conftest import MakeDatabase, RedisProcess

PEPPER = "a pepper of tests that is long enough to be one"
ALWAYS = "2020-01-01T00:00:00Z"
"""Since when prices are in force: also for a gateway whose clock goes back."""
PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
HASTE: dict[str, Any] = {"_LINGER_SECONDS": 0.05, "_WAIT_MS": 100}
"""The program's worker waits half a second for more to book at once, and as long before it sees that it is to stop."""
_numbers = itertools.count(1)


def mistyped(key: str) -> str:
    """A key with another last character than it has: unknown, whatever it ends with."""
    return key[:-1] + ("1" if key.endswith("0") else "0")


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = 15.0) -> Any:
    """The first true answer of `condition`; fails when there is none in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = await condition()
        if answer:
            return answer
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not so within {seconds} s: {condition}")
        await asyncio.sleep(0.02)


async def listed(client: httpx.AsyncClient, base_url: str, admin_headers: dict[str, str]) -> list[dict[str, Any]]:
    """All charges of an organization that are in Postgres now, page by page."""
    found: list[dict[str, Any]] = []
    params = {"limit": "100"}
    while True:
        answer = await client.get(f"{base_url}/v1/billing/charges", headers=admin_headers, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["data"]
        if not page["has_more"]:
            return found
        params["after"] = page["last_id"]


@dataclass(slots=True)
class Tenant:
    """An organization with one project and its keys."""

    organization_id: str
    project_id: str
    api_key: str
    admin_key: str

    @property
    def headers(self) -> dict[str, str]:
        """Credentials of a developer."""
        return {"authorization": f"Bearer {self.api_key}"}

    @property
    def admin_headers(self) -> dict[str, str]:
        """Credentials of an administrator."""
        return {"authorization": f"Bearer {self.admin_key}"}


@dataclass(slots=True)
class Listener:
    """A streamed call as its client sees it; `task` ends with the stream."""

    task: asyncio.Task[None] = field(init=False)
    status: int = 0
    call_id: str = ""
    text: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the stream ended as a complete one does."""
        return self.text.endswith("data: [DONE]\n\n")


async def all_hear(listeners: list[Listener], words: str) -> None:
    """Wait until each listener has heard these words."""

    async def heard() -> bool:
        silent = [listener for listener in listeners if words not in listener.text]
        for listener in silent:
            assert not listener.task.done(), f"{listener.status}, and not '{words}': {listener.text}"
        return not silent

    await eventually(heard)


@dataclass(slots=True)
class Stage:
    """What a test holds of a running Tollgate."""

    app: Tollgate
    settings: Settings
    base_url: str
    client: httpx.AsyncClient
    operator_headers: dict[str, str]
    _worker: asyncio.Task[None] | None = None
    _worker_stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def operate(self, method: str, path: str, expect: int = 200, **options: Any) -> Any:
        """Ask the operator API; fails on another status than expected."""
        url = f"{self.base_url}/operator/v1{path}"
        answer = await self.client.request(method, url, headers=self.operator_headers, **options)
        assert answer.status_code in (expect, 201 if expect == 200 else expect), (answer.status_code, answer.text)
        return answer.json()

    async def backend(
        self, url: str, *, kind: str = "llamacpp", model: str = "tiny", known_as: str = "tiny", **more: Any
    ) -> None:
        """Sell `model`, served by a backend of this kind at `url`; `more` is said of the model."""
        name = f"{kind}-{model}".replace("/", "-")
        await self.operate("POST", "/backends", json={"name": name, "kind": kind, "url": url})
        deployment = {"backend": name, "backend_model": known_as, "weight": 1}
        body = {"id": model, "context_length": 4096, "deployments": [deployment], **more}
        await self.operate("POST", "/models", json=body)
        await self.price(model)

    async def price(self, model: str, prices: Mapping[str, str] = PRICES) -> None:
        """Publish prices of a million tokens, by meter."""
        for meter, price in prices.items():
            row = {"book": "default", "model": model, "meter": meter, "currency": "USD", "price_per_million": price}
            await self.operate("POST", "/prices", json=row | {"effective_from": ALWAYS})

    async def tenant(self, credit: str | None = "5", **key: Any) -> Tenant:
        """A prepaid USD organization with this much credit."""
        organization = await self.operate("POST", "/organizations", json={"name": "Acme", "currency": "USD"})
        path = f"/organizations/{organization['id']}"
        project = await self.operate("POST", f"{path}/projects", json={"name": "one"})
        admin_key = await self.operate("POST", f"{path}/admin_keys", json={"name": "admin"})
        api_key = await self.operate("POST", f"/projects/{project['id']}/api_keys", json={"name": "dev", **key})
        if credit is not None:
            grant = {"kind": "paid", "amount": {"amount": credit, "currency": "USD"}}
            await self.operate("POST", f"{path}/credit_grants", json=grant)
        return Tenant(organization["id"], project["id"], api_key["value"], admin_key["value"])

    async def balance(self, tenant: Tenant) -> dict[str, Any]:
        """The balance as the tenant sees it."""
        answer = await self.client.get(f"{self.base_url}/v1/billing/balance", headers=tenant.headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def charges(self, tenant: Tenant, count: int) -> list[dict[str, Any]]:
        """All charges of a tenant, once there are `count` of them in Postgres."""

        charges: list[dict[str, Any]] = []

        async def are_booked() -> bool:
            charges[:] = await self.listed(tenant)
            return len(charges) >= count

        with suppress(AssertionError):
            await eventually(are_booked)
        assert len(charges) == count
        return charges

    async def listed(self, tenant: Tenant) -> list[dict[str, Any]]:
        """All charges of a tenant that are in Postgres now."""
        return await listed(self.client, self.base_url, tenant.admin_headers)

    def chat_options(self, tenant: Tenant, words: str, *, stream: bool) -> dict[str, Any]:
        """How httpx asks the model `m`: a chat of five tokens at most."""
        message = {"role": "user", "content": words}
        body = {"model": "m", "messages": [message], "max_tokens": 5, "stream": stream}
        return {"json": body, "headers": tenant.headers}

    async def chat(self, tenant: Tenant, words: str = "hi") -> httpx.Response:
        """The answer to a plain chat with the model `m`."""
        url = f"{self.base_url}/v1/chat/completions"
        return await self.client.post(url, **self.chat_options(tenant, words, stream=False))

    def listen(self, tenant: Tenant, words: str = "hi", base_url: str | None = None) -> Listener:
        """Start a streamed chat with the model `m`, here or at another gateway."""
        listener = Listener()
        url = f"{base_url or self.base_url}/v1/chat/completions"

        async def hear() -> None:
            options = self.chat_options(tenant, words, stream=True)
            async with self.client.stream("POST", url, **options) as answer:
                listener.status, listener.call_id = answer.status_code, answer.headers["x-request-id"]
                async for piece in answer.aiter_text():
                    listener.text += piece

        listener.task = asyncio.create_task(hear())
        return listener

    async def verified(self, *tenants: Tenant) -> None:
        """Wait until nothing is held of these, and have the whole ledger verified."""
        for tenant in tenants:

            async def is_free(tenant: Tenant = tenant) -> bool:
                return parse_amount((await self.balance(tenant))["held"]["amount"], "USD") == 0

            await eventually(is_free)
        report = await self.operate("GET", "/verify")
        assert report["ok"], report

    async def quiet(self) -> None:
        """Wait until no call runs and no charge waits for the hot store."""

        async def still() -> bool:
            return not self.app.running.drivers and not self.app.running.unsettled

        await eventually(still)

    def take_over(self) -> None:
        """Show this gateway's metrics, and give it a new retry budget, for a test that shares it with others."""
        capacity = self.app.running.capacity
        # Metrics are those of a process; another stage in this one may have taken them over.
        BACKENDS.read = capacity.gauges
        capacity.budget = RetryBudget(1.0, floor=1_000)

    async def start_worker(self) -> None:
        """Run a worker beside the gateway."""
        self._worker_stop.clear()
        self._worker = asyncio.create_task(worker.run_worker(self.settings, self._worker_stop))

    async def stop_worker(self) -> None:
        """Let the worker book what is left, and end."""
        self._worker_stop.set()
        if self._worker is not None:
            await self._worker
            self._worker = None

    async def ready(self) -> None:
        """Wait until the gateway says it is ready."""

        async def is_ready() -> bool:
            return (await self.client.get(f"{self.base_url}/readyz")).status_code == 200

        await eventually(is_ready)


def listening() -> socket.socket:
    """A free port of this machine, for a server that runs in the test's own loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio sets this for sockets that it opened itself alone (uvloop, which the program runs on, for all). Without it
    # each answer that is written in two pieces waits 40 ms for the client's acknowledgement of the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@asynccontextmanager
async def raise_curtain(database_url: str, redis_url: str, **changes: Any) -> AsyncIterator[Stage]:
    """Start gateway and worker; on the way out stop both, the gateway by its drain."""
    settings = Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        key_pepper=SecretStr(PEPPER),
        # Scripted backends count their visitors, and health checks are none that a test expects.
        **{"catalog_refresh_seconds": 0.1, "drain_seconds": 5, "health_check_seconds": 0, **changes},
    )
    engine = make_engine(database_url)
    async with engine.begin() as connection:
        _, operator_key = await issue_operator_key(connection, "test", PEPPER.encode())
    await engine.dispose()
    configure_logging("error")
    app = Tollgate(settings)
    await app.open()
    listener = listening()
    server = PublicServer(config_of(app, http=app.protocol), app.drain)
    serving = asyncio.create_task(server._serve(sockets=[listener]))
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=100)
    try:
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
            stage = Stage(app, settings, base_url, client, {"authorization": f"Bearer {operator_key}"})
            with mock.patch.multiple(worker, **HASTE):
                await stage.start_worker()
                try:
                    await stage.ready()
                    yield stage
                finally:
                    await stage.stop_worker()
    finally:
        server.should_exit = True
        await serving
        await app.close()
        # Tests after this one may look for lines below the level that was set here.
        structlog.reset_defaults()


@asynccontextmanager
async def own_stage(make_database: MakeDatabase, scratch: Path, name: str, **changes: Any) -> AsyncIterator[Stage]:
    """A stage with a database and a Redis of its own, for all tests of a package."""
    database = await make_database(name)
    redis = RedisProcess(scratch / f"redis-{name}-{next(_numbers)}")
    try:
        async with raise_curtain(database.app_url, redis.url, **changes) as stage:
            yield stage
    finally:
        redis.close()
