"""Documents on paper and on screen: everything is there, it can be selected, and nobody's name is more than text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from billing.documents import CONTENT_SECURITY_POLICY, Document, Line, Mark, Party, html, pdf
from billing.documents.sheet import Sheet, sheet
from tests.unit.documents.reading import Page, pages, paper_text, squeezed
from tests.unit.documents.samples import CORRECTION, ENGLISH, KOREAN, STATEMENT, usage_lines

SAMPLES = [
    pytest.param(ENGLISH, id="an English invoice"),
    pytest.param(KOREAN, id="a Korean invoice"),
    pytest.param(CORRECTION, id="a Korean credit note"),
    pytest.param(STATEMENT, id="a statement of account"),
]
MARKUP = (
    '#import "@preview/x:1.0.0" $x^2$ *b* _i_ `r` \\u{41} "q" \'s\' <script>alert(1)</script> <b onclick=x>&amp;</b>'
    " ]] }} //c /*d*/ <label> @ref = head -- ... ~ {{x}} %PDF"
)


def texts_of(value: Any) -> set[str]:
    """Every text in a sheet, but for what it is called in the code."""
    if isinstance(value, str):
        return {value} if value.strip() else set()
    if isinstance(value, tuple):
        return set().union(*(texts_of(each) for each in value)) if value else set()
    if not hasattr(value, "__dataclass_fields__"):
        return set()
    names = set(value.__dataclass_fields__) - {"align", "language", "seller"}
    return set().union(*(texts_of(getattr(value, name)) for name in names))


def shown_on_screen(laid: Sheet) -> set[str]:
    return texts_of(replace(laid, page="", number=""))


@pytest.mark.parametrize("document", SAMPLES)
def test_paper_says_everything(document: Document) -> None:
    text = paper_text(document)
    missing = {each for each in texts_of(sheet(document)) if squeezed(each) not in text}
    assert not missing


@pytest.mark.parametrize("document", SAMPLES)
def test_screen_says_the_same_and_no_more(document: Document) -> None:
    assert set(Page(document).texts) == shown_on_screen(sheet(document))


@pytest.mark.parametrize(
    ("document", "told"),
    [
        pytest.param(
            ENGLISH,
            ["INV-2026-000042", "Żółć & Söhne Verlag GmbH", "PO-7781", "1–31 October 2026", "$18,148.05", "8.25 %"],
            id="an English invoice",
        ),
        pytest.param(
            KOREAN,
            [
                "공급자",
                "공급받는자",
                "등록번호",
                "124-81-00998",
                "(주)똠방각하 소프트웨어",
                "작성일자",
                "2026년 10월 31일",
                "공급가액",
                "₩69,407,386",
                "세액",
                "₩6,940,739",
                "합계금액",
                "₩76,348,125",
            ],
            id="a Korean invoice",
        ),
        pytest.param(CORRECTION, ["수정사유", "공급가액 변동", "당초 승인번호", "INV-2026-000043"], id="a credit note"),
        pytest.param(
            STATEMENT, ["Opening balance", "$500.00", "Closing balance", "$28,130.39", "1–30"], id="a statement"
        ),
    ],
)
def test_text_can_be_selected(document: Document, told: list[str]) -> None:
    text = paper_text(document)
    assert [each for each in told if squeezed(each) not in text] == []


@pytest.mark.parametrize("document", SAMPLES)
def test_only_our_fonts_are_used_and_they_are_in_the_file(document: Document) -> None:
    fonts = {}
    read: list[Any] = list(PdfReader(io.BytesIO(pdf(document))).pages)
    for page in read:
        for font in page["/Resources"]["/Font"].values():
            descriptor = font["/DescendantFonts"][0].get_object()["/FontDescriptor"]
            fonts[font["/BaseFont"].partition("+")[2]] = descriptor
    assert all(name.startswith("TollgateSans") for name in fonts)
    assert len(fonts) >= 2
    assert all("/FontFile2" in one or "/FontFile3" in one for one in fonts.values())


@pytest.mark.parametrize("document", SAMPLES)
def test_same_document_is_the_same_bytes(document: Document) -> None:
    first = pdf(document)
    # The clock of the machine must not be in the file.
    time.sleep(1.1)
    assert pdf(document) == first
    assert html(document) == html(document)


def test_another_amount_is_other_bytes() -> None:
    assert ENGLISH.totals is not None
    changed = replace(ENGLISH, totals=replace(ENGLISH.totals, total="$1.00"))
    assert pdf(changed) != pdf(ENGLISH)


def test_lines_go_over_pages_under_a_repeated_head() -> None:
    document = replace(ENGLISH, lines=usage_lines(500))
    read = pages(pdf(document))
    assert len(read) > 10
    text = squeezed("".join(read))
    for line in document.lines:
        row = squeezed(line.description + line.detail)
        assert text.count(row) == 1, line.detail
        assert squeezed(line.amount) in text
    with_lines = [page for page in read if "Project" in page]
    assert all("Unit price" in page for page in with_lines)
    assert [f"Page {at} / {len(read)}" in page for at, page in enumerate(read, 1)] == [True] * len(read)


@pytest.mark.parametrize("count", range(18, 30))
def test_totals_are_never_torn_apart(count: int) -> None:
    read = pages(pdf(replace(ENGLISH, lines=usage_lines(count))))
    assert len([page for page in read if "Subtotal" in page or "Sales tax" in page]) == 1
    of_totals = next(page for page in read if "Subtotal" in page)
    assert "Amount due" in of_totals.partition("Subtotal")[2]


def test_long_words_stay_in_their_columns() -> None:
    long = "Ж" * 300
    document = replace(
        ENGLISH,
        buyer=Party(name=long, address=long, tax_id=long),
        purchase_order=long,
        lines=(Line(description=long, detail=long, amount="$1.00"),),
        notes=(long,),
    )
    read = "\n".join(pages(pdf(document)))
    assert read.count("Ж") == 300 * 7
    runs = [len(run) for run in re.findall("Ж+", read)]
    # As many as fit between the margins of the page, in the small letters of a detail.
    assert max(runs) < 70


def hostile(text: str) -> Document:
    return replace(
        ENGLISH,
        number="INV-1",
        seller=replace(ENGLISH.seller, name=text),
        buyer=Party(name=text, tax_id=text, address=text, email=text, phone=text),
        purchase_order=text,
        reason=text,
        lines=(Line(description=text, detail=text, amount="$1.00"), *usage_lines(1)),
        terms=(text,),
        notes=(text,),
    )


@pytest.mark.parametrize("of", [ENGLISH, KOREAN], ids=["English", "Korean"])
def test_markup_is_only_text(of: Document) -> None:
    document = replace(of, buyer=replace(of.buyer, name=MARKUP), lines=(Line(description=MARKUP, amount="$1.00"),))
    assert paper_text(document).count(squeezed(MARKUP)) == 2
    page = Page(document)
    assert page.texts.count(MARKUP) == 2
    assert page.tags == Page(of).tags - {"small"}
    assert page.attributes <= Page(of).attributes


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), max_size=300))
def test_any_text_changes_nothing_but_text(text: str) -> None:
    document = hostile(text)
    assert pdf(document).startswith(b"%PDF-")
    page = Page(document)
    assert page.tags <= Page(ENGLISH).tags
    assert {name for name, _ in page.attributes} == {name for name, _ in Page(ENGLISH).attributes}
    assert set(page.texts) == shown_on_screen(sheet(document))


def test_a_name_cannot_turn_what_follows() -> None:
    page = html(hostile("GmbH \u202e00.1$ \u2067x\x00\x1b[2J\ud800"))
    assert not set(page) & set("\u202e\u2067\x00\x1b\ud800")


def test_names_in_other_scripts_are_set_too() -> None:
    # As boxes where the fonts have no such letter; the page on screen has the reader's own fonts.
    document = hostile("日本 😀 שלום مرحبا")
    assert "POBox7" in paper_text(replace(document, buyer=replace(document.buyer, address="日本 😀 שלום\nPO Box 7")))
    assert "日本 😀 שלום مرحبا" in Page(document).texts


def test_page_runs_and_fetches_nothing() -> None:
    page = html(ENGLISH)
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert not {"script", "img", "link", "iframe", "form"} & Page(ENGLISH).tags
    assert not {name for name, _ in Page(ENGLISH).attributes} & {"style", "src", "href", "onclick"}
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize(("mark", "told"), [(Mark.DRAFT, "Draft: not an invoice yet"), (Mark.VOID, "Void: do not pay")])
def test_what_nobody_should_pay_says_so(mark: Mark, told: str) -> None:
    marked = replace(ENGLISH, mark=mark)
    assert squeezed(told) in paper_text(marked)
    assert told in Page(marked).texts
    assert pdf(marked.as_issued()) == pdf(ENGLISH.as_issued())


def test_statement_without_account_is_no_document() -> None:
    with pytest.raises(ValueError, match="a statement has an account"):
        replace(STATEMENT, account=None)


@pytest.mark.parametrize(("name", "document"), [("invoice-en", ENGLISH.as_issued()), ("invoice-ko", KOREAN)])
def test_examples_of_the_guides_are_of_today(name: str, document: Document) -> None:
    kept = (Path(__file__).parents[3] / "docs" / "guides" / "examples" / f"{name}.pdf").read_bytes()
    assert pages(kept) == pages(pdf(document))
