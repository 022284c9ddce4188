"""Exports over HTTP and by the command line, on the books of the month: who sees what, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from billing.exports import KINDS
from billing.store.keys import create_admin_key
from gateway.api import billing
from gateway.keys import KeyKind, issue_operator_key, mint
from tests.integration.books.conftest import Books
from tests.integration.books.month import Customer
from tests.rooms import PEPPER, application, make_parts, on_free_port

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

OWN = sorted(name for name, kind in KINDS.items() if not kind.is_operators)
OPERATORS = sorted(name for name, kind in KINDS.items() if kind.is_operators)
TO = {"ageing": {"to": "2026-05-01"}}


@pytest.fixture
def app(books: Books) -> FastAPI:
    """An application with these books; nothing in it needs Redis."""
    return application(make_parts(books.month.engine, books.month.hot), billing.router)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a network."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def operator(books: Books) -> dict[str, str]:
    """Headers of an operator."""
    async with books.month.engine.begin() as connection:
        _, value = await issue_operator_key(connection, "test", PEPPER, datetime.now(UTC))
    return {"authorization": f"Bearer {value}"}


async def admin(books: Books, one: Customer) -> dict[str, str]:
    """Headers of an administrator of an organization."""
    key = mint(KeyKind.ADMIN, PEPPER)
    async with books.month.engine.begin() as connection:
        await create_admin_key(
            connection,
            organization_id=one.id,
            name="admin",
            digest=key.digest,
            redacted_value=key.redacted_value,
            now=datetime.now(UTC),
        )
    return {"authorization": f"Bearer {key.value}"}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_is_served_with_its_manifest(
    books: Books, client: httpx.AsyncClient, operator: dict[str, str], kind: str
) -> None:
    path, asked = f"/operator/v1/exports/{kind}", TO.get(kind, {})
    file = await client.get(path, params=asked, headers=operator)
    assert file.status_code == 200, file.text
    assert file.headers["content-disposition"] == f'attachment; filename="{kind}.{KINDS[kind].extension}"'
    watermark = file.headers["x-tollgate-watermark"]
    answer = await client.get(path, params=asked | {"manifest": "true", "watermark": watermark}, headers=operator)
    manifest = answer.json()
    assert manifest["sha256"] == hashlib.sha256(file.content).hexdigest()
    assert (manifest["kind"], manifest["watermark"]) == (kind, int(watermark))
    assert manifest["rows"] == int(file.headers.get("x-tollgate-rows", manifest["rows"])) > 0
    if KINDS[kind].is_csv:
        read = list(csv.reader(io.StringIO(file.text, newline=""), strict=True))
        assert len(read) == manifest["rows"] + 1
        assert {len(cells) for cells in read} == {len(read[0])}
        assert file.text.count("\r\n") >= len(read)


@pytest.mark.parametrize("kind", OWN)
async def test_an_organization_sees_its_own_rows_only(books: Books, client: httpx.AsyncClient, kind: str) -> None:
    path, asked = f"/v1/billing/exports/{kind}", TO.get(kind, {})
    korean = await client.get(path, params=asked, headers=await admin(books, books.month.korean))
    assert korean.status_code == 200, korean.text
    others = [one for one in books.month.customers if one is not books.month.korean]
    for one in others:
        for name in (one.id, one.project_id, one.api_key_id):
            assert str(name).encode() not in korean.content
    assert b"USD" not in korean.content
    if kind != "focus_billing_period":
        assert b"KRW" in korean.content
    same = await books.make(
        kind,
        organization_id=books.month.korean.id,
        watermark=int(korean.headers["x-tollgate-watermark"]),
        **({"end": datetime(2026, 5, 1, tzinfo=UTC)} if asked else {}),
    )
    assert same.body == korean.content


async def test_the_operators_books_are_the_operators(books: Books, client: httpx.AsyncClient) -> None:
    mine = await admin(books, books.month.korean)
    assert OPERATORS == ["beancount", "hledger", "journal", "trial_balance"]
    for kind in OPERATORS:
        hidden = await client.get(f"/v1/billing/exports/{kind}", headers=mine)
        assert (hidden.status_code, hidden.json()["error"]["message"].count(kind)) == (404, 0)
    for kind in KINDS:
        assert (await client.get(f"/operator/v1/exports/{kind}", headers=mine)).status_code == 403
        assert (await client.get(f"/v1/billing/exports/{kind}")).status_code == 401
    # The organization is the key's: naming another one changes nothing.
    other = {"organization": str(books.month.prepaid.id)}
    named = await client.get("/v1/billing/exports/charges", params=other, headers=mine)
    assert str(books.month.prepaid.id) not in named.text


@pytest.mark.parametrize("name", ["..%2finvoices", "....//invoices", "invoices%00", "%00", "INVOICES", "invoices.csv"])
async def test_tricks_with_names_are_404(
    books: Books, client: httpx.AsyncClient, operator: dict[str, str], name: str
) -> None:
    """F10: a kind is compared with a list, and never becomes a path."""
    headers = await admin(books, books.month.korean)
    for path, key in (("/operator/v1/exports", operator), ("/v1/billing/exports", headers)):
        answer = await client.get(f"{path}/{name}", headers=key)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "asked", "sentence"),
    [
        ("journal", {"from": "2026-04-01", "to": "2026-03-01"}, "from must lie before to"),
        ("journal", {"from": "1999-01-01"}, "must lie in the years"),
        ("journal", {"watermark": "999999"}, "leave the watermark out"),
        ("journal", {"watermark": "2", "since": "3"}, "Nothing is newer"),
        ("trial_balance", {"since": "3"}, "leave since out"),
        ("hledger", {"profile": "excel"}, "no table for Excel"),
        ("charges", {"profile": "machine", "excel": "true"}, "contradict each other"),
        ("ageing", {}, "give it as to"),
    ],
)
async def test_what_cannot_be_is_refused_with_a_sentence(
    client: httpx.AsyncClient, operator: dict[str, str], kind: str, asked: dict[str, str], sentence: str
) -> None:
    answer = await client.get(f"/operator/v1/exports/{kind}", params=asked, headers=operator)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


async def test_nothing_new_is_an_empty_file(client: httpx.AsyncClient, operator: dict[str, str]) -> None:
    first = await client.get("/operator/v1/exports/journal", headers=operator)
    since = first.headers["x-tollgate-watermark"]
    for kind in ("journal", "charges", "payments"):
        again = await client.get(f"/operator/v1/exports/{kind}", params={"since": since}, headers=operator)
        assert (again.status_code, again.headers["x-tollgate-watermark"]) == (200, since)
        assert again.text.count("\r\n") == 1


async def test_formulas_are_guarded_in_text_and_nowhere_else(
    client: httpx.AsyncClient, operator: dict[str, str]
) -> None:
    """F02: names of organizations, projects, models and references begin with what a spreadsheet would run."""
    guarded = set()
    for kind in ("charges", "invoices", "invoice_lines", "payments", "focus"):
        answer = await client.get(f"/operator/v1/exports/{kind}", headers=operator)
        for row in csv.DictReader(io.StringIO(answer.text, newline=""), strict=True):
            for name, cell in row.items():
                assert not cell.startswith(("=", "+", "@", "\t", "\r")), (kind, name, cell)
                if cell.startswith("-"):
                    assert float(cell) < 0, (kind, name, cell)
                if cell.startswith("'"):
                    guarded.add((kind, name))
    assert {
        *(("charges", "model"), ("charges", "end_user"), ("invoices", "organization_name")),
        *(("invoice_lines", "description"), ("payments", "reference"), ("focus", "SkuId")),
    } <= guarded


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The application on a real port; answers its address."""
    async with on_free_port(app) as url:
        yield url


async def _tollgate(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | environment,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_the_command_writes_any_kind(books: Books, served: str, operator: dict[str, str], tmp_path: Path) -> None:
    way = {"TOLLGATE_URL": served, "TOLLGATE_OPERATOR_KEY": operator["authorization"].removeprefix("Bearer ")}
    for kind, options in (
        ("journal", ["--from", "2026-03-01", "--to", "2026-04-01", "--profile", "excel"]),
        ("hledger", ["--organization", str(books.month.korean.id)]),
        ("focus", ["--check"]),
        ("focus_1_4", ["--check", "--from", "2026-03-01", "--to", "2026-04-01"]),
        ("focus_invoice_detail", ["--check"]),
        ("parquet", []),
    ):
        file = tmp_path / f"{kind}.out"
        code, said = await _tollgate("export", kind, "--output", file, *options, **way)
        assert code == 0, said
        manifest = json.loads(file.with_name(f"{file.name}.manifest.json").read_text())
        assert manifest["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"{manifest['rows']:,} rows" in said
    code, said = await _tollgate("export", "journal", "--output", tmp_path / "x", "--check", **way)
    assert (code, "Only FOCUS files are examined" in said) == (2, True)
