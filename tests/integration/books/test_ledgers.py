"""Other people's ledgers read the book: hledger and beancount add up for themselves, and accept it."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from billing.exports import postings
from tests.integration.books.conftest import Books

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

MARCH, APRIL, MAY = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 4, 5))
SPANS: dict[str, dict[str, datetime]] = {
    "all": {},
    "April on": {"start": APRIL},
    "March": {"start": MARCH, "end": APRIL},
}
HLEDGER = shutil.which("hledger")
BEAN_CHECK = Path(sys.executable).with_name("bean-check")

needs_hledger = pytest.mark.skipif(HLEDGER is None, reason="hledger is not installed (Debian: hledger)")
needs_beancount = pytest.mark.skipif(not BEAN_CHECK.exists(), reason="beancount has no wheel for this Python")


def run(*command: str | Path | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


@needs_hledger
@pytest.mark.parametrize(
    "span", [{}, {"start": APRIL}, {"start": MARCH, "end": APRIL}], ids=["all", "April on", "March"]
)
async def test_hledger_accepts_the_book(
    books: Books, tmp_path: Path, span: dict[str, datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postings, "POSTINGS_PER_PAGE", 7)
    path = tmp_path / "book.journal"
    path.write_bytes((await books.make("hledger", **span)).body)
    for checks in ([], ["ordereddates", "balancedwithautoconversion"], ["accounts", "commodities"]):
        checked = run(HLEDGER, "-f", path, "check", *checks)
        assert checked.returncode == 0, checked.stderr
    # Its own sums are those of the trial balance.
    shown = run(HLEDGER, "-f", path, "balance", "--flat", "-O", "csv", "--layout=bare", "-N")
    assert shown.returncode == 0, shown.stderr
    theirs: Counter[tuple[str, str]] = Counter()
    for name, currency, amount in list(csv.reader(io.StringIO(shown.stdout)))[1:]:
        if Decimal(amount):
            theirs[name.split(":")[1], currency] += Decimal(amount)  # type: ignore[assignment]
    balance = (await books.make("trial_balance", **span)).rows
    ours = {(row["account"], row["currency"]): Decimal(row["closing"]) for row in balance if Decimal(row["closing"])}
    assert theirs == ours


@needs_hledger
async def test_hledger_sees_one_unit_too_much(books: Books, tmp_path: Path) -> None:
    """The proof has teeth: one unit less in one line, and a balance that is off by one, are found."""
    text = (await books.make("hledger")).body.decode()
    line = re.compile(r"^(    liabilities:customer_prepaid:\S+  \d+\.\d*)[1-9]( USD)$", re.M)
    for broken in (
        line.sub(r"\g<1>0\2", text, count=1),
        re.sub(r"= (\d+\.\d*)[1-9] USD", r"= \g<1>0 USD", text, count=1),
    ):
        assert broken != text
        path = tmp_path / "broken.journal"
        path.write_text(broken)
        assert run(HLEDGER, "-f", path, "check").returncode != 0


@needs_beancount
@pytest.mark.parametrize(
    "span", [{}, {"start": APRIL}, {"start": MARCH, "end": APRIL}], ids=["all", "April on", "March"]
)
async def test_beancount_accepts_the_book(books: Books, tmp_path: Path, span: dict[str, datetime]) -> None:
    path = tmp_path / "book.beancount"
    path.write_bytes((await books.make("beancount", **span)).body)
    checked = run(BEAN_CHECK, path)
    assert (checked.returncode, checked.stderr) == (0, "")


@needs_beancount
async def test_beancount_sees_one_unit_too_much(books: Books, tmp_path: Path) -> None:
    text = (await books.make("beancount")).body.decode()
    path = tmp_path / "broken.beancount"
    for pattern in (r"^(  Liabilities:\S+  -?\d+\.\d*)[1-9]( USD)$", r"^(\S+ balance .* -?\d+\.\d*)[1-9]( ~ 0 USD)$"):
        broken = re.sub(pattern, r"\g<1>0\2", text, count=1, flags=re.M)
        assert broken != text
        path.write_text(broken)
        assert run(BEAN_CHECK, path).returncode != 0


async def test_one_transaction_a_posting(books: Books) -> None:
    file, journal = await books.make("hledger"), await books.make("journal")
    ids = re.findall(r"^\S+ \* \((\d+)\)", file.body.decode(), re.M)
    assert len(ids) == len(set(ids)) == file.manifest.rows
    assert set(ids) == {row["posting_id"] for row in journal.rows}
    assert file.manifest.totals == journal.manifest.totals
    assert (await books.make("beancount")).manifest.totals == journal.manifest.totals
    assert f"{books.month.korean.id}" in file.body.decode()
    only = (await books.make("hledger", organization_id=books.month.korean.id)).body.decode()
    assert f"{books.month.prepaid.id}" not in only
    assert "USD" not in only
