"""What all exports have: what is wanted, a watermark that fixes it, pieces of bytes, and a manifest that ties them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports.cells import BOM, TEXT_RULE, moment_cell
from billing.exports.watermarks import settled_watermark
from models.errors import InvalidRequest
from models.money import amount_text

EXCEL_ROWS: Final = 1_048_575
"""Rows below the header that a spreadsheet shows; what comes after them it drops without a word."""

CSV: Final = "text/csv; charset=utf-8; header=present"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be in an export: all conditions together, None for no condition.

    `start` (inclusive) and `end` (exclusive) bound the moment that the kind goes by. `watermark` is the highest
    posting id that is seen, `since` the highest one that is left out. Only charges know the last three.
    """

    organization_id: UUID | None = None
    start: datetime | None = None
    end: datetime | None = None
    watermark: int | None = None
    since: int | None = None
    project_id: UUID | None = None
    api_key_id: UUID | None = None
    model: str | None = None


class Piece(NamedTuple):
    """Some bytes of a file, and what is in them: rows, sums in ledger units by currency, first and last moment."""

    body: bytes
    rows: int = 0
    totals: Mapping[str, int] = {}
    first: datetime | None = None
    last: datetime | None = None


Pieces: TypeAlias = Callable[[AsyncEngine, "Export"], AsyncIterator[Piece]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of export. `schema` names its columns: a change of any of them is a new number.

    `pieces` makes the file after `head`; `total` says what the manifest sums, `moment` which time `from` and `to`
    bound. `newest` finds the watermark of an export without one, `refuse` raises for what cannot be asked.
    """

    name: str
    schema: str
    pieces: Pieces
    total: str
    moment: str
    head: bytes = b""
    extension: str = "csv"
    media_type: str = CSV
    count: Callable[[AsyncEngine, Export], Awaitable[int]] | None = None
    newest: Callable[[AsyncEngine, UUID | None], Awaitable[int]] = settled_watermark
    is_operators: bool = False
    takes_since: bool = True
    refuse: Callable[[Wanted], None] | None = None

    @property
    def is_csv(self) -> bool:
        """Whether it is a table that a spreadsheet opens."""
        return self.extension == "csv"


@dataclass(frozen=True, slots=True)
class Export:
    """One export, fixed: what is in it, up to which posting, and for which reader (`excel` adds a byte order mark)."""

    kind: Kind
    wanted: Wanted
    excel: bool = False

    @property
    def watermark(self) -> int:
        """The highest posting id in it."""
        assert self.wanted.watermark is not None, "an export has a watermark"
        return self.wanted.watermark


@dataclass(slots=True)
class Manifest:
    """What is in a file: enough to see that it is whole, and to make the very same one again.

    `totals` are sums by currency, in ledger units until `as_json` makes them text. `sha256` is of the whole file.
    """

    export: Export
    rows: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None
    sha256: str = ""

    def count(self, piece: Piece) -> None:
        """Take a piece into the figures."""
        self.rows += piece.rows
        for currency, units in piece.totals.items():
            self.totals[currency] = self.totals.get(currency, 0) + units
        self.first = min(filter(None, (self.first, piece.first)), default=None)
        self.last = max(filter(None, (self.last, piece.last)), default=None)

    def as_json(self) -> dict[str, Any]:
        """The manifest for JSON: amounts as decimal text, times in ISO 8601."""
        export, kind, wanted = self.export, self.export.kind, self.export.wanted
        shown: dict[str, Any] = {
            "kind": kind.name,
            "schema": kind.schema,
            "generator": f"tollgate {version('tollgate')}",
            "watermark": export.watermark,
            "since": wanted.since,
            "from": _moment(wanted.start),
            "to": _moment(wanted.end),
            "organization_id": None if wanted.organization_id is None else str(wanted.organization_id),
            "profile": "excel" if export.excel else "machine",
            "rows": self.rows,
            "total_of": kind.total,
            "totals": {currency: amount_text(units, currency) for currency, units in sorted(self.totals.items())},
            f"first_{kind.moment}": _moment(self.first),
            f"last_{kind.moment}": _moment(self.last),
            "sha256": self.sha256,
            "text_rule": TEXT_RULE if kind.is_csv else None,
        }
        if export.excel:
            shown |= {"rows_per_file": EXCEL_ROWS, "files": max(1, -(-self.rows // EXCEL_ROWS))}
        return shown


async def begin_export(engine: AsyncEngine, kind: Kind, wanted: Wanted, *, excel: bool = False) -> Export:
    """Fix the watermark of an export.

    A watermark of an earlier export, of whichever kind, repeats the book as it was then; one that lies ahead of the
    book raises `InvalidRequest`, and so does what this kind cannot be asked for.
    """
    _refuse_impossible(kind, wanted, excel)
    newest = await kind.newest(engine, wanted.organization_id)
    # Nothing new since an earlier export is an empty file, not a fault.
    watermark = max(newest, wanted.since or 0) if wanted.watermark is None else wanted.watermark
    if watermark > newest and watermark > await settled_watermark(engine, None):
        raise InvalidRequest(f"The book ends at watermark {newest}; leave the watermark out.", param="watermark")
    if wanted.since is not None and wanted.since > watermark:
        raise InvalidRequest(f"Nothing is newer: the export ends at watermark {watermark}.", param="since")
    return Export(kind, replace(wanted, watermark=watermark), excel)


def _refuse_impossible(kind: Kind, wanted: Wanted, excel: bool) -> None:
    if wanted.start is not None and wanted.end is not None and wanted.start >= wanted.end:
        raise InvalidRequest("from must lie before to.", param="from")
    if wanted.since is not None and not kind.takes_since:
        raise InvalidRequest(f"{kind.name} is made of the whole book; leave since out.", param="since")
    if kind.refuse is not None:
        kind.refuse(wanted)
    if excel and not kind.is_csv:
        raise InvalidRequest(f"{kind.name} is no table for Excel; leave the profile out.", param="profile")


async def stream(engine: AsyncEngine, export: Export, manifest: Manifest | None = None) -> AsyncIterator[bytes]:
    """The file in pieces, in a fixed order and with bounded memory; fills `manifest` on the way."""
    digest = hashlib.sha256()
    head = (BOM if export.excel else b"") + export.kind.head
    if head:
        digest.update(head)
        yield head
    async for piece in export.kind.pieces(engine, export):
        if manifest is not None:
            digest.update(piece.body)
            manifest.count(piece)
        yield piece.body
    if manifest is not None:
        manifest.sha256 = digest.hexdigest()


async def make_manifest(engine: AsyncEngine, export: Export) -> Manifest:
    """The manifest of an export, by making the whole file once more and throwing it away."""
    manifest = Manifest(export)
    async for _ in stream(engine, export, manifest):
        pass
    return manifest


async def count_rows(engine: AsyncEngine, export: Export) -> int | None:
    """How many rows the export will have, for a progress bar; None where that costs as much as the export."""
    return None if export.kind.count is None else await export.kind.count(engine, export)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment_cell(moment)
