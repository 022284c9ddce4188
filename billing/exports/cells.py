"""Cells of CSV (RFC 4180), as text in Python and as expressions of SQL that make the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from models.money import CURRENCIES

TEXT_RULE: Final = (
    "Cells of text columns are quoted. One that starts with = + - @ ' tab, carriage return or NUL has a single quote"
    " put before it, so that no spreadsheet runs it as a formula: to undo, remove one leading single quote."
)

BOM: Final = b"\xef\xbb\xbf"
"""Without it Excel takes UTF-8 for something else."""

# The quote itself is among them: without it the rule could not be undone.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "'", "\t", "\r", "\0")
_FORMULA_CODES: Final = ", ".join(str(ord(character)) for character in _FORMULA_STARTS if character != "\0")
"""As Postgres' `ascii` gives them; it keeps no NUL, and of an empty text `ascii` is 0."""


def text_cell(text: str) -> str:
    """A quoted cell that no spreadsheet takes for a formula (OWASP ASVS 5.0, 1.2.10); `TEXT_RULE` undoes it."""
    if text.startswith(_FORMULA_STARTS):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def moment_cell(moment: datetime) -> str:
    """ISO 8601 in UTC, always with microseconds, so that the column has one width and sorts as text."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def line(cells: Iterable[str]) -> str:
    """Finished cells as a line with its CRLF."""
    return ",".join(cells) + "\r\n"


# The same in SQL -----------------------------------------------------------------------------------------------------


def sql_text(expression: str, first: str | None = None) -> str:
    """`text_cell` of a text that is not null; `first` is a cheaper text that begins alike."""
    guarded = (
        f"case when ascii({first or expression}) in ({_FORMULA_CODES}) then concat('''', {expression})"
        f" else {expression} end"
    )
    return f"""concat('"', replace({guarded}, '"', '""'), '"')"""


def sql_moment(expression: str) -> str:
    """`moment_cell` of a timestamptz that is not null, whatever the time zone of the session."""
    return f"""to_char({expression} at time zone 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS.US"Z"')"""


def sql_unit(currency: str) -> str:
    """The ledger unit of a currency as a number: amounts times it are exact, and have all digits of the ledger."""
    cases = " ".join(
        f"when '{each.code}' then 0.{'1':0>{each.ledger_scale}}" for each in CURRENCIES.values() if each.ledger_scale
    )
    return f"case {currency} {cases} end"
