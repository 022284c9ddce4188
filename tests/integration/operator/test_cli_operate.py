"""The operator's commands against a gateway that answers over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import typer
from fastapi import FastAPI
from sqlalchemy import insert
from typer.testing import CliRunner

from gateway.cli import operate
from gateway.cli.addresses import STRANGE_KEY
from models.ids import uuid7
from models.tables import charge
from tests.conftest import Database
from tests.integration.operator.world import World
from tests.integration.test_up_discovery import serving
from tests.rooms import PEPPER, on_free_port

pytestmark = pytest.mark.anyio

MONTH = datetime(2026, 1, 15, tzinfo=UTC)


async def add_call(
    world: World,
    organization_id: str,
    version_ids: list[UUID],
    *,
    tokens: tuple[int, int],
    amount: int,
    batch: bool = False,
) -> None:
    """A booked charge of the month, without the rest of the book."""
    texts = dict.fromkeys(("endpoint", "deployment"), "x")
    ids = {name: uuid4() for name in ("project_id", "api_key_id")} | {"organization_id": UUID(organization_id)}
    numbers = {"input_tokens": tokens[0], "output_tokens": tokens[1], "amount": amount, "hold": amount}
    numbers |= dict.fromkeys(("cached_tokens", "cache_write_tokens", "reasoning_tokens"), 0)
    fixed = {"currency": "USD", "streamed": False, "ending": "finished", "usage_source": "backend", "posting_id": 1}
    row = {"call_id": uuid7(MONTH), "created_at": MONTH, "ended_at": MONTH, "funding": [], "model": "tiny"}
    async with world.parts.engine.begin() as connection:
        values = texts | ids | numbers | fixed | row | {"price_version_ids": version_ids, "batch": batch}
        await connection.execute(insert(charge).values(values))


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
    async with on_free_port(app) as url:
        yield CommandLine(url, world.operator_key)


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
    bound = ("--network", "10.0.0.0/8", "--endpoint", "/v1/embeddings")
    key = await command_line.answer("key", "create", project["id"], "server", "--expires-at", "2099-01-01", *bound)
    assert (key["networks"], key["endpoints"]) == (["10.0.0.0/8"], ["/v1/embeddings"])
    successor = await command_line.answer("key", "rotate", project["id"], key["id"], "--overlap-seconds", "60")
    assert successor["networks"] == key["networks"]
    revoked = await command_line.answer("key", "revoke", project["id"], key["id"])
    assert revoked["revoked_at"] is not None
    listed = await command_line.answer("key", "list", project["id"])
    assert [each["id"] for each in listed][1:] == [key["id"], successor["id"]]

    closed = await command_line.answer("org", "close", organization["id"], "--yes")
    assert closed["closed_at"] is not None
    assert await command_line.answer("org", "list") == [closed]
    assert await command_line.answer("org", "show", organization["id"]) == closed


async def test_the_first_operator_key_comes_from_the_settings_of_a_gateway(
    command_line: CommandLine, world: World, postgres: Database
) -> None:
    organization = await world.organization()
    settings = {"TOLLGATE_DATABASE_URL": postgres.app_url, "TOLLGATE_REDIS_URL": "redis://127.0.0.1:1"}
    settings["TOLLGATE_KEY_PEPPER"] = PEPPER.decode()
    code, output = await command_line.run("key", "operator", "Ada", "--json", **settings)
    assert code == 0, output
    first = json.loads(output)
    code, output = await command_line.run("org", "list", "--json", TOLLGATE_OPERATOR_KEY=first["value"])
    assert (code, json.loads(output)) == (0, [organization])

    away = settings | {"TOLLGATE_DATABASE_URL": "postgresql://app:s3cr3t@127.0.0.1:1/none"}
    code, output = await command_line.run("key", "operator", "Ada", **away)
    assert (code, "no key was made" in output, "s3cr3t" in output) == (1, True, False)


async def test_a_model_from_its_server_to_its_price(command_line: CommandLine) -> None:
    backend = await command_line.answer("backend", "add", "gpu-1", "http://127.0.0.1:9/v1", "--kind", "vllm")
    assert backend["url"] == "http://127.0.0.1:9"
    model = await command_line.answer(
        "model", "add", "acme/tiny", "--backend", "gpu-1=served", "--context-length", "4096"
    )
    plain = {"weight": 1, "priority": 0, "pool": None}
    assert model["deployments"] == [{"backend": "gpu-1", "backend_model": "served"} | plain]
    prices = await command_line.answer("price", "set", "acme/tiny", "--input", "0.15", "--output", "0.60")
    assert [each["price_per_million"] for each in prices] == ["0.150000", "0.600000"]
    # Published at one moment, so their ids are in no order.
    listed = await command_line.answer("price", "list", "--model", "acme/tiny")
    assert sorted(listed, key=lambda each: str(each["meter"])) == prices
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
    assert output == f"The gateway at {command_line.url} {STRANGE_KEY}\n"
    code, output = await command_line.run("price", "set", "no-such-model", "--input", "1")
    assert (code, output) == (2, "Refused: There is no such model.\n")
    code, output = await command_line.run("org", "close", organization["id"])
    assert code == 1, "nobody said yes"


@pytest.mark.usefixtures("open_shards")
async def test_a_change_without_a_change_shows_what_there_is(command_line: CommandLine, world: World) -> None:
    organization = await world.organization()
    assert await command_line.answer("org", "update", organization["id"]) == organization


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


async def test_a_price_list_goes_out_and_comes_back(command_line: CommandLine, world: World, tmp_path: Path) -> None:
    await world.model()
    await command_line.answer("price", "set", "tiny", "--input", "0.15", "--minimum", "0.0001")
    path = tmp_path / "prices.csv"
    code, output = await command_line.run("price", "export", "--book", "default", "--out", str(path))
    assert (code, output) == (0, f"{path}: 2 prices.\n")
    printed = await command_line.run("price", "export")
    # The runner of the test makes line ends plain.
    assert printed == (0, path.read_bytes().decode().replace("\r\n", "\n"))

    # Without dates: from now on.
    path.write_text(
        "model,meter,currency,scheme,price,tiers\n"
        "tiny,input,USD,volume,,1000=0.2 more=0.1\n"
        "tiny,minimum,USD,unit,0.0001,\n"
    )
    code, output = await command_line.run("price", "import", str(path), "--dry-run")
    assert code == 0, output
    assert output.startswith("Would be published: 1. Given an end: 0. Unchanged: 1.\n")
    assert "1000=0.200000, more=0.100000" in output
    assert await world.count("price_version") == 2
    done = await command_line.answer("price", "import", str(path))
    assert (len(done["published"]), done["unchanged"]) == (1, 1)
    again = await command_line.run("price", "import", str(path))
    assert again == (0, "Published: 0. Given an end: 0. Unchanged: 2.\n")

    path.write_text("model,meter,currency,price\ntiny,smiles,USD,1\n")
    code, output = await command_line.run("price", "import", str(path))
    assert code == 2
    assert output.startswith("Refused: Line 2: meter must be one of")


async def test_prices_that_are_set_together_begin_at_one_moment_or_not_at_all(
    command_line: CommandLine, world: World
) -> None:
    await world.model()
    later = ("--input", "2", "--from", "2099-01-01")
    first = await command_line.answer("price", "set", "tiny", "--input", "1", "--request", "250")
    assert len({price["effective_from"] for price in first}) == 1
    assert [price["price_per_million"] for price in first] == ["1.000000", "250.000000"]
    code, output = await command_line.run("price", "set", "tiny", "--output", "a lot", *later)
    assert (code, output) == (2, "--output: an amount is a decimal string such as '12.34', not 'a lot'.\n")
    await command_line.answer("price", "set", "tiny", "--output", "3", "--from", "2099-01-01")
    code, output = await command_line.run("price", "set", "tiny", "--output", "4", *later)
    assert (code, "Nothing was published." in output) == (2, True)
    assert await world.count("price_version") == 3
    unchanged = await command_line.run("price", "set", "tiny", "--input", "1")
    assert unchanged == (0, "In force already: 1.\n")


async def test_a_dry_run_shows_each_organization(command_line: CommandLine, world: World, tmp_path: Path) -> None:
    await world.model()
    await command_line.answer("price", "set", "tiny", "--input", "0.15", "--output", "0.60")
    organization = await world.organization(name="Acme")
    async with world.parts.engine.connect() as connection:
        rows = await connection.exec_driver_sql("select id from price_version")
        version_ids = sorted(rows.scalars())
    await add_call(world, organization["id"], version_ids, tokens=(1_000, 100), amount=210_000)
    path = tmp_path / "drafts.csv"
    path.write_text("model,meter,currency,price\ntiny,output,USD,1.2\n")
    span = ("--csv", str(path), "--from", "2026-01-01", "--to", "2026-02-01")
    result = await command_line.answer("price", "dry-run", *span)
    [one] = result["organizations"]
    figures = {name: one[name]["amount"] for name in ("charged", "would_be", "difference")}
    assert figures == {"charged": "0.000210000", "would_be": "0.000270000", "difference": "0.000060000"}
    assert (one["name"], one["calls"], result["totals"][0]["calls"]) == ("Acme", 1, 1)
    assert (result["from"], result["to"]) == ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    code, output = await command_line.run("price", "dry-run", *span)
    assert code == 0
    [header, row, total] = [line.split() for line in output.splitlines()]
    assert header == ["name", "calls", "charged", "would", "be", "difference"]
    assert row == ["Acme", "1", "0.000210000", "USD", "0.000270000", "USD", "0.000060000", "USD"]
    assert total[:3] == ["All", "in", "USD"]
    assert await world.count("price_version") == 2


async def test_a_batch_book_is_tried_and_named(command_line: CommandLine, world: World) -> None:
    await world.model()
    await command_line.answer("price", "set", "tiny", "--input", "0.15", "--output", "0.60")
    organization = await world.organization(name="Acme")
    async with world.parts.engine.connect() as connection:
        rows = await connection.exec_driver_sql("select id from price_version")
        version_ids = sorted(rows.scalars())
    await add_call(world, organization["id"], version_ids, tokens=(1_000, 100), amount=210_000)
    await add_call(world, organization["id"], version_ids, tokens=(1_000, 100), amount=210_000, batch=True)
    made = await command_line.answer("price", "add-book", "night", "--parent", "default")
    assert made["batch_book"] is None
    await command_line.answer("price", "set", "tiny", "--input", "0.05", "--book", "night")

    span = ("--from", "2026-01-01", "--to", "2026-02-01")
    result = await command_line.answer("price", "dry-run", "--batch-book", "default=night", *span)
    amounts = {name: result["totals"][0]["batches"][name]["amount"] for name in ("charged", "would_be")}
    assert amounts == {"charged": "0.000210000", "would_be": "0.000110000"}
    assert result["totals"][0]["batches"]["calls"] == 1
    code, output = await command_line.run("price", "dry-run", "--batch-book", "default=night", *span)
    assert code == 0
    assert [line.split()[:5] for line in output.splitlines()[1:]] == [
        ["Acme", "2", "0.000420000", "USD", "0.000320000"],
        ["of", "which", "in", "batches", "1"],
        ["All", "in", "USD", "2", "0.000420000"],
        ["of", "which", "in", "batches", "1"],
    ]

    assert (await command_line.answer("price", "batch-book", "default", "night"))["batch_book"] == "night"
    assert [one["batch_book"] for one in await command_line.answer("price", "books")] == ["night", None]
    assert (await command_line.answer("price", "batch-book", "default"))["batch_book"] is None
    made = await command_line.answer("price", "add-book", "partners", "--batch-book", "night")
    assert made["batch_book"] == "night"
    code, output = await command_line.run("price", "batch-book", "no-such", "night")
    assert (code, output) == (2, "Refused: There is no such price book. List them to find its name.\n")
    code, output = await command_line.run("price", "batch-book", "default", "no-such")
    assert (code, output.startswith("Refused (batch_book): ")) == (2, True)


async def test_books_and_allowances(command_line: CommandLine) -> None:
    book = await command_line.answer("price", "add-book", "partners", "--parent", "default")
    assert [one["id"] for one in await command_line.answer("price", "books")] == ["default", book["id"]]
    made = await command_line.answer("price", "add-allowance", "partners", "5.00")
    assert await command_line.answer("price", "allowances", "--book", "partners") == [made]
    ended = await command_line.answer("price", "end-allowance", made["id"])
    assert ended["ended_at"] is not None


async def test_an_operator_moves_callers_and_plans_maintenance(command_line: CommandLine, world: World) -> None:
    with serving({"/v1/models": {"data": [{"id": "one", "owned_by": "vllm", "max_model_len": 8192}]}}) as root:
        backend = await command_line.answer("backend", "add", root, "--create-models", "--region", "eu")
        assert (backend["kind"], backend["region"]) == ("vllm", "eu")
        found = await command_line.answer("backend", "discover", backend["name"])
        assert [each["id"] for each in found["models"]] == ["one"]
        taken = await command_line.answer("backend", "take", backend["name"], "--model", "one")
        assert taken["known"] == ["one"]
        assert (await command_line.answer("backend", "take", backend["name"]))["known"] == ["one"]
    published = await command_line.answer("price", "markup", "one", "12.5", "--input", "0.10", "--output", "0.40")
    assert [each["price_per_million"] for each in published["data"]] == ["0.112500", "0.450000"]
    await command_line.answer("model", "add", "two", "--backend", backend["name"], "--context-length", "4096")
    deployed = await command_line.answer("model", "deploy", "two", f"{backend['name']}=x", "--priority", "1")
    assert [each["backend_model"] for each in deployed["deployments"]] == ["two", "x"]
    removed = await command_line.answer("model", "deploy", "two", f"{backend['name']}=x", "--remove")
    assert [each["backend_model"] for each in removed["deployments"]] == ["two"]
    assert (await command_line.run("model", "deploy", "two", f"{backend['name']}=x", "--remove"))[0] == 2
    ruled = await command_line.answer("model", "fallback", "two", "one", "--priced-as", "fallback")
    assert ruled["fallback"] == {"model": "one", "priced_as": "fallback", "when_full": False}
    assert (await command_line.answer("model", "fallback", "two"))["fallback"] is None
    await command_line.answer("alias", "add", "chat", "one", "--prices-of", "one")
    moved = await command_line.answer("alias", "move", "chat", "one=90", "two=10")
    assert [each["weight"] for each in moved["targets"]] == [90, 10]
    assert [each["model"] for each in (await command_line.answer("alias", "back", "chat"))["targets"]] == ["one"]
    code, output = await command_line.run("alias", "list")
    assert (code, "one ×1" in output) == (0, True)
    assert (await command_line.run("alias", "move", "chat", "one=half"))[0] == 2
    assert (await command_line.answer("alias", "remove", "chat"))["disabled_at"] is not None
    times = ("--from", "2099-01-10T02:00:00Z", "--to", "2099-01-10T04:00:00Z")
    planned = await command_line.answer("maintenance", "plan", backend["name"], *times)
    assert planned["state"] == "planned"
    assert (await command_line.answer("maintenance", "cancel", planned["id"]))["state"] == "cancelled"
    assert [each["id"] for each in await command_line.answer("maintenance", "list")] == [planned["id"]]
    organization = await world.organization()
    routed = await command_line.answer("org", "route", organization["id"], "--region", "eu", "--pool", "acme")
    assert (routed["regions"], routed["pool"], routed["uses_shared"]) == (["eu"], "acme", True)


async def test_a_path_in_the_address_of_a_provider_is_where_its_api_is(command_line: CommandLine) -> None:
    provider = ("backend", "add", "openrouter", "https://openrouter.ai/api/v1", "--kind", "openai")
    backend = await command_line.answer(*provider)
    assert (backend["name"], backend["url"], backend["path_prefix"]) == (
        "openrouter",
        "https://openrouter.ai",
        "/api/v1",
    )
