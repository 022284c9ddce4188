"""Invoices as an organization reads them: what was issued to it, and nobody else's."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query

from billing.store.invoices import ISSUED, InvoiceFilter, find_invoice, list_invoices
from gateway.api.operator.invoice_shapes import InvoiceAnswer, Month
from gateway.api.operator.shapes import AskedById, ListOf, list_of
from gateway.auth import require_admin
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal
from models.errors import NotFound
from models.invoice import InvoiceKind

router = APIRouter(tags=["billing"])


class AskedInvoices(AskedById):
    """Which of its documents an organization asks for, newest first."""

    kind: InvoiceKind | None = None
    month: Month | None = None


@router.get("/v1/billing/invoices")
async def read_invoices(
    asked: Annotated[AskedInvoices, Query()],
    admin: Annotated[AdminPrincipal, Depends(require_admin)],
    parts: Annotated[Parts, Depends(parts_of)],
) -> ListOf[InvoiceAnswer]:
    """The organization's invoices and credit notes, newest first; drafts are not among them."""
    wanted = InvoiceFilter(admin.organization_id, asked.kind, ISSUED, asked.month)
    async with parts.engine.connect() as connection:
        found, more = await list_invoices(connection, wanted, asked.page(newest_first=True))
    return list_of([InvoiceAnswer.of(each) for each in found], more)


@router.get("/v1/billing/invoices/{invoice_id}")
async def read_invoice(
    invoice_id: str,
    admin: Annotated[AdminPrincipal, Depends(require_admin)],
    parts: Annotated[Parts, Depends(parts_of)],
) -> InvoiceAnswer:
    """One invoice or credit note of the organization."""
    async with parts.engine.connect() as connection:
        found = await find_invoice(
            connection, _invoice_id(invoice_id), InvoiceFilter(admin.organization_id, states=ISSUED)
        )
    if found is None:
        raise NotFound("There is no such invoice.")
    return InvoiceAnswer.of(found)


def _invoice_id(text: str) -> UUID:
    """The id in a path; what is no id is no invoice, which is the answer for another organization's, too."""
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("There is no such invoice.") from None
