"""The operator's commands before they reach a gateway: help, usage errors and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from gateway.cli import invoices, operate, payments, prices, routes, sales, taxes, tenants
from gateway.cli.operator_client import OperatorClient

COMMANDS = [
    (group.info.name or name, command.name or "")
    for name, group in (
        ("org", tenants.org),
        ("project", tenants.project),
        ("key", tenants.key),
        ("model", sales.model),
        ("backend", sales.backend),
        ("alias", routes.alias),
        ("maintenance", routes.maintenance),
        ("price", prices.price),
        ("invoice", invoices.invoice),
        ("payment", payments.payment),
        ("seller", taxes.seller),
        ("tax", taxes.tax),
    )
    for command in group.registered_commands
]


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    app = typer.Typer()
    operate.register(app)
    clean = {"TOLLGATE_URL": None, "TOLLGATE_OPERATOR_KEY": None, "COLUMNS": "200"} | environment
    result = CliRunner().invoke(app, list(arguments), env=clean)
    return result.exit_code, result.output


@pytest.mark.parametrize(("group", "command"), COMMANDS)
def test_each_command_has_an_example(group: str, command: str) -> None:
    code, output = run(group, command, "--help")
    assert code == 0
    assert f"Example: tollgate {group} {command}" in output.replace("`", "")


def test_all_the_agreed_commands_are_there() -> None:
    agreed = {
        "org": ["create", "list", "show", "update", "grant", "balance", "close", "route"],
        "project": ["create", "list"],
        "key": ["create", "list", "rotate", "revoke", "operator"],
        "model": ["add", "list", "deploy", "fallback", "remove"],
        "backend": ["add", "list", "discover", "take", "remove"],
        "alias": ["add", "list", "move", "back", "remove"],
        "maintenance": ["plan", "list", "cancel"],
        "price": [
            *("set", "list", "export", "import", "dry-run", "add-book", "books", "batch-book", "markup"),
            *("add-allowance", "allowances", "end-allowance"),
        ],
        "invoice": [
            *("run", "list", "show", "finalize", "void", "reissue", "credit", "writeoff", "approve", "release"),
            *("ageing", "statement", "pdf"),
        ],
        "payment": ["record", "list", "allocate", "refund"],
        "seller": ["set", "show"],
        "tax": ["set", "list", "end"],
    }
    assert sorted(COMMANDS) == sorted((group, command) for group, names in agreed.items() for command in names)


def test_without_an_address_it_says_where_one_could_come_from(tmp_path: Path) -> None:
    code, output = run("org", "list", "--data-dir", str(tmp_path))
    assert code == 2
    assert "TOLLGATE_URL" in output


def test_a_gateway_that_does_not_answer_is_a_failure() -> None:
    code, output = run("org", "list", "--url", "http://127.0.0.1:9", "--operator-key", "k")
    assert code == 1
    assert "Is it running?" in output


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["org", "create"], id="no name"),
        pytest.param(["org", "create", "A", "--currency", "GBP"], id="no such currency"),
        pytest.param(["key", "create", "p", "--expires-at", "soon"], id="no instant"),
        pytest.param(["price", "set", "m"], id="no price"),
        pytest.param(["price", "import", "no-such-file.csv"], id="no file"),
        pytest.param(["price", "dry-run", "--csv", "no-such-file.csv", "--from", "2027-01-01"], id="no drafts"),
        pytest.param(["price", "dry-run", "--csv", "p.csv", "--from", "soon"], id="no span"),
        pytest.param(["price", "dry-run", "--from", "2027-01-01"], id="nothing to try"),
        pytest.param(["price", "dry-run", "--batch-book", "night", "--from", "2027-01-01"], id="no batch book"),
        pytest.param(["model", "add", "m", "--backend", "b", "--context-length", "0"], id="no context"),
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    code, output = run(*arguments, "--url", "http://127.0.0.1:9", "--operator-key", "k")
    assert code == 2
    assert "Traceback" not in output


COLUMNS = ("id", "name", "limits", "created_at", "archived_at")
ROW = {"id": "01a21f54-7bdf-730d-8e03-d79f09ff60ca", "name": "Demo", "created_at": "2026-11-27T23:26:00.159766Z"}


def shown(rows: list[dict[str, str]], columns: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of 80 columns shows of a list."""
    out = StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "dumb")
    OperatorClient(httpx.Client(), as_json=False).show(list(rows), columns)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_a_narrow_terminal_leaves_ids_and_moments_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown([ROW], COLUMNS, monkeypatch) == (
        "                                            created\n"
        "id                                    name  at\n"
        f"{ROW['id']}  Demo  {ROW['created_at']}"
    )


def test_what_has_no_room_beside_one_another_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROW | {"name": "Demonstration", "organization_id": "01a21f54-7b91-7a9e-a4d9-009a99035367"}
    one = f"id               {row['id']}\nname             Demonstration\norganization id  {row['organization_id']}"
    assert shown([row, row], ("id", "name", "limits", "organization_id"), monkeypatch) == f"{one}\n\n{one}\n"
