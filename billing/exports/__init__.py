"""The ledger as files that finance can trust: the same bytes for the same watermark, each with a manifest.

`frame` is what all kinds have, `lines` a table that Postgres writes; each kind has a file, and `kinds` lists them.
"""

from billing.exports.frame import (
    EXCEL_ROWS,
    Export,
    Kind,
    Manifest,
    Wanted,
    begin_export,
    count_rows,
    make_manifest,
    stream,
)
from billing.exports.kinds import KINDS

__all__ = [
    "EXCEL_ROWS",
    "KINDS",
    "Export",
    "Kind",
    "Manifest",
    "Wanted",
    "begin_export",
    "count_rows",
    "make_manifest",
    "stream",
]
