"""Documents that are tests: every command and every setting is explained, and every command has an example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gateway.cli import make_app
from gateway.settings import Settings

ROOT = Path(__file__).parents[2]


def documents() -> str:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.exists())


def commands() -> dict[str, Any]:
    """Every command by its full name, such as `org create`."""
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found[name] = command
        for word, one in (inner or {}).items():
            walk(one, f"{name} {word}".strip())

    walk(typer.main.get_command(make_app()), "")
    return found


@pytest.mark.parametrize("name", commands())
def test_command_is_documented(name: str) -> None:
    assert f"tollgate {name}" in documents()


def test_documented_commands_exist() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {name for row in rows for name in re.findall(r"`tollgate ([a-z -]+)`", row)} == set(commands())


@pytest.mark.parametrize("name", commands())
def test_command_shows_an_example(name: str) -> None:
    text = commands()[name].help or ""
    assert f"tollgate {name}" in " ".join(text.split()), "the help of a command shows it in use"


@pytest.mark.parametrize("page", ["promises.md", "failures.md"])
def test_named_tests_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+?)(?:::(\w+?)(_?\.\.\.)?)?`", text)
    assert named
    for path, function, _ in named:
        assert (ROOT / path).exists(), path
        if function:
            assert f"def {function}" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{function}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_is_documented(name: str) -> None:
    assert f"`TOLLGATE_{name.upper()}`" in documents()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_describes_itself(name: str) -> None:
    assert Settings.model_fields[name].description
