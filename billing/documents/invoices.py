"""Invoices, credit notes and statements of the book as documents: which of their facts are shown, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from billing.documents.document import (
    Account,
    Ageing,
    Document,
    Kind,
    Korea,
    Language,
    Line,
    Mark,
    Movement,
    Party,
    Tax,
    Totals,
)
from billing.documents.words import (
    AMENDMENTS,
    BUCKETS,
    ENTRIES,
    INCLUSIVE,
    LINES,
    METERS,
    PER_MILLION,
    PROJECT,
    TAX,
    TREATMENTS,
    UNITS,
)
from billing.receivables import Bucket, Entry, Statement
from models import invoice as book
from models.catalog import Meter
from models.invoice import Invoice, InvoiceKind, InvoiceState, LineKind, TaxTreatment
from models.money import Units, shown_amount, shown_price

_PPM_PER_PERCENT: Final = 10_000
_MARKS: Final = {InvoiceState.DRAFT: Mark.DRAFT, InvoiceState.VOID: Mark.VOID}
_INSTANT: Final = timedelta(microseconds=1)


def invoice_document(invoice: Invoice, original: Invoice | None = None, *, settled: bool = False) -> Document:
    """An invoice or credit note as a document; `original` is the invoice that a credit note corrects.

    It is what was issued, with a mark on a draft or a void one. Paper does not change when money comes in; with
    `settled` it says what was paid of it since, as a screen does.
    """
    language: Language = "ko" if invoice.language == "ko" else "en"
    # A Korean amendment that takes back is written with amounts below zero.
    sign = -1 if language == "ko" and invoice.kind is InvoiceKind.CREDIT_NOTE else 1
    seller = invoice.seller
    return Document(
        kind=Kind(invoice.kind.value),
        language=language,
        number=invoice.number_text or "-",
        currency=invoice.currency,
        issued_on=invoice.issued_on or invoice.created_at.astimezone(_zone(invoice)).date(),
        due_on=invoice.due_on,
        period=_period(invoice),
        seller=_party(seller, _registration(invoice, "seller")),
        buyer=_party(invoice.buyer, _registration(invoice, "buyer")),
        purchase_order=invoice.purchase_order,
        corrects=original.number_text if original else None,
        reason=invoice.reason,
        lines=tuple(_line(line, invoice, language, sign) for line in invoice.lines),
        totals=_totals(invoice, language, sign, settled=settled),
        korea=_korea(invoice, language, sign),
        mark=_MARKS.get(invoice.state),
        terms=(seller.payment_details,) if _asks_for_money(invoice) and seller and seller.payment_details else (),
        notes=_notes(invoice, language),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What is stated to an organization: what changed what it owes in a period, both ends of it included."""

    seller: book.Party | None
    buyer: book.Party
    currency: str
    language: Language
    issued_on: date
    period: tuple[date, date]
    statement: Statement
    ageing: Mapping[Bucket, Units]


def statement_document(stated: Stated) -> Document:
    """A statement of account as a document; its number is its period."""
    code, (first, last) = stated.currency, stated.period
    ageing = ((bucket, units) for bucket, units in stated.ageing.items() if units)
    return Document(
        kind=Kind.STATEMENT,
        language=stated.language,
        number=f"{first.isoformat()}/{last.isoformat()}",
        currency=code,
        issued_on=stated.issued_on,
        period=stated.period,
        seller=_party(stated.seller, None),
        buyer=_party(stated.buyer, None),
        account=Account(
            opening=shown_amount(stated.statement.opening, code),
            movements=tuple(_movement(entry, code, stated.language) for entry in stated.statement.entries),
            closing=shown_amount(stated.statement.closing, code),
            ageing=tuple(Ageing(name=BUCKETS[bucket], amount=shown_amount(units, code)) for bucket, units in ageing),
        ),
    )


def _movement(entry: Entry, code: str, language: Language) -> Movement:
    return Movement(
        on=entry.on,
        reference=entry.reference,
        description=ENTRIES[entry.kind][language],
        charged=shown_amount(entry.amount, code) if entry.amount > 0 else "",
        paid=shown_amount(-entry.amount, code) if entry.amount < 0 else "",
        balance=shown_amount(entry.balance, code),
    )


def _party(party: book.Party | None, registration: str | None) -> Party:
    if party is None:
        return Party(name="-")
    tax_id = registration or party.tax_id
    if party.country == "KR" and tax_id and len(tax_id) == 10 and tax_id.isascii() and tax_id.isdigit():
        tax_id = f"{tax_id[:3]}-{tax_id[3:5]}-{tax_id[5:]}"
    return Party(name=party.legal_name, tax_id=tax_id, address=party.address, email=party.email, phone=party.phone)


