"""Charges as Parquet: the same rows as the CSV, with types; read back by the library that others read it with."""

from __future__ import annotations

import io
from decimal import Decimal

import pytest

from billing.exports import KINDS, Wanted, begin_export, parquet
from models.errors import Unavailable
from tests.integration.books.conftest import Books

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

pq = pytest.importorskip("pyarrow.parquet")


async def test_the_rows_are_those_of_the_csv(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 100)
    file, csv = await books.make("parquet"), await books.make("charges")
    read = pq.ParquetFile(io.BytesIO(file.body))
    rows = read.read().to_pylist()
    assert read.num_row_groups == -(-len(rows) // 100)
    assert file.manifest.totals == csv.manifest.totals
    assert (file.manifest.rows, file.manifest.first) == (len(rows), csv.manifest.first)
    for ours, theirs in zip(rows, csv.rows, strict=True):
        assert {ours[name] for name in ("row_id",)} == {theirs["row_id"]}
        assert (ours["amount"], ours["hold"]) == (Decimal(theirs["amount"]), Decimal(theirs["hold"]))
        assert ours["created_at"].isoformat(timespec="microseconds") == theirs["created_at"].replace("Z", "+00:00")
        assert (ours["end_user"] or "", ours["model"]) == (theirs["end_user"], theirs["model"])
        assert sum(part["amount"] for part in ours["funding"]) == ours["amount"]
        assert str(ours["posting_id"]) == theirs["posting_id"]
        for name in ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"):
            assert str(ours[name]) == theirs[name]
    assert (await books.make("parquet")).body == file.body


async def test_without_the_library_it_says_what_to_install(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install 'tollgate\[parquet\]'"):
        await begin_export(books.month.engine, KINDS["parquet"], Wanted())
