"""A document laid out in words and rows, the same for paper and screen: these only draw what is here."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar

from billing.documents.document import Account, Document, Kind, Language, Line, Party, Tax, Totals
from billing.documents.words import MARKS, TITLES, WORDS, day, span

# Marks that turn the direction of what follows them: a name with one could show an amount backwards.
_TURNS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")

Align: TypeAlias = Literal["left", "right"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A value with its name; `strong` is one that the eye should find."""

    label: str
    value: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A party, or lines under a title; a row without a label is a plain line."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table; those with a `share` divide the room that the others leave."""

    title: str
    align: Align = "left"
    share: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the table, with what is said below it in small."""

    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """All text of a document in the order in which it is read."""

    language: Language
    title: str
    number: str
    seller: str
    mark: str
    facts: tuple[Row, ...]
    parties: tuple[Box, ...]
    summary: tuple[Row, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    totals: tuple[Row, ...]
    blocks: tuple[Box, ...]
    page: str


def sheet(document: Document) -> Sheet:
    """Lay out a document: which words, which rows, in which order."""
    language = document.language
    made = Sheet(
        language=language,
        title=TITLES[language, document.kind],
        number=document.number,
        seller=document.seller.name,
        mark=MARKS[language, document.mark] if document.mark else "",
        facts=_facts(document),
        parties=tuple(_party(document, role) for role in ("seller", "buyer")),
        summary=_summary(document),
        columns=_columns(document),
        rows=_rows(document),
        totals=_totals(document),
        blocks=_blocks(document),
        page=WORDS["page"][language],
    )
    return _printable(made)


def _word(name: str, document: Document) -> str:
    return WORDS[name][document.language]


def _known(document: Document, *pairs: tuple[str, str | None]) -> tuple[Row, ...]:
    """Rows of the values that there are, each under the word of its name."""
    return tuple(Row(_word(name, document), value) for name, value in pairs if value)


def _facts(document: Document) -> tuple[Row, ...]:
    korea = document.korea
    dates = _dates(document) if korea else ()
    return (
        *_known(document, ("number", document.number), ("issued", day(document.issued_on, document.language))),
        *dates,
        *_grounds(document),
    )


def _dates(document: Document) -> tuple[Row, ...]:
    period = span(document.period, document.language) if document.period else None
    due = day(document.due_on, document.language) if document.due_on else None
    return _known(document, ("period", period), ("due", due))


def _grounds(document: Document) -> tuple[Row, ...]:
    korea = document.korea
    return _known(
        document,
        ("purchase_order", document.purchase_order),
        ("corrects", document.corrects),
        ("reason", document.reason),
        ("amendment_reason", korea.amendment_reason if korea else None),
        ("original_approval_number", korea.original_approval_number if korea else None),
        ("approval_number", korea.approval_number if korea else None),
    )


def _party(document: Document, role: Literal["seller", "buyer"]) -> Box:
    party: Party = getattr(document, role)
    if document.language == "ko":
        return Box(_word(role, document), _form(document, party))
    name = Row(_word("name", document), party.name, strong=True)
    address = (Row("", line) for line in _lines(party.address))
    rest = _known(document, ("email", party.email), ("phone", party.phone), ("tax_id", party.tax_id))
    return Box(_word(role, document), (name, *address, *rest))


def _form(document: Document, party: Party) -> tuple[Row, ...]:
    """The fields of a Korean form: the registration number first, and the same ones for both sides."""
    sides = (document.seller, document.buyer)
    rows = [Row(_word("tax_id", document), party.tax_id or ""), Row(_word("name", document), party.name, strong=True)]
    rows.append(Row(_word("address", document), " ".join(_lines(party.address))))
    for name in ("email", "phone"):
        if any(getattr(side, name) for side in sides):
            rows.append(Row(_word(name, document), getattr(party, name) or ""))
    return tuple(rows)


def _summary(document: Document) -> tuple[Row, ...]:
    language, korea, totals = document.language, document.korea, document.totals
    if document.account is not None:
        closing = Row(f"{_word('closing', document)} ({document.currency})", document.account.closing, strong=True)
        period = span(document.period, language) if document.period else None
        return (*_known(document, ("statement_period", period), ("opening", document.account.opening)), closing)
    assert totals is not None, "what is no statement has totals"
    main = Row(f"{_main_word(document)} ({document.currency})", _main_amount(totals), strong=True)
    if korea is None:
        return (*_dates(document), main)
    written = ("written", day(korea.written_on, language))
    return (*_known(document, written, ("supply", korea.supply_value), ("tax", korea.tax)), main)


def _main_word(document: Document) -> str:
    assert document.totals is not None, "only asked for what has totals"
    if document.kind is Kind.CREDIT_NOTE:
        return _word("credited", document)
    # A Korean form has the total there, until some of it is paid.
    is_form = document.korea is not None and document.totals.open is None
    return _word("total" if is_form else "open", document)


def _main_amount(totals: Totals) -> str:
    return totals.total if totals.open is None else totals.open


def _columns(document: Document) -> tuple[Column, ...]:
    def column(name: str, align: Align = "left", share: int = 0) -> Column:
        return Column(_word(name, document), align, share)

    if document.account is not None:
        amounts = (column(name, "right") for name in ("charged", "received", "balance"))
        return (column("date"), column("reference", share=2), column("movement", share=3), *amounts)
    amount = "supply_amount" if document.korea else "amount"
    return (
        column("description", share=1),
        column("quantity", "right"),
        column("unit_price", "right"),
        column(amount, "right"),
    )


def _rows(document: Document) -> tuple[tuple[Cell, ...], ...]:
    if document.account is not None:
        return _movements(document, document.account)
    return tuple(_line(line) for line in document.lines)


def _line(line: Line) -> tuple[Cell, ...]:
    return (
        Cell(line.description, line.detail),
        Cell(line.quantity),
        Cell(line.unit_price, line.unit),
        Cell(line.amount),
    )


def _movements(document: Document, account: Account) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            Cell(day(each.on, document.language)),
            Cell(each.reference),
            Cell(each.description),
            Cell(each.charged),
            Cell(each.paid),
            Cell(each.balance),
        )
        for each in account.movements
    )


def _totals(document: Document) -> tuple[Row, ...]:
    totals = document.totals
    if totals is None:
        assert document.account is not None, "a document has totals or an account"
        return (Row(_word("closing", document), document.account.closing, strong=True),)
    taxes = tuple(Row(_taxed(tax, document), tax.amount) for tax in totals.taxes)
    total_word = "credited" if document.kind is Kind.CREDIT_NOTE else "total"
    total = Row(_word(total_word, document), totals.total, strong=True)
    after = _known(document, ("paid", totals.paid))
    due = () if totals.open is None else (Row(_word("open", document), totals.open, strong=True),)
    return (*_known(document, ("subtotal", totals.subtotal)), *taxes, total, *after, *due)


def _taxed(tax: Tax, document: Document) -> str:
    return " ".join(filter(None, (tax.name, tax.rate, f"({_word('of', document)} {tax.base})")))


def _blocks(document: Document) -> tuple[Box, ...]:
    rounding = document.totals.rounding if document.totals else None
    notes = [line for note in document.notes for line in _lines(note)]
    if rounding is not None:
        notes.append(f"{_word('rounding', document)}: {rounding}")
    terms = [line for term in document.terms for line in _lines(term)]
    not_due = _word("not_due", document)
    ageing = document.account.ageing if document.account else ()
    blocks = (
        Box(_word("ageing", document), tuple(Row(each.name or not_due, each.amount) for each in ageing)),
        Box(_word("terms", document), tuple(Row("", line) for line in terms)),
        Box(_word("notes", document), tuple(Row("", line) for line in notes)),
    )
    return tuple(block for block in blocks if block.rows)


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _printable(value: T) -> T:
    """The same value with text that paper and screen can show: no control characters, nothing that turns direction."""
    made: Any = value
    if isinstance(value, str):
        made = "".join(_shown(letter) for letter in value)
    elif isinstance(value, tuple):
        made = tuple(_printable(each) for each in value)
    elif is_dataclass(value) and not isinstance(value, type):
        made = replace(value, **{field.name: _printable(getattr(value, field.name)) for field in fields(value)})
    return made  # type: ignore[no-any-return]


def _shown(letter: str) -> str:
    if letter in _TURNS:
        return ""
    match unicodedata.category(letter):
        case "Cc" | "Zl" | "Zp":
            return " "
        case "Cs" | "Cn":
            return "\ufffd"
    return letter
