"""Invoices and credit notes in Postgres: the sums that they are made of, drafts, numbers, and what was issued."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_optional, fetch_page
from models.invoice import (
    AmendmentReason,
    Invoice,
    InvoiceKind,
    InvoiceState,
    Korea,
    Line,
    LineKind,
    Party,
    Tax,
    TaxTreatment,
)
from models.money import MilliUnits, Units
from models.tables import billing_month, invoice, invoice_line

ISSUED: Final = (
    InvoiceState.OPEN,
    InvoiceState.PAID,
    InvoiceState.VOID,
    InvoiceState.UNCOLLECTIBLE,
)
"""All states of a document that has a number."""


@dataclass(frozen=True, slots=True)
class InvoiceFilter:
    """Which documents: all conditions together, None for no condition. `month` is a first day."""

    organization_id: UUID | None = None
    kind: InvoiceKind | None = None
    states: Collection[InvoiceState] | None = None
    month: date | None = None
    corrects: UUID | None = None


# Reading -------------------------------------------------------------------------------------------------------------


async def find_invoice(
    connection: AsyncConnection, invoice_id: UUID, wanted: InvoiceFilter | None = None
) -> Invoice | None:
    """A document with its lines, if it is among the `wanted` ones: another tenant's is not found."""
    row = await fetch_optional(connection, _matching(wanted or InvoiceFilter()).where(invoice.c.id == invoice_id))
    return None if row is None else (await _with_lines(connection, [row]))[0]


async def list_invoices(connection: AsyncConnection, wanted: InvoiceFilter, page: Page) -> tuple[list[Invoice], bool]:
    """A page of documents with their lines, by id, which is the order of their making; and whether more follow."""
    rows, more = await fetch_page(connection, _matching(wanted), invoice.c.id, page)
    return await _with_lines(connection, rows), more


async def all_invoices(connection: AsyncConnection, wanted: InvoiceFilter) -> list[Invoice]:
    """All documents of one organization, or of one invoice, with their lines: a few a month."""
    assert wanted.organization_id is not None or wanted.corrects is not None, "the whole book is read page by page"
    rows = await connection.execute(_matching(wanted).order_by(invoice.c.id))
    return await _with_lines(connection, list(rows.all()))


def _matching(wanted: InvoiceFilter) -> Any:
    statement = select(invoice, billing_month.c.timezone).outerjoin(
        billing_month,
        (billing_month.c.organization_id == invoice.c.organization_id) & (billing_month.c.month == invoice.c.month),
    )
    for column, value in (
        (invoice.c.organization_id, wanted.organization_id),
        (invoice.c.kind, wanted.kind),
        (invoice.c.month, wanted.month),
        (invoice.c.corrects, wanted.corrects),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if wanted.states is not None:
        statement = statement.where(invoice.c.state.in_(wanted.states))
    return statement


async def _with_lines(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[Invoice]:
    lines: dict[UUID, list[Line]] = {row.id: [] for row in rows}
    if lines:
        found = await connection.execute(
            select(invoice_line)
            .where(invoice_line.c.invoice_id.in_(lines))
            .order_by(invoice_line.c.invoice_id, invoice_line.c.seq)
        )
        for row in found:
            lines[row.invoice_id].append(_line(row))
    return [_invoice(row, lines[row.id]) for row in rows]


def _line(row: Any) -> Line:
    return Line(
        kind=LineKind(row.kind),
        description=row.description,
        amount=Units(int(row.amount)),
        rounded=Units(int(row.rounded)),
        project_id=row.project_id,
        project_name=row.project_name,
        model=row.model,
        meter=row.meter,
        price_version_id=row.price_version_id,
        quantity=int(row.quantity),
        unit_price=None if row.unit_price is None else MilliUnits(row.unit_price),
    )


def _invoice(row: AnyRow, lines: Sequence[Line]) -> Invoice:
    subtotal, tax = Units(int(row.subtotal)), Units(int(row.tax))
    return Invoice(
        id=row.id,
        organization_id=row.organization_id,
        kind=InvoiceKind(row.kind),
        state=InvoiceState(row.state),
        series=row.series,
        number=row.number,
        currency=row.currency,
        subtotal=subtotal,
        total=Units(int(row.total)),
        rounding=Units(int(row.rounding)),
        settled=Units(int(row.settled)),
        tax=tax_from(row.tax_detail, subtotal, tax),
        buyer=Party(**row.buyer),
        seller=Party(**row.seller) if row.seller else None,
        language=row.language,
        created_at=row.created_at,
        lines=tuple(lines),
        corrects=row.corrects,
        month=row.month,
        timezone=row.timezone,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        issued_on=row.issued_on,
        due_on=row.due_on,
        purchase_order=row.purchase_order,
        reason=row.reason,
        korea=None if row.korea is None else korea_from(row.korea),
        pdf_sha256=row.pdf_sha256,
        posting_id=row.posting_id,
        finalized_at=row.finalized_at,
        closed_at=row.closed_at,
    )


# What is stored as JSON ----------------------------------------------------------------------------------------------


def party_json(party: Party) -> dict[str, Any]:
    """A party as it is stored."""
    return {name: value for name, value in asdict(party).items() if value is not None}


def tax_json(tax: Tax) -> dict[str, Any]:
    """How a document is taxed, as it is stored; base and amount are columns."""
    return {
        "treatment": tax.treatment.value,
        "rate_ppm": tax.rate_ppm,
        "name": tax.name,
        "is_inclusive": tax.is_inclusive,
    }


def tax_from(stored: Mapping[str, Any], base: Units, amount: Units) -> Tax:
    """The tax in a stored JSON object."""
    return Tax(
        treatment=TaxTreatment(stored.get("treatment", TaxTreatment.NONE)),
        base=base,
        amount=amount,
        rate_ppm=stored.get("rate_ppm", 0),
        name=stored.get("name"),
        is_inclusive=stored.get("is_inclusive", False),
    )


def korea_json(korea: Korea) -> dict[str, Any]:
    """The Korean fields as they are stored: amounts and the date as text."""
    fields = {name: value for name, value in asdict(korea).items() if value is not None}
    return fields | {
        "supply_value": str(korea.supply_value),
        "tax": str(korea.tax),
        "written_on": korea.written_on.isoformat(),
    }


def korea_from(stored: Mapping[str, Any]) -> Korea:
    """The Korean fields in a stored JSON object."""
    reason = stored.get("reason")
    return Korea(
        **{
            **stored,
            "supply_value": Units(int(stored["supply_value"])),
            "tax": Units(int(stored["tax"])),
            "written_on": date.fromisoformat(stored["written_on"]),
            "reason": None if reason is None else AmendmentReason(reason),
        }
    )
