"""What `tollgate serve`, `worker`, `migrate` and `up` say when they are started with the wrong settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import make_app
from gateway.embedded.supervisor import welcome

ROOT = Path(__file__).parents[2]

GOOD = {
    "TOLLGATE_DATABASE_URL": "postgresql://app@127.0.0.1:1/none",
    "TOLLGATE_REDIS_URL": "redis://127.0.0.1:1",
    "TOLLGATE_KEY_PEPPER": "secret-secret-secret-secret-secret-secret",
}


def told(arguments: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is printed; checks that it is code 2 and no traceback."""
    for name in (*GOOD, "TOLLGATE_OWNER_DATABASE_URL", "TOLLGATE_CLOCK", "TOLLGATE_STARTED_BY_UP"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(make_app(), arguments, env=environment)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize("missing", GOOD)
def test_missing_setting_is_named(command: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = told([command], {name: value for name, value in GOOD.items() if name != missing}, monkeypatch)
    assert output.startswith(f"Set {missing} (")
    assert output.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_wrong_setting_is_named_without_its_value(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = told([command], GOOD | {"TOLLGATE_KEY_PEPPER": "short-secret"}, monkeypatch)
    assert output.startswith("Correct TOLLGATE_KEY_PEPPER (")
    assert "short-secret" not in output


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_rehearsed_clock_is_refused_outside_up(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = told([command], GOOD | {"TOLLGATE_CLOCK": "2031-01-01T00:00:00Z"}, monkeypatch)
    assert "under `tollgate up` only" in output


def test_migrate_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(["migrate"], GOOD, monkeypatch).startswith("Set TOLLGATE_OWNER_DATABASE_URL (")


@pytest.mark.parametrize("url", ["localhost", "postgresql://owner@localhost:port/tollgate"])
def test_migrate_says_how_its_setting_is_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = told(["migrate"], {"TOLLGATE_OWNER_DATABASE_URL": url}, monkeypatch)
    assert "postgresql://ROLE:PASSWORD@HOST:5432/DATABASE" in output


def test_migrate_says_that_nobody_answers() -> None:
    owner = {"TOLLGATE_OWNER_DATABASE_URL": "postgresql://owner:secret@127.0.0.1:1/none"}
    result = CliRunner().invoke(make_app(), ["migrate"], env=owner)
    assert (result.exit_code, "secret" in result.output) == (1, False)
    assert result.output.startswith("Postgres does not answer (")


def test_up_refuses_a_clock_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Correct TOLLGATE_CLOCK" in told(["up"], {"TOLLGATE_CLOCK": "next month"}, monkeypatch)


def test_up_refuses_demo_with_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not both" in told(["up", "--demo", "--backend", "http://127.0.0.1:1"], {}, monkeypatch)


def test_up_prints_the_first_call_as_the_readme_has_it() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    facts = {"base_url": "http://127.0.0.1:8080", "api_key": "tg_live_...", "model": "tiny"}
    assert code[1] in welcome(facts, Path(".tollgate"), 1.0)
