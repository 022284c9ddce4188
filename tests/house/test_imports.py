"""Every contract on imports holds, and each has teeth: a deliberate breach breaks it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "billing", "gateway", "migrations")
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

BREACHES = {
    "Arrows point down only": ("billing/pricing.py", "import gateway.settings"),
    "The counting house has floors": ("billing/store/keys.py", "import billing.settlement"),
    "The hall has floors": ("gateway/routing.py", "import gateway.auth"),
    "Nouns need nothing installed, but for the tables": ("models/money.py", "import msgspec"),
    "The counting house knows no HTTP": ("billing/settlement.py", "import httpx"),
    "Redis is behind one door": ("gateway/auth.py", "import redis"),
    "SQL is not on the path of a call": ("gateway/calls/driver.py", "import sqlalchemy"),
    "Arithmetic does no input or output": ("billing/pricing.py", "import asyncio"),
    "The machine of a call never awaits": ("gateway/calls/machine.py", "import asyncio"),
}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-cache"], cwd=directory, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages alone, where a test may break them."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold() -> None:
    linted = lint(ROOT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_contract_has_a_breach() -> None:
    assert set(BREACHES) == set(CONTRACTS)


@pytest.mark.parametrize("contract", BREACHES)
def test_breach_is_seen(contract: str, copy: Path) -> None:
    path, line = BREACHES[contract]
    broken = copy / path
    assert broken.exists(), f"name another file for the breach of {contract!r}"
    text = broken.read_text()
    broken.write_text(
        text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{line}\n")
    )
    linted = lint(copy)
    assert linted.returncode == 1
    assert f"{contract} BROKEN" in " ".join(linted.stdout.split())


def test_nouns_import_the_standard_library_only() -> None:
    # The tables are a folder.
    for path in (ROOT / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "models"}, f"{path.name} imports {name}"
