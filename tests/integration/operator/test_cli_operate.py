"""The operator's commands against a gateway that answers over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner

from gateway.cli import operate
from tests.integration.operator.world import World

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The command line of an operator whose gateway is at `url`."""

    url: str
    operator_key: str

    async def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        app = typer.Typer()
        operate.register(app)
        env = {"TOLLGATE_URL": self.url, "TOLLGATE_OPERATOR_KEY": self.operator_key} | environment
        result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=env)
        return result.exit_code, result.output

    async def answer(self, *arguments: str) -> Any:
        """The JSON that a command prints, which must succeed."""
        code, output = await self.run(*arguments, "--json")
        assert code == 0, output
        return json.loads(output)


@pytest.fixture
async def command_line(app: FastAPI, world: World) -> AsyncIterator[CommandLine]:
    """A command line, and a gateway on a free port for it."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield CommandLine(f"http://127.0.0.1:{listener.getsockname()[1]}", world.operator_key)
    finally:
        server.should_exit = True
        await serving
        listener.close()


@pytest.mark.usefixtures("open_shards")
async def test_a_customer_from_the_first_command_to_the_last(command_line: CommandLine) -> None:
    organization = await command_line.answer("org", "create", "Acme", "--currency", "EUR", "--country", "DE")
    assert (organization["name"], organization["currency"], organization["country"]) == ("Acme", "EUR", "DE")
    granted = await command_line.answer("org", "grant", organization["id"], "25.00")
    assert granted["amount"] == {"amount": "25.000000000", "currency": "EUR"}
    balance = await command_line.answer("org", "balance", organization["id"])
    assert balance["available"] == granted["amount"]

    project = await command_line.answer("project", "create", organization["id"], "Web", "--requests-per-minute", "9")
    assert project["limits"]["requests_per_minute"] == 9
    assert await command_line.answer("project", "list", organization["id"]) == [project]
    key = await command_line.answer("key", "create", project["id"], "server", "--expires-at", "2099-01-01")
    assert key["value"].startswith("tg_live_")
    revoked = await command_line.answer("key", "revoke", project["id"], key["id"])
    assert revoked["revoked_at"] is not None
    assert await command_line.answer("key", "list", project["id"]) == [revoked]

    closed = await command_line.answer("org", "close", organization["id"], "--yes")
    assert closed["closed_at"] is not None
    assert await command_line.answer("org", "list") == [closed]
    assert await command_line.answer("org", "show", organization["id"]) == closed


async def test_a_model_from_its_server_to_its_price(command_line: CommandLine) -> None:
    backend = await command_line.answer("backend", "add", "gpu-1", "http://127.0.0.1:9/v1", "--kind", "vllm")
    assert backend["url"] == "http://127.0.0.1:9"
    model = await command_line.answer(
        "model", "add", "acme/tiny", "--backend", "gpu-1=served", "--context-length", "4096"
    )
    assert model["deployments"] == [{"backend": "gpu-1", "backend_model": "served", "weight": 1}]
    prices = await command_line.answer("price", "set", "acme/tiny", "--input", "0.15", "--output", "0.60")
    assert [each["price_per_million"] for each in prices] == ["0.150000", "0.600000"]
    assert await command_line.answer("price", "list", "--model", "acme/tiny") == prices
    assert (await command_line.answer("model", "remove", "acme/tiny"))["disabled_at"] is not None
    assert (await command_line.answer("backend", "remove", "gpu-1"))["disabled_at"] is not None
    assert len(await command_line.answer("model", "list")) == len(await command_line.answer("backend", "list")) == 1


async def test_people_get_tables_and_sentences(command_line: CommandLine, world: World) -> None:
    code, output = await command_line.run("org", "list")
    assert (code, output) == (0, "Nothing there yet.\n")
    organization = await world.organization(name="A [bold] name")
    code, output = await command_line.run("org", "list")
    assert code == 0
    assert organization["id"] in output
    assert "A [bold] name" in output
    code, output = await command_line.run("org", "show", organization["id"])
    assert "0.000000000 USD" in output


async def test_refusals_are_sentences(command_line: CommandLine, world: World) -> None:
    organization = await world.organization()
    code, output = await command_line.run("org", "show", "00000000-0000-0000-0000-000000000000")
    assert (code, output) == (2, "Refused: There is no such organization.\n")
    code, output = await command_line.run("org", "grant", organization["id"], "a-lot")
    assert code == 2
    assert "decimal" in output
    code, output = await command_line.run("org", "list", TOLLGATE_OPERATOR_KEY="tg_op_wrong")
    assert code == 1
    assert "No valid API key" in output
    code, output = await command_line.run("org", "close", organization["id"])
    assert code == 1, "nobody said yes"


async def test_the_way_in_is_found_in_up_json(command_line: CommandLine, world: World, tmp_path: Path) -> None:
    up = {"base_url": command_line.url, "operator_key": command_line.operator_key}
    (tmp_path / "up.json").write_text(json.dumps(up))
    organization = await world.organization()
    nothing = {"TOLLGATE_URL": "", "TOLLGATE_OPERATOR_KEY": ""}
    code, output = await command_line.run("org", "list", "--json", "--data-dir", str(tmp_path), **nothing)
    assert code == 0
    assert json.loads(output) == [organization]


async def test_lists_are_read_to_their_end(command_line: CommandLine, world: World) -> None:
    async with world.parts.engine.begin() as connection:
        await connection.exec_driver_sql(
            "insert into backend (id, name, kind, url) select gen_random_uuid(), 'b' || n, 'vllm', 'http://h'"
            " from generate_series(1, 201) n"
        )
    assert len(await command_line.answer("backend", "list")) == 201
