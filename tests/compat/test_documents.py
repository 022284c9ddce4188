"""The documents about clients: the table is that of the cases, the guides' code runs, the locks name no place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.compat import test_clients
from tests.compat.backend import TEXT
from tests.compat.clients import CLIENTS, HERE, ROOT, Processes
from tests.compat.conftest import Tollgate
from tests.compat.table import TITLES, table

GUIDES = ROOT / "docs" / "clients"
PYTHON_LOCKS = sorted((HERE / "requirements").glob("*.txt"))


def test_the_table_is_that_of_the_cases() -> None:
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    assert table() in page, "write what `python -m tests.compat.table` prints into docs/clients.md"


def test_every_case_is_in_the_table_and_has_a_test() -> None:
    marks = [mark for test in vars(test_clients).values() for mark in getattr(test, "pytestmark", [])]
    tested = {mark.args[0] for mark in marks if mark.name == "case"}
    assert set(TITLES) == set().union(*(client.cases for client in CLIENTS.values())) == tested


def test_every_client_has_a_guide() -> None:
    assert {path.stem for path in GUIDES.glob("*.md")} == set(CLIENTS)


def code_of(page: Path) -> str:
    """The one example of a guide."""
    (code,) = re.findall(r"^```(?:python|js)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.mark.servers
@pytest.mark.parametrize("client", CLIENTS)
def test_the_code_of_a_guide_runs(tollgate: Tollgate, running_clients: Processes, client: str) -> None:
    key, code = tollgate.key(), code_of(GUIDES / f"{client}.md")
    for written, meant in {
        "http://127.0.0.1:8080": tollgate.base_url,
        "tg_live_...": key.value,
        '"tiny"': '"parrot"',
    }.items():
        assert written in code
        code = code.replace(written, meant)
    assert running_clients.of(CLIENTS[client]).show(code).strip() == TEXT
    assert len(tollgate.charges(key, 1)) == 1


@pytest.mark.parametrize("path", PYTHON_LOCKS, ids=lambda path: str(path.stem))
def test_python_locks_pin_with_hashes_and_name_no_index(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) > 10
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", block), block
        assert "--hash=sha256:" in block, block
    assert not re.search(r"https?:|file:|^-|@ |/", text, re.MULTILINE)


def test_the_node_lock_pins_with_hashes_and_names_no_registry() -> None:
    text = (HERE / "node" / "package-lock.json").read_text(encoding="utf-8")
    assert "http" not in text
    assert "resolved" not in text
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert len(packages) > 10
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    asked = json.loads((HERE / "node" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
