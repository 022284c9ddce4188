"""`parquet`: charges as columns with types, for tools that analyse. Needs pyarrow, which is an extra."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.exports.charges import LINES, rows_of_charges
from billing.exports.frame import Export, Kind, Piece, Wanted
from billing.exports.watermarks import charged_watermark
from models.errors import Unavailable
from models.money import CURRENCIES

ROWS_PER_GROUP: Final = 20_000
"""Rows of a row group, which is what a reader skips or reads; some ten megabytes while it is made."""

_SCALE: Final = max(each.ledger_scale for each in CURRENCIES.values())
_IDS: Final = ("organization_id", "project_id", "api_key_id")
_WORDS: Final = ("endpoint", "model", "deployment", "end_user", "ending", "usage_source", "currency")
_COUNTS: Final = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


async def _pieces(engine: AsyncEngine, export: Export) -> AsyncIterator[Piece]:
    """Row groups as they are made. The bytes are those of one version of pyarrow, which is named in the file."""
    made = _File()
    async for rows in _groups(engine, export.wanted):
        # Packing takes long enough to be felt by the calls of a gateway.
        body = await asyncio.to_thread(made.add, rows)
        totals: Counter[str] = Counter()
        for row in rows:
            totals[row.currency] += row.amount
        times = [row.created_at for row in rows]
        yield Piece(body, len(rows), totals, min(times), max(times))
    yield Piece(await asyncio.to_thread(made.close))


async def _groups(engine: AsyncEngine, wanted: Wanted) -> AsyncIterator[Sequence[Any]]:
    found = rows_of_charges(wanted)
    values, after = found.parameters, "true"
    while True:
        statement = text(
            f"select * from ({found.sql}) charge where {after} order by call_id limit {ROWS_PER_GROUP}"  # noqa: S608 - made of constants
        )
        async with engine.connect() as connection:
            rows = (await connection.execute(statement, values)).all()
        if rows:
            yield rows
        if len(rows) < ROWS_PER_GROUP:
            return
        after, values = "call_id > :after", values | {"after": rows[-1].call_id}


class _File:
    """A Parquet file that is taken away piece by piece as it grows."""

    def __init__(self) -> None:
        self._arrow, self._parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        self._sink = _Sink()
        self._schema = self._make_schema()
        self._writer = self._parquet.ParquetWriter(self._sink, self._schema, compression="zstd")

    def add(self, rows: Sequence[Any]) -> bytes:
        """The bytes of a row group."""
        arrow = self._arrow
        arrays = [arrow.array([_cell(field.name, row) for row in rows], field.type) for field in self._schema]
        self._writer.write_table(arrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(rows))
        return self._sink.take()

    def close(self) -> bytes:
        """What ends the file: where its row groups are."""
        self._writer.close()
        return self._sink.take()

    def _make_schema(self) -> Any:
        arrow = self._arrow
        amount, moment = arrow.decimal128(38, _SCALE), arrow.timestamp("us", "UTC")
        fields = [arrow.field("row_id", arrow.string(), nullable=False)]
        fields += [arrow.field(name, arrow.string(), nullable=False) for name in _IDS]
        fields += [arrow.field(name, moment, nullable=False) for name in ("created_at", "ended_at")]
        fields += [arrow.field(name, arrow.string(), nullable=name == "end_user") for name in _WORDS]
        fields.append(arrow.field("streamed", arrow.bool_(), nullable=False))
        fields += [arrow.field(name, arrow.int64(), nullable=False) for name in _COUNTS]
        fields += [arrow.field(name, amount, nullable=False) for name in ("amount", "hold")]
        source = arrow.struct([arrow.field("source", arrow.string()), arrow.field("amount", amount)])
        fields.append(arrow.field("funding", arrow.list_(source)))
        fields += [arrow.field(name, arrow.list_(arrow.string())) for name in ("price_version_ids", "flags")]
        fields.append(arrow.field("corrects", arrow.string()))
        fields.append(arrow.field("posting_id", arrow.int64(), nullable=False))
        fields += [arrow.field(name, arrow.int64(), nullable=False) for name in ("images", "audio_seconds")]
        fields.append(arrow.field("batch", arrow.bool_(), nullable=False))
        fields.append(arrow.field("version", arrow.string(), nullable=False))
        return arrow.schema(fields)


class _Sink:
    """What pyarrow writes to: it keeps nothing that was taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def write(self, part: Any) -> int:
        """Take over what is written; it may be a buffer that is used again."""
        self._parts.append(bytes(part))
        self._length += len(self._parts[-1])
        return len(self._parts[-1])

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken

    def tell(self) -> int:
        """How much was written in all."""
        return self._length

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """The bytes are taken after this."""

    def writable(self) -> bool:
        """It can be written to, once, from front to back."""
        return True

    def readable(self) -> bool:
        """And not read."""
        return False

    def seekable(self) -> bool:
        """Nor gone back in."""
        return False


def _cell(name: str, row: Any) -> Any:
    match name:
        case "row_id":
            return str(row.call_id)
        case "organization_id" | "project_id" | "api_key_id":
            return str(getattr(row, name))
        case "amount" | "hold":
            return getattr(row, name) * row.unit
        case "funding":
            return [{"source": source, "amount": units * row.unit} for source, units in row.funding]
        case "price_version_ids":
            return [str(one) for one in row.price_version_ids]
        case "corrects":
            return None if row.corrects is None else str(row.corrects)
        case _:
            return getattr(row, name)


def _refuse(_: Wanted) -> None:
    if find_spec("pyarrow") is None:
        raise Unavailable("This gateway has no pyarrow. Install it there: pip install 'tollgate[parquet]'.")


PARQUET: Final = Kind(
    name="parquet",
    schema="tollgate.charges_parquet/2",
    pieces=_pieces,
    count=LINES.count,
    total="amount",
    moment="created_at",
    extension="parquet",
    media_type="application/vnd.apache.parquet",
    newest=charged_watermark,
    refuse=_refuse,
)
