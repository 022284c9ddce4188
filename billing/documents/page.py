"""A document on screen: one HTML page of its own, without scripts, the twin of the PDF in content."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from billing.documents.document import Document
from billing.documents.sheet import Box, Cell, Column, Row, Sheet, sheet

_STYLE: Final = files("billing.documents").joinpath("document.css").read_text(encoding="utf-8")
_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""The header to serve the page with: it runs and fetches nothing, whatever is written in it."""


def html(document: Document) -> str:
    """The document as a page. It is built as a tree, so that text stays text whoever wrote it."""
    laid = sheet(document)
    page = Element("html", lang=laid.language)
    head = SubElement(page, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    SubElement(head, "title").text = f"{laid.title} {laid.number}"
    SubElement(head, "style").text = _STYLE
    _fill(SubElement(SubElement(page, "body"), "article", {"class": laid.language}), laid)
    return "<!doctype html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"


def _fill(article: Element, laid: Sheet) -> None:
    head = SubElement(article, "header")
    title = SubElement(head, "div")
    SubElement(title, "h1").text = laid.title
    if laid.mark:
        SubElement(title, "p", {"class": "mark"}).text = laid.mark
    _terms(head, laid.facts, "facts")
    parties = SubElement(article, "section", {"class": "parties"})
    for party in laid.parties:
        _box(parties, party)
    _terms(article, laid.summary, "summary")
    _table(article, laid)
    _terms(article, laid.totals, "totals")
    for block in laid.blocks:
        _box(SubElement(article, "section", {"class": "block"}), block)


def _terms(parent: Element, rows: tuple[Row, ...], name: str) -> None:
    terms = SubElement(parent, "dl", {"class": name})
    for row in rows:
        pair = SubElement(terms, "div", {"class": "strong"} if row.strong else {})
        if row.label:
            SubElement(pair, "dt").text = row.label
        _text(SubElement(pair, "dd"), row.value)


def _box(parent: Element, box: Box) -> None:
    section = SubElement(parent, "section")
    SubElement(section, "h2").text = box.title
    _terms(section, box.rows, "rows")


def _table(article: Element, laid: Sheet) -> None:
    table = SubElement(article, "table")
    head = SubElement(SubElement(table, "thead"), "tr")
    for column in laid.columns:
        SubElement(head, "th", {"scope": "col", "class": column.align}).text = column.title
    body = SubElement(table, "tbody")
    for row in laid.rows:
        line = SubElement(body, "tr")
        for column, cell in zip(laid.columns, row, strict=True):
            _cell(line, column, cell)


def _cell(line: Element, column: Column, cell: Cell) -> None:
    made = SubElement(line, "td", {"class": column.align})
    _text(made, cell.text)
    if cell.detail:
        _text(SubElement(made, "small"), cell.detail)


def _text(parent: Element, text: str) -> None:
    # Isolated, so that a name in a script from right to left does not turn what stands beside it.
    SubElement(parent, "bdi").text = text
