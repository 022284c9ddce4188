"""F04: after requests of every kind, no secret is in a log line, a metric or the body of an error."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog
from fastapi import FastAPI

from gateway.api.probes import internal_app
from gateway.keys import digest
from gateway.parts import Parts
from gateway.telemetry import configure_logging
from tests.integration.billing_api.world import World
from tests.rooms import PEPPER

pytestmark = pytest.mark.anyio


@pytest.fixture
def log() -> Iterator[io.BytesIO]:
    """All log lines of a test; the logging of the test run is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    lines = io.BytesIO()
    configure_logging("debug", lines)
    yield lines
    configure_logging("info", io.BytesIO())
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def _forms(secret: str) -> tuple[str, ...]:
    hashed = digest(secret, PEPPER)
    return secret, base64.b64encode(secret.encode()).decode(), hashed.hex(), base64.b64encode(hashed).decode()


async def test_no_secret_leaves(world: World, app: FastAPI, parts: Parts, log: io.BytesIO) -> None:
    @app.get("/breaks")
    async def breaks(key: str) -> None:
        raise RuntimeError(f"the key was {key}")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    secrets = (world.ours.api_key, world.ours.admin_key, world.operator_key)
    bodies: list[str] = []
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for secret in secrets:
            known = {"x-api-key": secret}
            for path in ("/v1/billing/balance", "/operator/v1/exports/charges", f"/v1/calls/{secret}"):
                bodies.append((await client.get(path, headers=known)).text)
            for params in ({"api_key": secret}, {"after": secret}, {"model": f"\0{secret}"}):
                bodies.append((await client.get("/v1/billing/charges", params=params, headers=known)).text)
                bodies.append((await client.get("/v1/billing/charges", params=params)).text)
            two = {"authorization": f"Bearer {secret}x", "x-api-key": secret}
            bodies.append((await client.get("/v1/billing/balance", headers=two)).text)
            bodies.append((await client.get("/breaks", params={"key": secret})).text)
            bodies.append((await client.get(f"/{secret}")).text)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(internal_app(parts)), base_url="http://test") as client:
        bodies.append((await client.get("/metrics")).text)
    structlog.get_logger().warning("flush")
    text = log.getvalue().decode() + "".join(bodies)
    assert "unexpected_error" in text
    leaks = [form for secret in secrets for form in _forms(secret) if form in text]
    assert leaks == []
    assert PEPPER.decode() not in text
