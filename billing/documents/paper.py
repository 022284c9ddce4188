"""A document on paper: PDF by Typst, with our fonts in it, the same bytes for the same document."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

import typst

from billing.documents.document import Document
from billing.documents.sheet import sheet

_ROOM: Final = Path(str(files("billing.documents")))
_TEMPLATE: Final = _ROOM / "document.typ"
_REMEMBERED: Final = 10


def pdf(document: Document) -> bytes:
    """The document as PDF with selectable text. It takes a tenth of a second or more: not for an event loop."""
    made = _compiler().compile(sys_inputs=_inputs(document), format="pdf", timestamp=_written_at(document))
    _forget()
    assert isinstance(made, bytes), "a PDF is one file"
    return made


def png(document: Document, dots_per_inch: int = 110) -> list[bytes]:
    """The pages as pictures, to look at while the template is worked on."""
    made = _compiler().compile(sys_inputs=_inputs(document), format="png", ppi=dots_per_inch)
    _forget()
    return [made] if isinstance(made, bytes) else list(made or ())


def _inputs(document: Document) -> dict[str, str]:
    # Text comes in as data, so none of it is ever read as markup.
    on = document.issued_on
    return {"sheet": json.dumps(asdict(sheet(document))), "issued_on": json.dumps([on.year, on.month, on.day])}


def _written_at(document: Document) -> datetime:
    """The time in the file: of the document, not of the day on which somebody asked for it."""
    return datetime(document.issued_on.year, document.issued_on.month, document.issued_on.day, tzinfo=UTC)


def _forget() -> None:
    # Typst remembers the parts of its last ten documents, which of long ones is more than a gigabyte.
    empty = _compiler()
    for _ in range(_REMEMBERED + 1):
        empty.compile(format="pdf", timestamp=0, input=b" ")


def _compiler() -> typst.Compiler:
    # One each time, because one holds its last document.
    room = _ROOM
    return typst.Compiler(
        _TEMPLATE,
        root=room,
        font_paths=_fonts(),
        ignore_system_fonts=True,
        # Packages would be fetched: here are none, and the template asks for none.
        package_path=room,
        package_cache_path=room,
    )


@cache
def _fonts() -> typst.Fonts:
    return typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=[_ROOM / "fonts"])
