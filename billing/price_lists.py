"""Price lists as text: CSV of RFC 4180 in and out, so that a book can be kept in a spreadsheet and in git."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar

from billing.exports.cells import text_cell
from billing.schemes import LARGEST_QUANTITY, dearest, refuse_impossible
from models.catalog import TOKEN_METERS, Meter, PriceDraft, PriceVersion, Scheme, Tier, TiersOver
from models.errors import InvalidRequest, TollgateError
from models.money import MilliUnits, currency, parse_price, parse_price_each, price_each_text, price_text

COLUMNS: Final = (
    "book",
    "model",
    "meter",
    "currency",
    "scheme",
    "price",
    "package_size",
    "tiers",
    "tiers_over",
    "effective_from",
    "effective_to",
)
"""`price` is per million of a token meter, else of one; of one package where the scheme is that. With tiers it is
empty, and they are `<up to>=<price>`, joined by blanks, the last one `more=<price>`. An empty `effective_from` is the
moment of the import, an empty `effective_to` the beginning of the next version."""

_REQUIRED: Final = ("model", "meter", "currency")
_LAST_TIER: Final = "more"
_BOOK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN_FAULTS: Final = 5

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Line:
    """A price on its line of a file; the header is line 1."""

    number: int
    draft: PriceDraft


def is_per_million(meter: Meter, scheme: Scheme) -> bool:
    """Whether people state this price per million, and not for one."""
    return meter in TOKEN_METERS and scheme is not Scheme.PACKAGE


# Out -----------------------------------------------------------------------------------------------------------------


def price_csv(versions: Iterable[PriceVersion]) -> str:
    """The file of these versions, in their order. Reading it and writing it again gives the same bytes."""
    return "".join([",".join(COLUMNS) + "\r\n", *(",".join(_cells(one)) + "\r\n" for one in versions)])


def _cells(one: PriceVersion) -> tuple[str, ...]:
    write = price_text if is_per_million(one.meter, one.scheme) else price_each_text
    tiers = (f"{tier.up_to or _LAST_TIER}={write(tier.price, one.currency)}" for tier in one.tiers)
    return (
        text_cell(one.book),
        text_cell(one.model),
        one.meter.value,
        one.currency,
        one.scheme.value,
        "" if one.tiers else write(one.price, one.currency),
        str(one.package_size or ""),
        " ".join(tiers),
        one.tiers_over.value if one.tiers else "",
        _written(one.effective_from),
        _written(one.effective_to),
    )


def _written(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


# In ------------------------------------------------------------------------------------------------------------------


def read_prices(content: bytes) -> list[Line]:
    """The prices in a file. Raises `InvalidRequest` that names every wrong line and says what to do."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest("The file is not UTF-8. Save it as CSV in UTF-8.") from None
    lines: list[Line] = []
    faults: dict[int, str] = {}
    for number, cells in _rows(text):
        try:
            lines.append(Line(number, _draft(cells)))
        except TollgateError as error:
            faults[number] = error.message
    refuse_faults(faults)
    if not lines:
        raise InvalidRequest("The file has no prices below its header. Add a line for each.")
    return lines


def refuse_faults(faults: Mapping[int, str]) -> None:
    """Raise `InvalidRequest` where lines are wrong: the first of them by number, with their sentences."""
    if not faults:
        return
    shown = [f"Line {number}: {_sentence(faults[number])}" for number in sorted(faults)[:_SHOWN_FAULTS]]
    more = [f"{len(faults) - len(shown)} more lines are wrong."] if len(faults) > len(shown) else []
    raise InvalidRequest(" ".join([*shown, *more, "Nothing was published."]))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line that is not empty by its number, as cells by column."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _refuse_header(header)
        for cells in reader:
            if not any(cells):
                continue
            if len(cells) != len(header):
                number, wanted = reader.line_num, len(header)
                refuse_faults({number: f"It has {len(cells)} cells where the header has {wanted}. Quote commas."})
            yield reader.line_num, dict(zip(header, map(_unguarded, cells), strict=True))
    except csv.Error as error:
        refuse_faults({reader.line_num: f"It is no CSV ({error}). Check its quotes."})


def _refuse_header(header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in _REQUIRED if name not in header]
    if unknown or missing or len(set(header)) < len(header):
        found = ", ".join(header)[:200] or "nothing"
        raise InvalidRequest(f"The first line names the columns: {','.join(COLUMNS)}. Found: {found}.")


def _unguarded(cell: str) -> str:
    """The text of a cell, without the single quote that keeps a spreadsheet from running it (`exports.TEXT_RULE`)."""
    return cell.strip().removeprefix("'")


def _draft(cells: Mapping[str, str]) -> PriceDraft:
    book, code = cells.get("book") or "default", cells["currency"]
    if _BOOK.fullmatch(book) is None:
        raise InvalidRequest("A book is named by up to 64 letters, digits, dots, dashes and underscores.")
    currency(code)
    meter = _choice(Meter, "meter", cells["meter"])
    scheme = _choice(Scheme, "scheme", cells.get("scheme") or Scheme.UNIT)
    parse = parse_price if is_per_million(meter, scheme) else parse_price_each
    tiers = _tiers(cells.get("tiers", ""), lambda text: parse(text, code))
    stated = cells.get("price", "")
    if bool(stated) == bool(tiers):
        raise InvalidRequest("State a price or tiers, and not both.")
    draft = PriceDraft(
        book=book,
        model=cells["model"],
        meter=meter,
        currency=code,
        price=dearest(tiers) if tiers else parse(stated, code),
        effective_from=_moment("effective_from", cells.get("effective_from", "")),
        effective_to=_moment("effective_to", cells.get("effective_to", "")),
        scheme=scheme,
        tiers=tiers,
        package_size=_count("package_size", cells.get("package_size", "")),
        tiers_over=_choice(TiersOver, "tiers_over", cells.get("tiers_over") or TiersOver.CALL),
    )
    refuse_impossible(draft)
    return draft


def _choice(kind: type[Choice], column: str, text: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"{column} must be one of {', '.join(kind)}, not {text[:40]!r}.") from None


def _count(column: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(LARGEST_QUANTITY)):
        raise InvalidRequest(f"{column} is a whole number such as 1000, not {text[:40]!r}.")
    return int(text)


def _tiers(text: str, parse: Callable[[str], MilliUnits]) -> tuple[Tier, ...]:
    tiers = []
    for part in text.split():
        end, sign, price = part.partition("=")
        if not sign:
            raise InvalidRequest(f"tiers are written as 1000=0.30 5000=0.20 more=0.10, not {text[:60]!r}.")
        tiers.append(Tier(None if end == _LAST_TIER else _count("The end of a tier", end), parse(price)))
    return tuple(tiers)


def _moment(column: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or len(text) > len("2026-01-01"):
        raise InvalidRequest(f"{column} is a date or an instant with its zone: 2026-03-01 or 2026-03-01T09:00:00Z.")
    return moment.replace(tzinfo=UTC)
