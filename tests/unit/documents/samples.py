"""Documents to test with, which are the examples of docs/guides/examples as well: an English and a Korean customer."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Final

from billing.documents import (
    Account,
    Ageing,
    Document,
    Kind,
    Korea,
    Line,
    Movement,
    Party,
    Tax,
    Totals,
)
from billing.rounding import divide_half_even
from models.money import shown_amount

_MODELS: Final = ("llama-3.3-70b-instruct", "qwen3-32b", "gpt-oss-120b")
_METERS: Final = ("input tokens", "cached input tokens", "output tokens")


def usage_lines(count: int) -> tuple[Line, ...]:
    """Lines of usage, each with texts of its own; their amounts are quantity by price."""
    return tuple(
        Line(
            description=f"{_MODELS[at % 3]}: {_METERS[at // 3 % 3]}",
            detail=f"Project {('Search', 'Support chat', 'Batch summaries')[at // 9 % 3]} #{at:04d}",
            quantity=f"{_tokens(at):,}",
            unit_price=f"$0.{_cents(at)}",
            unit="per million tokens",
            amount=_dollars(_amount(at)),
        )
        for at in range(count)
    )


def _tokens(at: int) -> int:
    return 12_345_670_000 + at * 791_900_000


def _cents(at: int) -> int:
    return 15 + at % 80


def _amount(at: int) -> int:
    return divide_half_even(_tokens(at) * _cents(at), 1_000_000)


def _dollars(cents: int) -> str:
    return shown_amount(cents * 10_000_000, "USD")


def _won(won: int) -> str:
    return shown_amount(won * 1_000_000, "KRW")


_CREDIT: Final = 100_000
_SUBTOTAL: Final = sum(_amount(at) for at in range(9)) - _CREDIT
_TAX: Final = divide_half_even(_SUBTOTAL * 825, 10_000)
_PAID: Final = 1_000_000
_SUPPLIES: Final = [divide_half_even((12_345_678 + at * 1_234_567) * (200 + at * 55), 1_000) for at in range(9)]
_VAT: Final = divide_half_even(sum(_SUPPLIES), 10)

ENGLISH: Final = Document(
    kind=Kind.INVOICE,
    language="en",
    number="INV-2026-000042",
    currency="USD",
    issued_on=date(2026, 11, 2),
    due_on=date(2026, 12, 2),
    period=(date(2026, 10, 1), date(2026, 10, 31)),
    purchase_order="PO-7781",
    seller=Party(
        name="Northern Inference Inc.",
        tax_id="US 84-1234567",
        address="500 Pine Street, Suite 1200\nSeattle, WA 98101\nUnited States",
        email="billing@northern-inference.example",
    ),
    buyer=Party(
        name="Żółć & Söhne Verlag GmbH",
        tax_id="DE 123456789",
        address="Lindenallee 7\n10115 Berlin\nGermany",
        email="rechnungen@zolc.example",
    ),
    lines=(
        *usage_lines(9),
        Line(description="Paid by credit grants", detail="Commit 2026", amount=_dollars(-_CREDIT)),
    ),
    totals=Totals(
        subtotal=_dollars(_SUBTOTAL),
        taxes=(Tax(name="Sales tax", rate="8.25 %", base=_dollars(_SUBTOTAL), amount=_dollars(_TAX)),),
        rounding="$0.00000035",
        total=_dollars(_SUBTOTAL + _TAX),
        paid=_dollars(-_PAID),
        open=_dollars(_SUBTOTAL + _TAX - _PAID),
    ),
    terms=(
        "Bank transfer to Northern Inference Inc., First Example Bank, account 000123456789, routing 125000024",
        "Please name INV-2026-000042 with the payment.",
    ),
    notes=("Prices are per million tokens. Calls that ended after 1 November 06:00 UTC are on the next invoice.",),
)

KOREAN: Final = Document(
    kind=Kind.INVOICE,
    language="ko",
    number="INV-2026-000043",
    currency="KRW",
    issued_on=date(2026, 11, 2),
    due_on=date(2026, 11, 30),
    period=(date(2026, 10, 1), date(2026, 10, 31)),
    purchase_order="발주-2026-118",
    seller=Party(
        name="주식회사 한빛추론",
        tax_id="124-81-00998",
        address="서울특별시 강남구 테헤란로 152, 12층",
        email="tax@hanbit-infer.example",
        phone="02-555-0142",
    ),
    buyer=Party(
        name="(주)똠방각하 소프트웨어",
        tax_id="220-81-62517",
        address="경기도 성남시 분당구 판교역로 235\n에이치스퀘어 N동 6층",
        email="accounting@ttombang.example",
    ),
    lines=tuple(
        Line(
            description=f"{_MODELS[at % 3]}: {('입력 토큰', '캐시 입력 토큰', '출력 토큰')[at // 3]}",
            detail=f"프로젝트 {('검색', '고객 상담', '배치 요약')[at // 3]}",
            quantity=f"{(12_345_678 + at * 1_234_567) * 1_000:,}",
            unit_price=_won(200 + at * 55),
            unit="백만 토큰당",
            amount=_won(_SUPPLIES[at]),
        )
        for at in range(9)
    ),
    totals=Totals(
        subtotal=_won(sum(_SUPPLIES)),
        taxes=(Tax(name="부가가치세", rate="10%", base=_won(sum(_SUPPLIES)), amount=_won(_VAT)),),
        total=_won(sum(_SUPPLIES) + _VAT),
    ),
    korea=Korea(supply_value=_won(sum(_SUPPLIES)), tax=_won(_VAT), written_on=date(2026, 10, 31)),
    terms=("하나예시은행 123-456789-01234 (예금주: 주식회사 한빛추론)",),
    notes=("부가가치세는 문서 단위로 한 번 계산합니다.",),
)

CORRECTION: Final = replace(
    KOREAN,
    kind=Kind.CREDIT_NOTE,
    number="CN-2026-000007",
    corrects="INV-2026-000043",
    reason="단가 합의",
    due_on=None,
    lines=(Line(description="단가 조정: qwen3-32b 출력 토큰", amount="-₩100,000"),),
    totals=Totals(
        subtotal="-₩100,000",
        taxes=(Tax(name="부가가치세", rate="10%", base="-₩100,000", amount="-₩10,000"),),
        total="-₩110,000",
    ),
    korea=Korea(
        supply_value="-₩100,000",
        tax="-₩10,000",
        written_on=date(2026, 11, 5),
        amendment_reason="공급가액 변동",
        original_approval_number="202610314100000012345678",
    ),
    terms=(),
)

STATEMENT: Final = Document(
    kind=Kind.STATEMENT,
    language="en",
    number="2026-11",
    currency="USD",
    issued_on=date(2026, 12, 1),
    period=(date(2026, 11, 1), date(2026, 11, 30)),
    seller=ENGLISH.seller,
    buyer=ENGLISH.buyer,
    account=Account(
        opening="$500.00",
        movements=(
            Movement(
                on=date(2026, 11, 2),
                reference="INV-2026-000042",
                description="Invoice for October 2026",
                charged="$47,630.39",
                balance="$48,130.39",
            ),
            Movement(
                on=date(2026, 11, 20),
                reference="wire 8841",
                description="Payment",
                paid="$20,000.00",
                balance="$28,130.39",
            ),
        ),
        closing="$28,130.39",
        ageing=(Ageing(name="", amount="$27,630.39"), Ageing(name="1–30", amount="$500.00")),
    ),
)
