"""Documents of the book on their way out: made beside the event loop, and compared with what was issued."""

from __future__ import annotations

import asyncio
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Final
from uuid import UUID

import structlog
from starlette.responses import HTMLResponse, Response

from billing.documents import (
    CONTENT_SECURITY_POLICY,
    Document,
    Stated,
    html,
    invoice_document,
    pdf,
    statement_document,
)
from billing.invoices import buyer_party
from billing.receivables import age, state
from billing.store.documents import keep_digest
from billing.store.invoices import InvoiceFilter, find_invoice
from billing.store.organizations import find_organization
from billing.store.payments import account_entries, open_items
from billing.store.taxes import find_seller, seller_party
from gateway.parts import Parts
from models.errors import InvalidRequest, NotFound, Unavailable
from models.invoice import Invoice, InvoiceState

PATIENCE_SECONDS: Final = 60.0
_PRIVATE: Final = {"cache-control": "private, no-store", "x-content-type-options": "nosniff"}

# One thread: a document keeps a core busy, and calls are to have the others.
_press: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="documents")
_log = structlog.get_logger(__name__)


async def invoice_pdf(parts: Parts, invoice_id: UUID, wanted: InvoiceFilter) -> Response:
    """The PDF of an invoice or credit note among the `wanted` ones; raises `NotFound` for any other.

    What was issued is the same bytes for ever: their digest is the `etag`, and is kept when they are first made. Where
    they come out otherwise today (a newer typesetter, or a changed row), the document is still given, and
    `x-tollgate-first-sha256` has the digest of the first: a customer can pay, and somebody can look.
    """
    invoice, document = await _document(parts, invoice_id, wanted, settled=False)
    made = await _printed(document)
    headers = _PRIVATE | {
        "etag": f'"{_digest(made).hex()}"',
        "content-disposition": f'inline; filename="{_file_name(document)}.pdf"',
    }
    if invoice.state is not InvoiceState.DRAFT:
        headers |= await _compared(parts, invoice, document, made)
    return Response(made, media_type="application/pdf", headers=headers)


async def invoice_page(parts: Parts, invoice_id: UUID, wanted: InvoiceFilter) -> Response:
    """The same as a page for a screen, which also says what was paid of it since."""
    _, document = await _document(parts, invoice_id, wanted, settled=True)
    return HTMLResponse(html(document), headers=_PRIVATE | {"content-security-policy": CONTENT_SECURITY_POLICY})


async def statement_pdf(parts: Parts, organization_id: UUID, since: date | None, until: date | None) -> Response:
    """The statement of an organization's account, both days included; without days, all of it until now."""
    document = await _statement(parts, organization_id, since, until)
    headers = _PRIVATE | {"content-disposition": f'inline; filename="statement_{_file_name(document)}.pdf"'}
    return Response(await _printed(document), media_type="application/pdf", headers=headers)


async def _statement(parts: Parts, organization_id: UUID, since: date | None, until: date | None) -> Document:
    async with parts.engine.connect() as connection:
        row = await find_organization(connection, organization_id)
        if row is None:
            raise NotFound("There is no such organization.")
        seller = await find_seller(connection)
        entries = await account_entries(connection, organization_id)
        today = parts.clock.now().date()
        last = until or today
        first = since or min((entry.on for entry in entries if entry.on <= last), default=last)
        if last < first:
            raise InvalidRequest("The statement ends before it begins. Let 'from' be the earlier day.", param="from")
        aged = age(await open_items(connection, last, organization_id), last)
    stated = Stated(
        seller=None if seller is None else seller_party(seller),
        buyer=buyer_party(row),
        currency=row.currency,
        language="ko" if row.language == "ko" else "en",
        issued_on=today,
        period=(first, last),
        statement=state(entries, first, last),
        ageing=aged[0].buckets if aged else {},
    )
    return statement_document(stated)


async def _document(
    parts: Parts, invoice_id: UUID, wanted: InvoiceFilter, *, settled: bool
) -> tuple[Invoice, Document]:
    async with parts.engine.connect() as connection:
        invoice = await find_invoice(connection, invoice_id, wanted)
        if invoice is None:
            raise NotFound("There is no such invoice.")
        original = await find_invoice(connection, invoice.corrects) if invoice.corrects else None
    return invoice, invoice_document(invoice, original, settled=settled)


async def _compared(parts: Parts, invoice: Invoice, document: Document, made: bytes) -> dict[str, str]:
    """Headers on whether the document is still what was issued, apart from what happened to it since."""
    issued = document.as_issued()
    digest = _digest(made if issued == document else await _printed(issued))
    first = invoice.pdf_sha256
    if first is None:
        async with parts.engine.begin() as connection:
            first = await keep_digest(connection, invoice.id, digest)
    if first == digest:
        return {}
    _log.warning("document_differs", invoice_id=str(invoice.id), reason="not the bytes that were first made of it")
    return {"x-tollgate-first-sha256": first.hex()}


async def _printed(document: Document) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_press, pdf, document)
    except TimeoutError:
        raise Unavailable("Many documents are being made now. Try again in a minute.", 60_000) from None


def _digest(made: bytes) -> bytes:
    return hashlib.sha256(made).digest()


def _file_name(document: Document) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", document.number).strip("._-") or document.kind.value
