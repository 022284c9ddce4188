"""Routes to invoices and credit notes as documents: PDF for the customer, a page for the console."""

from __future__ import annotations

from datetime import date
from typing import Annotated, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Path, Query
from starlette.responses import HTMLResponse, Response

from billing.store.invoices import InvoiceFilter
from gateway.api.operator.requests import Operator
from gateway.documents import invoice_page, invoice_pdf, statement_pdf

router = APIRouter()

InvoiceId: TypeAlias = Annotated[UUID, Path(description="Id of an invoice or credit note.")]


class PdfResponse(Response):
    """A PDF, for the OpenAPI page."""

    media_type = "application/pdf"


@router.get("/invoices/{invoice_id}.pdf", response_class=PdfResponse)
async def read_invoice_pdf(invoice_id: InvoiceId, request: Operator) -> Response:
    """An invoice or credit note as PDF. It does not change once it is issued: `etag` is its SHA-256."""
    return await invoice_pdf(request.parts, invoice_id, InvoiceFilter())


@router.get("/invoices/{invoice_id}.html", response_class=HTMLResponse)
async def read_invoice_page(invoice_id: InvoiceId, request: Operator) -> Response:
    """The same as a page to show in a browser, with what was paid of it since."""
    return await invoice_page(request.parts, invoice_id, InvoiceFilter())


Day: TypeAlias = Annotated[date | None, Query(ge=date(2000, 1, 1), lt=date(2200, 1, 1))]


@router.get("/organizations/{organization_id}/statement.pdf", response_class=PdfResponse)
async def read_statement_pdf(
    organization_id: UUID,
    request: Operator,
    since: Annotated[Day, Query(alias="from")] = None,
    until: Annotated[Day, Query(alias="to")] = None,
) -> Response:
    """The statement of an organization's account as PDF, both days included; without days, all of it until now."""
    return await statement_pdf(request.parts, organization_id, since, until)
