"""The tables of finance: each sum comes by two ways that have nothing in common but the book."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import select

from billing.exports import KINDS
from models.errors import InvalidRequest
from models.ledger import DEBIT_NORMAL
from models.money import amount_text, parse_amount
from models.tables import account, account_balance, charge
from tests.integration.books.conftest import Books

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

APRIL = datetime(2026, 4, 1, tzinfo=UTC)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
TABLES = [name for name, kind in KINDS.items() if kind.is_csv]


def sums(rows: Iterable[dict[str, str]], *columns: str, of: str) -> Counter[tuple[str, ...]]:
    """Ledger units by the values of some columns."""
    found: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        found[tuple(row[column] for column in columns)] += parse_amount(row[of], row["currency"])
    return found


async def test_journal_is_the_book(books: Books) -> None:
    rows = (await books.make("journal")).rows
    by_posting = sums(rows, "posting_id", "currency", of="debit")
    assert by_posting == sums(rows, "posting_id", "currency", of="credit")
    kinds = {row["kind"] for row in rows}
    assert kinds == {
        *("charge_batch", "topup", "grant", "expire", "void_grant", "invoice", "void_invoice", "payment"),
        "credit_note",
    }
    async with books.month.engine.connect() as connection:
        kept = await connection.execute(select(account, account_balance).join(account_balance))
        balances = {(row.kind, str(row.organization_id or ""), row.currency): row for row in kept}
    for side in ("debit", "credit"):
        moved = sums(rows, "account", "account_organization_id", "currency", of=side)
        for key, row in balances.items():
            assert moved.pop(key, 0) == getattr(row, f"{side}s"), key
        assert not +moved
    assert len({row["row_id"] for row in rows}) == len(rows)
    documents = {row["source_document"] for row in rows if row["kind"] == "invoice"}
    assert documents == {f"invoice {each.id}" for each in (books.postpaid, books.hybrid, books.voided, books.korean)}


async def test_charges_tie_to_revenue_in_the_journal(books: Books) -> None:
    charges, journal = await books.make("charges"), await books.make("journal")
    booked = [row for row in journal.rows if row["kind"] == "charge_batch" and row["account"] == "revenue"]
    revenue = sums(booked, "currency", of="credit")
    revenue.subtract(sums(booked, "currency", of="debit"))
    assert sums(charges.rows, "currency", of="amount") == revenue
    assert {(code,): units for code, units in charges.manifest.totals.items()} == revenue
    async with books.month.engine.connect() as connection:
        stored = (await connection.execute(select(charge))).all()
    assert charges.manifest.rows == len(stored)
    assert any(row.amount < 0 for row in stored), "the month has corrections both ways"
    assert any(row.corrects and row.amount > 0 for row in stored)


async def test_trial_balance_opens_where_the_month_before_closed(books: Books) -> None:
    march = (await books.make("trial_balance", end=APRIL)).rows
    april = (await books.make("trial_balance", start=APRIL, end=MAY)).rows
    for rows in (march, april):
        for column in ("opening", "closing"):
            assert set(sums(rows, "currency", of=column).values()) == {0}
        assert sums(rows, "currency", of="debits") == sums(rows, "currency", of="credits")
    closed = sums(march, "account", "currency", of="closing")
    opened = sums(april, "account", "currency", of="opening")
    assert (+closed, -closed) == (+opened, -opened)
    journal = (await books.make("journal", end=APRIL)).rows
    moved = sums(journal, "account", "currency", of="debit")
    moved.subtract(sums(journal, "account", "currency", of="credit"))
    assert {key: units for key, units in moved.items() if units} == {
        key: units for key, units in closed.items() if units
    }
    assert {row["account"] for row in march if row["normal_side"] == "debit"} <= {kind.value for kind in DEBIT_NORMAL}


async def test_trial_balance_of_one_organization(books: Books) -> None:
    rows = (await books.make("trial_balance", organization_id=books.month.korean.id)).rows
    assert {row["currency"] for row in rows} == {"KRW"}
    closing = sums(rows, "account", of="closing")
    paid, noted = 1_000_000, books.note.total
    assert closing["receivable",] == books.korean.total - paid - noted
    assert closing["cash_clearing",] == paid
    assert closing["tax_payable",] == books.note.tax - books.korean.tax


async def test_invoices_say_what_was_so_at_the_watermark(books: Books) -> None:
    now = {row["number"]: row for row in (await books.make("invoices")).rows}
    assert {number: row["status"] for number, row in now.items()} == {
        "INV-000001": "void",
        "INV-000002": "paid",
        "INV-000003": "open",
        "INV-000004": "open",
        "CN-000001": "paid",
    }
    assert now["INV-000002"]["organization_name"] == '=cmd|"Evil"'
    korean, note = now["INV-000003"], now["CN-000001"]
    total, left = books.korean.total, books.korean.total - 1_000_000 - books.note.total
    assert (korean["total"], korean["outstanding"]) == (amount_text(total, "KRW"), amount_text(left, "KRW"))
    assert (note["total"], note["corrects"]) == (amount_text(-books.note.total, "KRW"), str(books.korean.id))
    assert Decimal(korean["total"]) == int(Decimal(korean["total"])), "whole won"
    before = await books.make("invoices", watermark=books.voided.posting_id)
    assert [(row["number"], row["status"]) for row in before.rows] == [("INV-000001", "open")]
    later = await books.make("invoices", since=books.voided.posting_id)
    assert {row["number"] for row in later.rows} == now.keys() - {"INV-000001"}


async def test_invoice_lines_add_up_to_invoices(books: Books) -> None:
    lines, invoices = (await books.make("invoice_lines")).rows, (await books.make("invoices")).rows
    assert sums(lines, "number", of="rounded") == sums(invoices, "number", of="subtotal")
    assert {row["row_id"] for row in lines} >= {f"{books.hybrid.id}-0", f"{books.hybrid.id}-1"}
    assert any(row["kind"] == "credit" and row["amount"].startswith("-") for row in lines)


async def test_payments_tie_to_cash(books: Books) -> None:
    payments = await books.make("payments")
    cash = [
        row
        for row in (await books.make("journal")).rows
        if row["kind"] == "payment" and row["account"] == "cash_clearing"
    ]
    assert sums(payments.rows, "currency", of="amount") == sums(cash, "currency", of="debit")
    assert sums(payments.rows, "currency", of="allocated") == sums(payments.rows, "currency", of="amount")
    assert [row["reference"] for row in payments.rows] == ["+wire 1", "wire 2"]


@pytest.mark.parametrize(
    ("day", "bucket"),
    [(10, "not_due"), (17, "days_1_to_30"), (50, "days_31_to_60"), (80, "days_61_to_90"), (200, "days_over_90")],
)
async def test_ageing_is_the_receivable_of_the_ledger(books: Books, day: int, bucket: str) -> None:
    """Due on 16 April; the moments are so many days after the end of March."""
    at = APRIL + timedelta(days=day)
    rows = (await books.make("ageing", end=at)).rows
    assert rows
    for row in rows:
        assert row["total"] == row["ledger_receivable"] == row[bucket], row
    owing = {row["organization_id"] for row in rows}
    assert str(books.month.hybrid.id) in owing
    assert (str(books.month.postpaid.id) in owing) == (day < 9), "paid on 10 April"


async def test_ageing_wants_a_moment(books: Books) -> None:
    with pytest.raises(InvalidRequest, match="give it as to"):
        await books.make("ageing")
    with pytest.raises(InvalidRequest, match="leave from out"):
        await books.make("ageing", start=APRIL, end=MAY)


async def test_a_watermark_repeats_to_the_byte(own_books: Books) -> None:
    books = own_books
    spans = {kind: {"end": MAY} if kind == "ageing" else {} for kind in KINDS}
    first = {kind: await books.make(kind, **span) for kind, span in spans.items()}
    # FOCUS tells moments in whole seconds, also the one in which a period was last changed.
    await asyncio.sleep(1.1)
    await books.month.pay(books.hybrid, books.hybrid.total, MAY - timedelta(days=1), "later")
    await books.month.book([books.month.call(books.month.hybrid, APRIL)])
    await books.month.credit_note(books.postpaid, 10_000_000, 0, MAY - timedelta(days=1), number=2)
    for kind, file in first.items():
        again = await books.make(kind, watermark=file.manifest.export.watermark, **spans[kind])
        assert again.body == file.body, kind
        assert again.manifest.as_json() == file.manifest.as_json()
        assert (await books.make(kind, **spans[kind])).body != file.body, "and without it there is more"
        if kind not in TABLES:
            continue
        excel = await books.make(kind, excel=True, watermark=file.manifest.export.watermark, **spans[kind])
        assert excel.body == b"\xef\xbb\xbf" + file.body
        assert (excel.manifest.as_json()["files"], excel.manifest.as_json()["rows_per_file"]) == (1, 1_048_575)


@pytest.mark.parametrize("kind", [name for name in TABLES if KINDS[name].takes_since])
async def test_parts_by_watermark_are_the_whole(books: Books, kind: str) -> None:
    whole = await books.make(kind)
    middle = books.voided.posting_id
    parts = [await books.make(kind, watermark=middle), await books.make(kind, since=middle)]
    rows = [row["row_id"] for part in parts for row in part.rows]
    assert sorted(rows) == sorted(row["row_id"] for row in whole.rows)
    assert sum((Counter(part.manifest.totals) for part in parts), Counter()) == +Counter(whole.manifest.totals)
    with pytest.raises(InvalidRequest, match="Nothing is newer"):
        await books.make(kind, watermark=middle, since=middle + 1)
