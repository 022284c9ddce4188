"""Invoices and credit notes in Postgres: the sums that they are made of, drafts, numbers, and what was issued."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.invoicing import UsageGroup
from billing.store.pages import AnyRow, Page, fetch_optional, fetch_page
from billing.store.prices import price_version_of
from models.catalog import PriceVersion
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
from models.tables import (
    billing_month,
    invoice,
    invoice_line,
    invoice_series,
    organization,
    organization_balance,
    price_version,
    project,
    usage_day,
)

ISSUED: Final = (
    InvoiceState.OPEN,
    InvoiceState.PAID,
    InvoiceState.VOID,
    InvoiceState.UNCOLLECTIBLE,
)
"""All states of a document that has a number."""

_LINE_COLUMNS: Final = tuple(field.name for field in fields(Line))


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


# Months --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BillingMonth:
    """A month that was cut off, with its bounds on the clocks of its organization, in UTC."""

    organization_id: UUID
    month: date
    timezone: str
    starts_at: datetime
    ends_at: datetime
    cut_off_at: datetime


async def find_month(connection: AsyncConnection, organization_id: UUID, month: date) -> BillingMonth | None:
    """A month that was cut off; None where it was not."""
    row = await fetch_optional(
        connection,
        select(billing_month).where(billing_month.c.organization_id == organization_id, billing_month.c.month == month),
    )
    return None if row is None else BillingMonth(**row._mapping)


async def add_month(connection: AsyncConnection, ended: BillingMonth, open_month: date) -> None:
    """Store a month that is cut off: from now on charges are billed in `open_month` or later. The money is locked."""
    await connection.execute(insert(billing_month).values(**asdict(ended)))
    await connection.execute(
        update(organization_balance)
        .where(
            organization_balance.c.organization_id == ended.organization_id,
            organization_balance.c.open_month < open_month,
        )
        .values(open_month=open_month)
    )


async def organizations_to_bill(connection: AsyncConnection, after: UUID | None, limit: int | None) -> list[UUID]:
    """Organizations with accounts, in the order of their ids; closed ones among them, which owe what they used."""
    statement = (
        select(organization.c.id)
        .join(organization_balance, organization_balance.c.organization_id == organization.c.id)
        .order_by(organization.c.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(organization.c.id > after)
    return list((await connection.execute(statement)).scalars())


async def months_without_invoice(connection: AsyncConnection, organization_id: UUID, before: date) -> list[date]:
    """Months before `before` with usage that is on no invoice, not even on a draft."""
    billed = (
        select(invoice.c.id)
        .where(
            invoice.c.organization_id == organization_id,
            invoice.c.month == usage_day.c.billing_month,
            invoice.c.kind == InvoiceKind.INVOICE,
            invoice.c.state != InvoiceState.VOID,
        )
        .exists()
    )
    rows = await connection.execute(
        select(usage_day.c.billing_month)
        .where(usage_day.c.organization_id == organization_id, usage_day.c.billing_month < before, ~billed)
        .group_by(usage_day.c.billing_month)
        .order_by(usage_day.c.billing_month)
    )
    return list(rows.scalars())


# What a draft is made of ---------------------------------------------------------------------------------------------


async def usage_of(connection: AsyncConnection, organization_id: UUID, month: date) -> list[UsageGroup]:
    """The sums of a month by project, model and prices; from the sums of its days, never from the charges."""
    summed = ("calls", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
    amounts = (*summed, "images", "audio_seconds", "amount", "unbilled")
    key = (usage_day.c.project_id, project.c.name, usage_day.c.model, usage_day.c.price_version_ids)
    rows = await connection.execute(
        select(*key, *(func.sum(usage_day.c[name]).label(name) for name in amounts))
        .outerjoin(project, project.c.id == usage_day.c.project_id)
        .where(usage_day.c.organization_id == organization_id, usage_day.c.billing_month == month)
        .group_by(*key)
        .order_by(*key)
    )
    return [
        UsageGroup(
            project_id=row.project_id,
            project_name=row.name,
            model=row.model,
            price_version_ids=tuple(row.price_version_ids),
            **{name: int(getattr(row, name)) for name in amounts},
        )
        for row in rows
    ]


async def pinned_prices(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, PriceVersion]:
    """Price versions by id."""
    rows = await connection.execute(select(price_version).where(price_version.c.id.in_(ids)))
    return {row.id: price_version_of(row) for row in rows}


async def earlier_totals(connection: AsyncConnection, organization_id: UUID, month: date, count: int) -> list[int]:
    """Totals of the issued invoices of up to `count` months before `month`, the latest first."""
    rows = await connection.execute(
        select(invoice.c.total)
        .where(
            invoice.c.organization_id == organization_id,
            invoice.c.kind == InvoiceKind.INVOICE,
            invoice.c.state.not_in((InvoiceState.DRAFT, InvoiceState.VOID)),
            invoice.c.month < month,
        )
        .order_by(invoice.c.month.desc())
        .limit(count)
    )
    return [int(total) for total in rows.scalars()]


# Writing -------------------------------------------------------------------------------------------------------------


async def add_document(connection: AsyncConnection, values: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """Store a draft of an invoice or a credit note; `values` are columns. The money of its organization is locked."""
    await connection.execute(insert(invoice).values(**values, state=InvoiceState.DRAFT.value))
    await _add_lines(connection, values["id"], lines)


async def change_draft(
    connection: AsyncConnection, invoice_id: UUID, values: Mapping[str, Any], lines: Sequence[Line]
) -> None:
    """Make a draft anew."""
    await connection.execute(delete(invoice_line).where(invoice_line.c.invoice_id == invoice_id))
    await _add_lines(connection, invoice_id, lines)
    await change_document(connection, invoice_id, values)


async def change_document(connection: AsyncConnection, invoice_id: UUID, values: Mapping[str, Any]) -> None:
    """Change columns of a document; the database refuses those that stay when it is issued."""
    await connection.execute(update(invoice).where(invoice.c.id == invoice_id).values(**values))


async def next_number(connection: AsyncConnection, series: str) -> int:
    """The next number of a series. It stays locked until the transaction ends, so that no number is ever missing.

    Whoever takes one locks nothing after it: everybody who issues a document waits here.
    """
    statement = (
        upsert(invoice_series)
        .values(id=series, last_number=1)
        .on_conflict_do_update(
            index_elements=[invoice_series.c.id], set_={"last_number": invoice_series.c.last_number + 1}
        )
        .returning(invoice_series.c.last_number)
    )
    return int((await connection.execute(statement)).scalar_one())


async def owner_of(connection: AsyncConnection, invoice_id: UUID) -> UUID | None:
    """The organization of a document."""
    statement = select(invoice.c.organization_id).where(invoice.c.id == invoice_id)
    owner: UUID | None = (await connection.execute(statement)).scalar_one_or_none()
    return owner


def _columns(line: Line) -> dict[str, Any]:
    # Not `asdict`, which copies each value: an invoice has hundreds of lines, and is made twice.
    return {name: getattr(line, name) for name in _LINE_COLUMNS}


async def _add_lines(connection: AsyncConnection, invoice_id: UUID, lines: Sequence[Line]) -> None:
    if lines:
        await connection.execute(
            insert(invoice_line),
            [{"invoice_id": invoice_id, "seq": seq, **_columns(line)} for seq, line in enumerate(lines, 1)],
        )
