"""The commands `alert` against a gateway that answers over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from billing.notices import notice
from gateway import destinations
from gateway.cli import make_app
from tests.integration.webhooks.world import Customer, Payments
from tests.rooms import on_free_port

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

Run = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
async def run(app: FastAPI, payments: Payments, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """A command line whose gateway is on a free port; every name is that of a public host."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    monkeypatch.setattr(destinations, "resolve", resolve)
    async with on_free_port(app) as url:
        environment = {"TOLLGATE_URL": url, "TOLLGATE_OPERATOR_KEY": payments.operator_key}

        async def run(*arguments: str) -> tuple[int, str]:
            result = await asyncio.to_thread(CliRunner().invoke, make_app(), ["alert", *arguments], env=environment)
            return result.exit_code, result.output

        yield run


async def answer(run: Run, *arguments: str) -> Any:
    code, output = await run(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


async def test_endpoints_are_added_listed_and_removed(run: Run, customer: Customer) -> None:
    address = "https://example.com/alerts"
    added = await answer(run, "endpoint", "add", address, "--event", "balance.low", "--organization", customer.id)
    assert (added["url"], added["events"], added["organization_id"]) == (address, ["balance.low"], customer.id)
    assert added["value"].startswith("tg_hook_")
    (listed,) = await answer(run, "endpoint", "list")
    assert listed == {name: value for name, value in added.items() if name != "value"}
    removed = await answer(run, "endpoint", "remove", added["id"])
    assert removed["removed_at"] is not None
    code, output = await run("endpoint", "list")
    assert code == 0
    assert address in output


async def test_a_wrong_address_is_refused_with_a_sentence(run: Run) -> None:
    code, output = await run("endpoint", "add", "http://example.com/alerts")
    assert code == 2
    assert "must be a plain https URL" in output


async def test_alerts_are_listed(run: Run, payments: Payments, customer: Customer) -> None:
    await payments.made(f"/organizations/{customer.id}", {"low_balance": {"amount": "5", "currency": "USD"}})
    assert await notice(payments.parts.engine, payments.parts.clock.now()) == 1
    (alert,) = await answer(run, "list", "--organization", customer.id)
    assert (alert["event"], alert["organization_id"]) == ("balance.low", customer.id)
    assert await answer(run, "list", "--event", "credit_grant.used_up") == []
    code, output = await run("list")
    assert code == 0
    assert "balance.low" in output
