"""Invoices of the book as documents: which of their facts are told, how, and what changes after the issue."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.documents import Document, Mark, Stated, html, invoice_document, pdf, statement_document
from billing.documents.sheet import sheet
from billing.receivables import Bucket, Entry, EntryKind, Statement
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
from models.money import CURRENCIES, MilliUnits, Units, amount_text, shown_amount, shown_price
from tests.unit.documents.reading import paper_text, squeezed

CENT: Final = 10_000_000
WON: Final = 1_000_000
NOW: Final = datetime(2026, 11, 2, 3, tzinfo=UTC)

DOLLARS: Final = Invoice(
    id=UUID(int=1),
    organization_id=UUID(int=2),
    kind=InvoiceKind.INVOICE,
    state=InvoiceState.OPEN,
    series="INV",
    number=42,
    currency="USD",
    subtotal=Units(123_456 * CENT),
    total=Units(146_913 * CENT),
    rounding=Units(350),
    settled=Units(46_913 * CENT),
    tax=Tax(TaxTreatment.STANDARD, Units(123_456 * CENT), Units(23_457 * CENT), 190_000, "VAT"),
    buyer=Party("Buyer GmbH", country="DE", tax_id="DE1", address="Street 1\nBerlin"),
    seller=Party("Models Ltd", country="DE", payment_details="Bank A\nIBAN DE00"),
    language="en",
    created_at=NOW,
    lines=(
        Line(
            LineKind.USAGE,
            "tiny: input tokens",
            Units(123_460 * CENT),
            Units(123_460 * CENT),
            project_name="Search",
            model="tiny",
            meter="input",
            quantity=8_230_666_667,
            unit_price=MilliUnits(150_000),
        ),
        Line(LineKind.CREDIT, "Paid from credit", Units(-4 * CENT), Units(-4 * CENT)),
        Line(
            LineKind.USAGE,
            "tiny: requests",
            Units(0),
            model="tiny",
            meter="request",
            quantity=12,
            unit_price=MilliUnits(2_500_000_000),
        ),
    ),
    month=date(2026, 10, 1),
    timezone="Asia/Seoul",
    starts_at=datetime(2026, 9, 30, 15, tzinfo=UTC),
    ends_at=datetime(2026, 10, 31, 15, tzinfo=UTC),
    issued_on=date(2026, 11, 2),
    due_on=date(2026, 12, 2),
)

WONS: Final = replace(
    DOLLARS,
    currency="KRW",
    language="ko",
    subtotal=Units(100_005 * WON),
    total=Units(110_006 * WON),
    settled=Units(0),
    rounding=Units(0),
    tax=Tax(TaxTreatment.STANDARD, Units(100_005 * WON), Units(10_001 * WON), 100_000, "부가가치세"),
    buyer=Party("(주)구매", country="KR", tax_id="2208162517"),
    seller=Party("한빛추론", country="KR", tax_id="1248100998"),
    lines=(replace(DOLLARS.lines[0], rounded=Units(100_005 * WON), unit_price=MilliUnits(200_000)),),
    korea=Korea(Units(100_005 * WON), Units(10_001 * WON), date(2026, 10, 31), "1248100998", "2208162517"),
)

NOTE: Final = replace(
    WONS,
    id=UUID(int=3),
    kind=InvoiceKind.CREDIT_NOTE,
    state=InvoiceState.PAID,
    series="CN",
    number=7,
    corrects=WONS.id,
    reason="단가 합의",
    due_on=None,
    lines=(Line(LineKind.ITEM, "단가 합의", Units(100_005 * WON), Units(100_005 * WON)),),
    korea=replace(
        WONS.korea,  # type: ignore[type-var]
        reason=AmendmentReason.VALUE_CHANGED,
        original_approval_number="202610314100000012345678",
    ),
)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        pytest.param(
            invoice_document(DOLLARS),
            [
                "INV-000042",
                "tiny: input tokens",
                "Project Search",
                "8,230,666,667",
                "$0.15",
                "per million tokens",
                "$1,234.60",
                "-$0.04",
                "$0.0025",
                "per request",
                "$1,234.56",
                "VAT 19 % (of $1,234.56)",
                "$234.57",
                "$1,469.13",
                "1–31 October 2026",
                "2 December 2026",
                "IBAN DE00",
                "$0.00000035",
            ],
            id="in dollars",
        ),
        pytest.param(
            invoice_document(WONS),
            [
                "거래명세서",
                "124-81-00998",
                "220-81-62517",
                "tiny: 입력 토큰",
                "₩200",
                "백만 토큰당",
                "₩100,005",
                "부가가치세 10% (과세표준 ₩100,005)",
                "₩10,001",
                "합계금액 (KRW)",
                "₩110,006",
                "2026년 10월 31일",
            ],
            id="in won",
        ),
        pytest.param(
            invoice_document(NOTE, WONS),
            [
                "수정 거래명세서",
                "CN-000007",
                "INV-000042",
                "수정사유",
                "공급가액 변동",
                "202610314100000012345678",
                "-₩100,005",
                "-₩10,001",
                "-₩110,006",
            ],
            id="a Korean amendment that takes back is below zero",
        ),
        pytest.param(
            invoice_document(replace(NOTE, language="en", korea=None), WONS),
            ["Credit note", "Corrects", "Reason", "Total credited", "₩110,006"],
            id="an English credit note",
        ),
    ],
)
def test_facts_are_told(document: Document, told: list[str]) -> None:
    text, page = paper_text(document), squeezed(html(document).replace("&amp;", "&"))
    assert [each for each in told if squeezed(each) not in text] == []
    assert [each for each in told if not all(squeezed(word) in page for word in each.split("&"))] == []


@pytest.mark.parametrize(
    ("treatment", "told"),
    [
        (TaxTreatment.REVERSE_CHARGE, "Reverse charge: the recipient accounts for the tax."),
        (TaxTreatment.EXEMPT, "This supply is exempt from tax."),
        (TaxTreatment.ZERO_RATED, "This supply is zero-rated."),
    ],
)
def test_why_there_is_no_tax_is_told(treatment: TaxTreatment, told: str) -> None:
    tax = Tax(treatment, DOLLARS.subtotal, Units(0))
    document = invoice_document(replace(DOLLARS, tax=tax, total=DOLLARS.subtotal))
    assert told in document.notes


def test_without_a_rule_nothing_is_said_about_tax() -> None:
    tax = Tax(TaxTreatment.NONE, DOLLARS.subtotal, Units(0))
    laid = sheet(invoice_document(replace(DOLLARS, tax=tax, total=DOLLARS.subtotal)))
    assert [row.label for row in laid.totals] == ["Subtotal", "Total"]


def test_a_rate_that_is_in_the_name_is_told_once() -> None:
    tax = replace(DOLLARS.tax, name="VAT 19 %")
    assert sheet(invoice_document(replace(DOLLARS, tax=tax))).totals[1].label == "VAT 19 % (of $1,234.56)"


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(replace(DOLLARS, settled=DOLLARS.total, state=InvoiceState.PAID), id="paid"),
        pytest.param(replace(DOLLARS, state=InvoiceState.VOID, reason="wrong buyer"), id="void"),
        pytest.param(replace(DOLLARS, state=InvoiceState.UNCOLLECTIBLE), id="written off"),
    ],
)
def test_what_happens_later_does_not_change_what_was_issued(later: Invoice) -> None:
    issued = invoice_document(DOLLARS)
    assert issued.as_issued() == issued
    assert invoice_document(later).as_issued() == issued


def test_an_approval_number_comes_after_the_issue() -> None:
    assert WONS.korea is not None
    approved = invoice_document(replace(WONS, korea=replace(WONS.korea, approval_number="2" * 24)))
    assert squeezed("승인번호" + "2" * 24) in paper_text(approved)
    assert pdf(approved.as_issued()) == pdf(invoice_document(WONS))


def test_a_screen_says_what_is_still_to_be_paid() -> None:
    totals = sheet(invoice_document(DOLLARS, settled=True)).totals
    assert [(row.label, row.value) for row in totals[-2:]] == [
        ("Paid and credited", "-$469.13"),
        ("Amount due", "$1,000.00"),
    ]
    assert "Amount due" not in [row.label for row in sheet(invoice_document(DOLLARS)).totals]


@pytest.mark.parametrize(
    ("invoice", "mark"),
    [
        (replace(DOLLARS, state=InvoiceState.DRAFT, number=None, issued_on=None, due_on=None, seller=None), Mark.DRAFT),
        (replace(DOLLARS, state=InvoiceState.VOID), Mark.VOID),
        (DOLLARS, None),
    ],
)
def test_draft_and_void_are_marked(invoice: Invoice, mark: Mark | None) -> None:
    document = invoice_document(invoice)
    assert document.mark is mark
    assert pdf(document).startswith(b"%PDF-")


def test_statement_is_a_document() -> None:
    entries = (
        Entry(date(2026, 11, 2), EntryKind.INVOICE, "INV-000042", Units(146_913 * CENT), Units(146_913 * CENT)),
        Entry(date(2026, 11, 9), EntryKind.PAYMENT, "wire 1", Units(-46_913 * CENT), Units(100_000 * CENT)),
    )
    stated = Stated(
        seller=DOLLARS.seller,
        buyer=DOLLARS.buyer,
        currency="USD",
        language="en",
        issued_on=date(2026, 12, 3),
        period=(date(2026, 11, 1), date(2026, 11, 30)),
        statement=Statement(Units(0), entries, Units(100_000 * CENT)),
        ageing={Bucket.NOT_DUE: Units(0), Bucket.UP_TO_30: Units(100_000 * CENT)},
    )
    text = paper_text(statement_document(stated))
    for told in (
        "Statement of account",
        "INV-000042",
        "$1,469.13",
        "wire 1",
        "Payment",
        "$469.13",
        "$1,000.00",
        "1–30",
    ):
        assert squeezed(told) in text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        pytest.param(shown_amount(1_234_560_000_000, "USD"), "$1,234.56", id="dollars"),
        pytest.param(shown_amount(-5 * CENT, "USD"), "-$0.05", id="below zero"),
        pytest.param(shown_amount(350, "USD"), "$0.00000035", id="as many digits as there are"),
        pytest.param(shown_amount(1_234_567 * WON, "KRW"), "₩1,234,567", id="whole won"),
        pytest.param(shown_amount(WON // 2, "KRW"), "₩0.5", id="half a won, in the rounding"),
        pytest.param(shown_amount(0, "JPY"), "¥0", id="nothing"),
        pytest.param(shown_price(12_500, "USD"), "$0.0125", id="a price per million"),
        pytest.param(shown_price(200_000, "KRW"), "₩200", id="won per million"),
        pytest.param(shown_price(2_500_000_000, "USD", per=1), "$0.0025", id="a price of one"),
    ],
)
def test_money_on_documents(shown: str, text: str) -> None:
    assert shown == text


@given(st.integers(-(10**18), 10**18), st.sampled_from(sorted(CURRENCIES)))
def test_shown_amount_is_exact(units: int, code: str) -> None:
    shown = shown_amount(units, code).replace(",", "").replace(CURRENCIES[code].symbol, "")
    exact = amount_text(units, code)
    padded = shown if "." in shown else f"{shown}."
    assert exact.rstrip("0").rstrip(".") == padded.rstrip("0").rstrip(".")
