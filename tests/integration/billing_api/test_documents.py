"""Invoices as documents over HTTP and on the command line: whose they are, what is kept of them, and what changes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import typer
from fastapi import FastAPI
from pypdf import PdfReader
from sqlalchemy import select, update
from typer.testing import CliRunner

from billing.documents import CONTENT_SECURITY_POLICY
from billing.store.documents import keep_digest
from billing.store.invoices import add_document, change_document, korea_json, party_json, tax_json
from gateway.app import make_api
from gateway.cli import operate
from gateway.parts import Parts
from models.ids import uuid7
from models.invoice import Invoice, Party
from models.money import Units
from models.tables import invoice
from tests.integration.billing_api.world import Tenant, World
from tests.rooms import on_free_port
from tests.unit.documents.test_invoices import DOLLARS, NOTE, WONS

pytestmark = pytest.mark.anyio


@pytest.fixture
def app(parts: Parts) -> FastAPI:
    """The whole application: other routes must not take `{id}.pdf` for an id."""
    app = make_api(docs_enabled=False)
    app.state.parts = parts
    return app


async def keep(world: World, tenant: Tenant, made: Invoice, state: str = "open") -> UUID:
    """Put an invoice into the book, as issued or as a draft."""
    invoice_id = uuid7(world.clock.now())
    assert made.seller is not None
    same = "series currency starts_at ends_at issued_on due_on subtotal total rounding settled language purchase_order"
    values: dict[str, Any] = {name: getattr(made, name) for name in f"{same} reason corrects created_at".split()}
    values |= {"id": invoice_id, "organization_id": tenant.organization_id, "kind": made.kind.value}
    values |= {"tax": made.total - made.subtotal, "tax_detail": tax_json(made.tax), "month": made.month}
    values |= {"buyer": party_json(made.buyer), "seller": party_json(made.seller)}
    values["korea"] = None if made.korea is None else korea_json(made.korea)
    async with world.engine.begin() as connection:
        await add_document(connection, values, made.lines)
        if state != "draft":
            issued = {"number": made.number, "state": state, "finalized_at": made.created_at}
            await change_document(connection, invoice_id, issued)
    return invoice_id


async def change(world: World, invoice_id: UUID, **values: Any) -> None:
    async with world.engine.begin() as connection:
        await connection.execute(update(invoice).where(invoice.c.id == invoice_id).values(**values))


async def kept_digest(world: World, invoice_id: UUID) -> bytes | None:
    async with world.engine.connect() as connection:
        statement = select(invoice.c.pdf_sha256).where(invoice.c.id == invoice_id)
        digest: bytes | None = (await connection.execute(statement)).scalar_one()
        return digest


async def fetch(world: World, invoice_id: UUID, ending: str = "pdf") -> httpx.Response:
    answer = await world.get(f"/operator/v1/invoices/{invoice_id}.{ending}", world.operator_key)
    assert answer.status_code == 200, answer.text
    return answer


def text_of(answer: httpx.Response) -> str:
    return "".join("".join(page.extract_text().split()) for page in PdfReader(io.BytesIO(answer.content)).pages)


async def test_operator_and_organization_get_the_same_file(world: World) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    first = await fetch(world, invoice_id)
    own = await world.get(f"/v1/billing/invoices/{invoice_id}.pdf", world.ours.admin_key)
    assert own.content == first.content
    assert first.headers["content-type"] == "application/pdf"
    assert first.headers["content-disposition"] == 'inline; filename="INV-000042.pdf"'
    assert first.headers["cache-control"] == "private, no-store"
    digest = hashlib.sha256(first.content)
    assert first.headers["etag"] == f'"{digest.hexdigest()}"'
    assert await kept_digest(world, invoice_id) == digest.digest()
    assert "x-tollgate-first-sha256" not in own.headers
    assert "INV-000042" in text_of(first)


async def test_nobody_else_gets_it(world: World) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    path = f"/v1/billing/invoices/{invoice_id}.pdf"
    theirs = await world.get(path, world.theirs.admin_key)
    none = await world.get(f"/v1/billing/invoices/{uuid4()}.pdf", world.ours.admin_key)
    assert (theirs.status_code, theirs.json()) == (none.status_code, none.json()) == (404, none.json())
    # A key of one project is not shown the lines of the others.
    assert (await world.get(path, world.ours.api_key)).status_code == 403
    for ending in ("pdf", "html"):
        for key in (world.ours.admin_key, world.ours.api_key, "nothing"):
            answer = await world.get(f"/operator/v1/invoices/{invoice_id}.{ending}", key)
            assert answer.status_code in (401, 403)
    assert await kept_digest(world, invoice_id) is None


async def test_what_is_no_invoice_is_not_found(world: World) -> None:
    for ending in ("pdf", "html"):
        assert (await world.get(f"/operator/v1/invoices/{uuid4()}.{ending}", world.operator_key)).status_code == 404
        wrong = await world.get(f"/operator/v1/invoices/INV-42.{ending}", world.operator_key)
        assert wrong.status_code == 422
        assert "invoice_id" in wrong.json()["error"]["param"]


async def test_a_draft_is_for_the_operator_and_is_not_kept(world: World) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS, state="draft")
    assert "Draft:notaninvoiceyet" in text_of(await fetch(world, invoice_id))
    assert await kept_digest(world, invoice_id) is None
    own = await world.get(f"/v1/billing/invoices/{invoice_id}.pdf", world.ours.admin_key)
    assert own.status_code == 404


async def test_payment_changes_the_page_and_not_the_file(world: World) -> None:
    invoice_id = await keep(world, world.ours, replace(DOLLARS, settled=DOLLARS.settled))
    first, page = await fetch(world, invoice_id), await fetch(world, invoice_id, "html")
    assert "$1,000.00" in page.text
    await change(world, invoice_id, settled=DOLLARS.total, state="paid")
    assert (await fetch(world, invoice_id)).content == first.content
    paid = await fetch(world, invoice_id, "html")
    assert "$1,000.00" not in paid.text
    assert "$0.00" in paid.text


async def test_a_void_invoice_says_so_and_is_still_compared(world: World) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    first = await fetch(world, invoice_id)
    await change(world, invoice_id, state="void", reason="wrong buyer")
    void = await fetch(world, invoice_id)
    assert "Void:donotpay" in text_of(void)
    assert void.content != first.content
    assert "x-tollgate-first-sha256" not in void.headers
    assert await kept_digest(world, invoice_id) == hashlib.sha256(first.content).digest()


async def test_other_bytes_than_the_first_are_told(world: World) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    async with world.engine.begin() as connection:
        assert await keep_digest(connection, invoice_id, b"\1" * 32) == b"\1" * 32
        assert await keep_digest(connection, invoice_id, b"\2" * 32) == b"\1" * 32
    assert (await fetch(world, invoice_id)).headers["x-tollgate-first-sha256"] == "01" * 32


async def test_a_credit_note_names_its_invoice(world: World) -> None:
    invoice_id = await keep(world, world.ours, WONS)
    note_id = await keep(world, world.ours, replace(NOTE, corrects=invoice_id), state="paid")
    text = text_of(await fetch(world, note_id))
    assert "수정거래명세서" in text
    assert "INV-000042" in text
    assert "-₩110,006" in text


async def test_a_statement_is_a_file_too(world: World) -> None:
    await keep(world, world.ours, replace(DOLLARS, settled=Units(0)))
    path = f"/operator/v1/organizations/{world.ours.organization_id}/statement.pdf"
    answer = await world.get(path, world.operator_key, to="2026-12-31")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == 'inline; filename="statement_2026-11-02_2026-12-31.pdf"'
    text = text_of(answer)
    for told in ("Statementofaccount", "INV-000042", "$1,469.13", "Ours"):
        assert told in text
    turned = await world.get(path, world.operator_key, **{"from": "2026-12-31", "to": "2026-01-01"})
    assert (turned.status_code, turned.json()["error"]["param"]) == (400, "from")
    unknown = await world.get(f"/operator/v1/organizations/{uuid4()}/statement.pdf", world.operator_key)
    assert unknown.status_code == 404
    assert (await world.get(path, world.ours.admin_key)).status_code == 403


async def test_page_can_run_nothing(world: World) -> None:
    script = "<script>alert(1)</script>"
    invoice_id = await keep(world, world.ours, replace(DOLLARS, buyer=Party(script, address=script)))
    page = await fetch(world, invoice_id, "html")
    assert page.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert script not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text


async def test_many_at_once_are_made_one_after_the_other(world: World) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    answers = await asyncio.gather(*(fetch(world, invoice_id) for _ in range(8)))
    assert len({answer.content for answer in answers}) == 1


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    """A gateway on a free port."""
    async with on_free_port(app) as url:
        yield url


async def command(world: World, url: str, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    operate.register(app)
    env = {"TOLLGATE_URL": url, "TOLLGATE_OPERATOR_KEY": world.operator_key}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["invoice", "pdf", *arguments], env=env)
    return result.exit_code, result.output


async def test_command_writes_the_file(world: World, url: str, tmp_path: Path) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    out = tmp_path / "INV-000042.pdf"
    code, output = await command(world, url, str(invoice_id), "--output", str(out), "--json")
    assert code == 0, output
    told = json.loads(output)
    assert out.read_bytes() == (await fetch(world, invoice_id)).content
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert (told["sha256"], told["first_sha256"], told["bytes"]) == (digest, digest, out.stat().st_size)


async def test_command_says_what_is_wrong(world: World, url: str, tmp_path: Path) -> None:
    invoice_id = await keep(world, world.ours, DOLLARS)
    out = tmp_path / "there-is-none" / "x.pdf"
    code, output = await command(world, url, str(invoice_id), "--output", str(out))
    assert code == 1
    assert "cannot be written" in " ".join(output.split())
    code, output = await command(world, url, str(uuid4()), "--output", str(tmp_path / "y.pdf"))
    assert code == 2
    assert "There is no such invoice." in " ".join(output.split())
    assert not (tmp_path / "y.pdf").exists()