def _registration(invoice: Invoice, side: str) -> str | None:
    if invoice.korea is None:
        return None
    return invoice.korea.seller_registration if side == "seller" else invoice.korea.buyer_registration


def _zone(invoice: Invoice) -> tzinfo:
    return UTC if invoice.timezone is None else ZoneInfo(invoice.timezone)


def _period(invoice: Invoice) -> tuple[date, date] | None:
    """First and last day in the organization's time zone: the end is the first instant that is not in it."""
    if invoice.starts_at is None or invoice.ends_at is None:
        return None

    def day(moment: datetime) -> date:
        return moment.astimezone(_zone(invoice)).date()

    return day(invoice.starts_at), day(invoice.ends_at - _INSTANT)


def _line(line: book.Line, invoice: Invoice, language: Language, sign: int) -> Line:
    meter = None if line.meter is None else Meter(line.meter)
    priced = meter is not None and line.unit_price is not None
    unit = UNITS.get(meter) if meter else None
    price = shown_price(line.unit_price or 0, invoice.currency, per=1 if unit else 1_000_000)
    return Line(
        description=_description(line, meter, language),
        detail=f"{PROJECT[language]} {line.project_name}" if line.project_name else "",
        quantity=f"{line.quantity:,}" if line.quantity else "",
        unit_price=price if priced else "",
        unit=(unit or PER_MILLION)[language] if priced else "",
        amount=shown_amount(sign * line.rounded, invoice.currency),
    )


def _description(line: book.Line, meter: Meter | None, language: Language) -> str:
    if language == "en":
        return line.description
    about = f"{line.model}: " if line.model else ""
    if line.kind is LineKind.USAGE and meter is not None:
        return about + METERS[meter]
    ours = LINES.get(line.kind)
    return line.description if ours is None else about + ours


def _totals(invoice: Invoice, language: Language, sign: int, *, settled: bool) -> Totals:
    def shown(units: int) -> str:
        return shown_amount(sign * units, invoice.currency)

    tax = invoice.tax
    taxes: tuple[Tax, ...] = ()
    if tax.treatment in (TaxTreatment.STANDARD, TaxTreatment.ZERO_RATED):
        name = tax.name or TAX[language]
        # People name a rule with its rate, and it is not to stand there twice.
        rate = "" if "%" in name else _percent(tax.rate_ppm, language)
        taxes = (Tax(name=name, rate=rate, base=shown(tax.base), amount=shown(invoice.total - invoice.subtotal)),)
    tells = settled and invoice.kind is InvoiceKind.INVOICE and invoice.state in (InvoiceState.OPEN, InvoiceState.PAID)
    return Totals(
        subtotal=shown(invoice.subtotal),
        taxes=taxes,
        rounding=shown(invoice.rounding) if invoice.rounding else None,
        total=shown(invoice.total),
        paid=shown_amount(-invoice.settled, invoice.currency) if tells and invoice.settled else None,
        open=shown(invoice.due) if tells else None,
    )


def _percent(ppm: int, language: Language) -> str:
    whole, part = divmod(ppm, _PPM_PER_PERCENT)
    digits = f"{part:04d}".rstrip("0")
    number = f"{whole}.{digits}" if digits else f"{whole}"
    return f"{number}%" if language == "ko" else f"{number} %"


def _korea(invoice: Invoice, language: Language, sign: int) -> Korea | None:
    korea = invoice.korea
    if korea is None:
        return None
    return Korea(
        supply_value=shown_amount(sign * korea.supply_value, invoice.currency),
        tax=shown_amount(sign * korea.tax, invoice.currency),
        written_on=korea.written_on,
        amendment_reason=AMENDMENTS[korea.reason][language] if korea.reason else None,
        original_approval_number=korea.original_approval_number,
        approval_number=korea.approval_number,
    )


def _asks_for_money(invoice: Invoice) -> bool:
    return invoice.kind is InvoiceKind.INVOICE and invoice.total > 0


def _notes(invoice: Invoice, language: Language) -> tuple[str, ...]:
    treatment = TREATMENTS.get(invoice.tax.treatment)
    inclusive = INCLUSIVE[language] if invoice.tax.is_inclusive else None
    note = invoice.korea.note if invoice.korea else None
    return tuple(each for each in (treatment[language] if treatment else None, inclusive, note) if each)
