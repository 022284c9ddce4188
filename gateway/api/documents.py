"""The route to an organization's own invoices as PDF; its admins read it, as their lines are of all its projects."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from starlette.responses import Response

from billing.store.invoices import ISSUED, InvoiceFilter
from gateway.api.operator.documents import PdfResponse
from gateway.auth import require_admin
from gateway.documents import invoice_pdf
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal

router = APIRouter(tags=["billing"])


@router.get("/v1/billing/invoices/{invoice_id}.pdf", response_class=PdfResponse)
async def read_own_invoice_pdf(
    invoice_id: UUID,
    admin: Annotated[AdminPrincipal, Depends(require_admin)],
    parts: Annotated[Parts, Depends(parts_of)],
) -> Response:
    """An issued invoice or credit note of the organization as PDF."""
    return await invoice_pdf(parts, invoice_id, InvoiceFilter(organization_id=admin.organization_id, states=ISSUED))
