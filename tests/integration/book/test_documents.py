"""Documents of invoices that were really issued: what the ledger says is what the paper says."""

from __future__ import annotations

import pytest

from billing.documents import Mark, invoice_document, pdf
from billing.invoices import NewCreditNote, credit_note, void
from billing.store.documents import keep_digest
from billing.store.invoices import find_invoice
from billing.tax import TaxRule
from models.invoice import AmendmentReason, LineKind, TaxTreatment
from models.money import shown_amount
from tests.integration.book.desk import LATER, VAT, Desk
from tests.integration.book.shop import Shop
from tests.unit.documents.reading import paper_text, squeezed

pytestmark = pytest.mark.anyio

KOREAN_SELLER = {"legal_name": "한빛추론", "country": "KR", "tax_id": "1248100998", "address": "서울 강남구"}


async def test_an_issued_invoice_is_on_paper_to_the_last_line(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(VAT, payment_details="Bank A\nIBAN DE00")
    tenant = await desk.customer(paid=100_000, legal_name="Acme & Söhne GmbH", country="FR", purchase_order="PO-7")
    for tokens in (1_000_001, 777_777):
        await desk.use(tenant, tokens)
    issued = await desk.bill(tenant)
    text = paper_text(invoice_document(issued))
    assert {line.kind for line in issued.lines} == {LineKind.USAGE, LineKind.CREDIT}
    for line in issued.lines:
        assert squeezed(line.description) in text
        assert shown_amount(line.rounded, "USD") in text
        assert not line.quantity or f"{line.quantity:,}" in text
    for told in (issued.number_text or "?", "Acme & Söhne GmbH", "PO-7", "Models Ltd", "IBAN DE00"):
        assert squeezed(told) in text
    for units in (issued.subtotal, issued.tax.amount, issued.total):
        assert shown_amount(units, "USD") in text
    assert "VAT19%(of" in text


async def test_what_is_read_again_is_the_same_paper(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(VAT)
    tenant = await desk.customer(legal_name="Acme", country="FR")
    await desk.use(tenant, 1_000_001)
    issued = await desk.bill(tenant)
    first = pdf(invoice_document(issued))
    # Who the parties are today is no matter of an invoice that was issued.
    await desk.change(tenant, legal_name="Another", address="Elsewhere")
    await desk.open(legal_name="Somebody else")
    await desk.pay(tenant, issued.total)
    async with shop.engine.connect() as connection:
        paid = await find_invoice(connection, issued.id)
    assert paid is not None
    assert pdf(invoice_document(paid)) == first


async def test_a_void_invoice_still_gets_its_digest(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(VAT)
    tenant = await desk.customer(country="FR")
    await desk.use(tenant, 1_000_001)
    issued = await desk.bill(tenant)
    async with shop.engine.begin() as connection:
        taken_back = await void(connection, issued.id, "wrong buyer", LATER)
        assert await keep_digest(connection, issued.id, b"\1" * 32) == b"\1" * 32
    document = invoice_document(taken_back)
    assert document.mark is Mark.VOID
    assert document.as_issued() == invoice_document(issued)


async def test_a_korean_seller_issues_korean_papers(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(TaxRule(TaxTreatment.STANDARD, 100_000, name="부가가치세"), **KOREAN_SELLER)
    tenant = await desk.customer(legal_name="(주)구매", country="KR", tax_id="2208162517", language="ko")
    await desk.use(tenant, 1_000_001)
    issued = await desk.bill(tenant)
    text = paper_text(invoice_document(issued))
    for told in (
        "거래명세서",
        "한빛추론",
        "124-81-00998",
        "(주)구매",
        "220-81-62517",
        "작성일자",
        "공급가액",
        "세액",
        "입력 토큰",
    ):
        assert squeezed(told) in text
    assert shown_amount(issued.total, "USD") in text
    async with shop.engine.begin() as connection:
        asked = NewCreditNote("단가 합의", amendment=AmendmentReason.VALUE_CHANGED)
        note = await credit_note(connection, issued.id, asked, "k", LATER)
    text = paper_text(invoice_document(note, issued))
    for told in ("수정 거래명세서", "공급가액 변동", note.number_text or "?", issued.number_text or "?"):
        assert squeezed(told) in text
    assert shown_amount(-note.total, "USD") in text
