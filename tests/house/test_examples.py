"""Every command in the documents and in `--help` is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gateway.cli import make_app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM: Any = typer.main.get_command(make_app())


def written() -> Iterator[str]:
    """Lines of code blocks that call `tollgate`, one command each."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                for command in line.split("&&"):
                    if command.strip().startswith("tollgate "):
                        yield command.partition("#")[0].strip()


def helped() -> Iterator[str]:
    """The examples of all commands' `--help`."""
    waiting = [PROGRAM]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        yield from re.findall(r"Example: `([^`]+)`", " ".join((command.help or "").split()))


@pytest.mark.parametrize("line", sorted({*written(), *helped()}))
def test_command_is_taken(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    assert words[0] == "tollgate"
    command, rest = PROGRAM, words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    # Parses and converts, and does nothing.
    command.make_context(command.name, list(rest))
