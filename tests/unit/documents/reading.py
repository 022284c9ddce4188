"""What a reader of a document sees: the words on its pages, and those of its twin."""

from __future__ import annotations

import io
import unicodedata
from html.parser import HTMLParser

from pypdf import PdfReader

from billing.documents import Document, html, pdf


def pages(made: bytes) -> list[str]:
    """The text of each page, as somebody would select it."""
    return [page.extract_text() for page in PdfReader(io.BytesIO(made)).pages]


def paper_text(document: Document) -> str:
    """All text of the PDF without its white space: where a line breaks is no matter of content."""
    return squeezed("".join(pages(pdf(document))))


def squeezed(text: str) -> str:
    """Text without white space, in composed letters."""
    return "".join(unicodedata.normalize("NFC", text).split())


class Page(HTMLParser):
    """The elements of an HTML page, its attributes, and the pieces of text in its body."""

    def __init__(self, document: Document) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.texts: list[str] = []
        self._inside = False
        self.feed(html(document))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = self._inside or tag == "body"
        self.tags.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.texts.append(data)
