"""`export`, `verify` and `doctor` as commands: what they write, what they print, and how they end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import text
from typer.testing import CliRunner

from billing.store.engine import make_engine
from gateway.cli import make_app
from gateway.cli.addresses import STRANGE_KEY
from gateway.embedded.redis import Redis
from tests.conftest import Database
from tests.integration.billing_api.world import World, make_charge
from tests.rooms import on_free_port

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    error: str


async def _tollgate(*arguments: str | Path, **environment: str) -> Ended:
    """Run the command line in this process, beside the application, with nothing of our environment in it."""
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("TOLLGATE_")}
    result = await asyncio.to_thread(
        CliRunner().invoke, make_app(), [*map(str, arguments)], env=clean | environment, prog_name="tollgate"
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return Ended(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands configure logging for their whole process, which here is that of all tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def served(app: FastAPI, world: World) -> AsyncIterator[str]:
    """The application on a real port; answers its address."""
    async with on_free_port(app) as url:
        yield url


@pytest.fixture
def data_dir(tmp_path: Path, postgres: Database, served: str, world: World, redis: Redis) -> Path:
    """A data directory as `tollgate up` leaves it."""
    up = {"base_url": served, "operator_key": world.operator_key}
    up |= {"database_url": postgres.app_url, "redis_url": redis.url}
    (tmp_path / "up.json").write_text(json.dumps(up))
    return tmp_path


async def test_export_writes_the_file_and_its_manifest(world: World, served: str, tmp_path: Path) -> None:
    await world.book(*(make_charge(world.ours) for _ in range(3)))
    out = tmp_path / "march.csv"
    way = {"TOLLGATE_URL": served, "TOLLGATE_OPERATOR_KEY": world.operator_key}
    first = await _tollgate("export", "charges", "--from", "2026-03-01", "--to", "2026-04-01", "--out", out, **way)
    assert first.code == 0, first.error
    assert "3 charges, 0.000002100 USD" in first.out
    file = out.read_bytes()
    manifest = json.loads((tmp_path / "march.csv.manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(file).hexdigest()
    again = await _tollgate("export", "charges", "--watermark", "1", "--out", out, "--json", **way)
    assert json.loads(again.out)["rows"] == 3
    assert out.read_bytes() == file
    assert sorted(os.listdir(tmp_path)) == ["march.csv", "march.csv.manifest.json"]


async def test_export_finds_a_running_tollgate_by_its_data_directory(data_dir: Path) -> None:
    ended = await _tollgate("export", "charges", "--out", data_dir / "all.csv", "--data-dir", data_dir, "--excel")
    assert ended.code == 0, ended.error
    assert (data_dir / "all.csv").read_bytes().startswith(b"\xef\xbb\xbf")


async def test_export_refuses_with_a_sentence(world: World, served: str, tmp_path: Path) -> None:
    out, way = tmp_path / "x.csv", {"TOLLGATE_URL": served, "TOLLGATE_OPERATOR_KEY": world.operator_key}
    wrong_key = await _tollgate("export", "charges", "--out", out, **way | {"TOLLGATE_OPERATOR_KEY": "tg_op_wrong"})
    assert (wrong_key.code, STRANGE_KEY in wrong_key.error) == (1, True)
    away = await _tollgate("export", "charges", "--out", out, **way | {"TOLLGATE_URL": "http://127.0.0.1:1"})
    assert (away.code, "does not answer" in away.error) == (1, True)
    ahead = await _tollgate("export", "charges", "--watermark", "99", "--out", out, **way)
    assert (ahead.code, "The book ends at watermark 0" in ahead.error) == (2, True)
    for arguments in (["--from", "March"], ["--org", "nobody"]):
        assert (await _tollgate("export", "charges", "--out", out, *arguments, **way)).code == 2
    assert (await _tollgate("export", "secrets", "--out", out, **way)).code == 2
    unwritable = await _tollgate("export", "charges", "--out", tmp_path / "no" / "x.csv", **way)
    assert (unwritable.code, "cannot be written" in unwritable.error) == (1, True)
    nowhere = await _tollgate("export", "charges", "--out", out, "--data-dir", tmp_path)
    assert (nowhere.code, "tollgate up" in nowhere.error) == (2, True)
    assert os.listdir(tmp_path) == []
    for ended in (wrong_key, away, ahead, unwritable, nowhere):
        assert world.operator_key not in ended.out + ended.error
        assert "Traceback" not in ended.error


async def test_verify_and_doctor_without_an_environment(data_dir: Path, postgres: Database) -> None:
    verified = await _tollgate("verify", "--json", "--data-dir", data_dir)
    assert verified.code == 0, verified.out + verified.error
    report = json.loads(verified.out)
    assert report["ok"]
    assert all(check["ok"] for check in report["checks"])
    table = await _tollgate("verify", "--data-dir", data_dir)
    assert "Every promise holds" in table.out
    # The servers of the tests have a usual password, so the doctor is never content with them.
    examined = await _tollgate("doctor", "--json", "--data-dir", data_dir)
    assert examined.code == 1
    faults = {one["check"] for one in json.loads(examined.out)["findings"] if not one["ok"]}
    assert faults == {"database_url", "redis_url"}
    assert "FAILED" in (await _tollgate("doctor", "--data-dir", data_dir)).out


async def test_verify_ends_with_1_on_a_tampered_ledger(data_dir: Path, postgres: Database) -> None:
    engine = make_engine(postgres.owner_url)
    async with engine.begin() as connection:
        await connection.execute(text("update credit_grant set remaining = remaining - 1"))
    await engine.dispose()
    ended = await _tollgate("verify", "--json", "--data-dir", data_dir)
    assert ended.code == 1
    report = json.loads(ended.out)
    assert not report["ok"]
    [grants] = [check for check in report["checks"] if check["name"] == "grants"]
    assert (grants["ok"], grants["promise"], grants["wrong"]) == (False, "P5", len(grants["findings"]))
    said = await _tollgate("verify", "--data-dir", data_dir)
    assert said.code == 1
    finding = grants["findings"][0]
    assert f"{finding['subject']}: expected {finding['expected']}, found {finding['found']}" in said.out
    assert "A promise does not hold" in said.out


async def test_commands_say_what_is_away(redis_away: dict[str, str]) -> None:
    for command in ("verify", "doctor"):
        ended = await _tollgate(command, **redis_away)
        assert ended.code == 1
        assert "Traceback" not in ended.error
        assert "cannot be" in ended.out + ended.error
        assert "s3cr3t" not in ended.out + ended.error
    half = await _tollgate("verify", TOLLGATE_DATABASE_URL=redis_away["TOLLGATE_DATABASE_URL"])
    assert (half.code, "TOLLGATE_REDIS_URL" in half.error) == (2, True)


@pytest.fixture
def redis_away() -> dict[str, str]:
    """An environment in which nothing answers."""
    return {
        "TOLLGATE_DATABASE_URL": "postgresql://app:s3cr3t@127.0.0.1:1/x",
        "TOLLGATE_REDIS_URL": "redis://:s3cr3t@127.0.0.1:1/0",
    }


async def test_help_has_an_example() -> None:
    for command in ("export", "verify", "doctor"):
        assert f"Example: tollgate {command}" in (await _tollgate(command, "--help")).out


async def test_a_process_of_its_own_prints_json_alone(data_dir: Path) -> None:
    """As scripts run it: nothing else on stdout, and the exit code of the process."""
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--json", "--data-dir", str(data_dir)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    done = await asyncio.to_thread(subprocess.run, command, env=clean, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert done.stderr == b""
