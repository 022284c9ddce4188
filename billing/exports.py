"""Charges as a file that finance can trust: CSV of RFC 4180, the same bytes for the same watermark, with a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from billing.store.charges import BookedCharge, ChargeFilter, charge_pages, count_charges, posting_watermark
from models.errors import InvalidRequest
from models.money import amount_text

SCHEMA: Final = "tollgate.charges/1"
"""Name of the columns below; a change of any of them is a new number."""

COLUMNS: Final = (
    "row_id",
    "organization_id",
    "project_id",
    "api_key_id",
    "created_at",
    "ended_at",
    "period",
    "endpoint",
    "model",
    "deployment",
    "end_user",
    "streamed",
    "ending",
    "usage_source",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "amount",
    "currency",
    "hold",
    "funding",
    "price_version_ids",
    "flags",
    "corrects",
    "posting_id",
)
"""`row_id` is the call id, `period` the UTC month; `funding` is `<grant or unbilled>=<amount>`, joined by blanks."""

EXCEL_ROWS: Final = 1_048_575
"""Rows below the header that a spreadsheet shows; what comes after them it drops without a word."""

TEXT_RULE: Final = (
    "Cells of text columns are quoted. One that starts with = + - @ ' tab, carriage return or NUL has a single quote"
    " put before it, so that no spreadsheet runs it as a formula: to undo, remove one leading single quote."
)

_BOM: Final = b"\xef\xbb\xbf"
_ROWS_PER_PAGE: Final = 200
"""Small enough that making a page into text does not hold the event loop of a gateway for longer than some ms."""

# The quote itself is among them: without it the rule could not be undone.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "'", "\t", "\r", "\0")


@dataclass(frozen=True, slots=True)
class ChargeExport:
    """One export, fixed: what is in it, up to which posting, and for which reader (`excel` adds a byte order mark)."""

    wanted: ChargeFilter
    excel: bool = False

    @property
    def watermark(self) -> int:
        """The highest posting id in it."""
        assert self.wanted.watermark is not None, "an export has a watermark"
        return self.wanted.watermark


@dataclass(slots=True)
class Manifest:
    """What is in a file: enough to see that it is whole, and to make the very same one again.

    `totals` are amounts by currency, in ledger units until `as_json` makes them text. `sha256` is of the whole file.
    """

    watermark: int
    schema: str = SCHEMA
    generator: str = field(default_factory=lambda: f"tollgate {version('tollgate')}")
    text_rule: str = TEXT_RULE
    rows: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    first_created_at: datetime | None = None
    last_created_at: datetime | None = None
    sha256: str = ""

    def count(self, booked: BookedCharge) -> None:
        """Take one row into the figures."""
        charge = booked.charge
        self.rows += 1
        self.totals[charge.currency] = self.totals.get(charge.currency, 0) + charge.amount
        self.first_created_at = min(self.first_created_at or charge.created_at, charge.created_at)
        self.last_created_at = max(self.last_created_at or charge.created_at, charge.created_at)

    def as_json(self) -> dict[str, Any]:
        """The manifest for JSON: amounts as decimal text, times in ISO 8601."""
        totals = {currency: amount_text(units, currency) for currency, units in sorted(self.totals.items())}
        times = {name: _moment(getattr(self, name)) for name in ("first_created_at", "last_created_at")}
        return asdict(self) | {"totals": totals} | times


async def begin_export(engine: AsyncEngine, wanted: ChargeFilter, *, excel: bool = False) -> ChargeExport:
    """Fix the watermark of an export.

    A watermark of an earlier export repeats it to the byte; one that lies ahead of the book raises `InvalidRequest`.
    """
    async with engine.begin() as connection:
        newest = await posting_watermark(connection, wanted.organization_id)
    if wanted.watermark is not None and wanted.watermark > newest:
        raise InvalidRequest(f"The book ends at watermark {newest}; leave the watermark out.", param="watermark")
    return ChargeExport(replace(wanted, watermark=newest if wanted.watermark is None else wanted.watermark), excel)


async def count_rows(engine: AsyncEngine, export: ChargeExport) -> int:
    """How many rows the export will have, for a progress bar."""
    async with engine.connect() as connection:
        return await count_charges(connection, export.wanted)


async def charge_csv(
    engine: AsyncEngine, export: ChargeExport, manifest: Manifest | None = None
) -> AsyncIterator[bytes]:
    """The file in pieces, in the order of call ids and with bounded memory; fills `manifest` on the way."""
    digest = hashlib.sha256()
    head = (_BOM if export.excel else b"") + ",".join(COLUMNS).encode() + b"\r\n"
    digest.update(head)
    yield head
    async for page in charge_pages(engine, export.wanted, _ROWS_PER_PAGE):
        piece = "".join(map(csv_row, page)).encode()
        digest.update(piece)
        if manifest is not None:
            for booked in page:
                manifest.count(booked)
        yield piece
    if manifest is not None:
        manifest.sha256 = digest.hexdigest()


async def make_manifest(engine: AsyncEngine, export: ChargeExport) -> Manifest:
    """The manifest of an export, by making the whole file once more and throwing it away."""
    manifest = Manifest(export.watermark)
    async for _ in charge_csv(engine, export, manifest):
        pass
    return manifest


def csv_row(booked: BookedCharge) -> str:
    """One line with its CRLF. Text cells are always quoted and guarded; numbers never are, so they stay numbers."""
    charge = booked.charge
    amount = partial(amount_text, code=charge.currency)
    cells = (
        str(charge.call_id),
        str(charge.organization_id),
        str(charge.project_id),
        str(charge.api_key_id),
        _moment(charge.created_at) or "",
        _moment(charge.ended_at) or "",
        charge.created_at.astimezone(UTC).strftime("%Y-%m"),
        text_cell(charge.endpoint),
        text_cell(charge.model),
        text_cell(charge.deployment),
        text_cell(charge.end_user or ""),
        "true" if charge.streamed else "false",
        charge.ending.value,
        charge.usage_source.value,
        str(charge.input_tokens),
        str(charge.cached_tokens),
        str(charge.cache_write_tokens),
        str(charge.output_tokens),
        str(charge.reasoning_tokens),
        amount(charge.amount),
        charge.currency,
        amount(charge.hold),
        text_cell(" ".join(f"{source}={amount(units)}" for source, units in booked.funding)),
        text_cell(" ".join(map(str, charge.price_version_ids))),
        text_cell(" ".join(charge.flags)),
        "" if charge.corrects is None else str(charge.corrects),
        str(booked.posting_id),
    )
    return ",".join(cells) + "\r\n"


def text_cell(text: str) -> str:
    """A quoted cell that no spreadsheet takes for a formula (OWASP ASVS 5.0, 1.2.10); `TEXT_RULE` undoes it."""
    if text.startswith(_FORMULA_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def _moment(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC, always with microseconds, so that the column has one width and sorts as text."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
