"""FOCUS files: right by our own strict reader, and tied to charges, invoices and the journal."""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.exports.focus_check import DATA_SETS, check
from tests.integration.books.conftest import Books, File

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

MARCH, APRIL = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 4))
COST_AND_USAGE = ["focus", "focus_1_4"]


def sums(rows: Iterable[dict[str, str]], *columns: str, of: str) -> dict[tuple[str, ...], Decimal]:
    found: dict[tuple[str, ...], Decimal] = {}
    for row in rows:
        key = tuple(row[column] for column in columns)
        found[key] = found.get(key, Decimal(0)) + Decimal(row[of])
    return found


async def payable(books: Books) -> dict[str, Decimal]:
    """What is to be paid of each document, by the table of invoices."""
    rows = (await books.make("invoices")).rows
    return {row["number"]: Decimal(row["total"]) for row in rows if row["status"] != "void"}


def wrong(kind: str, file: File, due: dict[str, Decimal] | None = None) -> list[str]:
    return list(check(kind, io.StringIO(file.body.decode(), newline=""), due))


@pytest.mark.parametrize("kind", [*COST_AND_USAGE, "focus_invoice_detail"])
async def test_files_are_right_and_sum_to_what_is_to_be_paid(books: Books, kind: str) -> None:
    file, due = await books.make(kind), await payable(books)
    assert wrong(kind, file, due) == []
    assert due.keys() == {"INV-000002", "INV-000003", "INV-000004", "CN-000001"}
    assert due["CN-000001"] < 0
    assert file.manifest.rows == len(file.rows) > len(due)


@pytest.mark.parametrize("kind", COST_AND_USAGE)
async def test_effective_cost_of_usage_is_what_the_calls_cost(books: Books, kind: str) -> None:
    rows, charges = (await books.make(kind)).rows, (await books.make("charges")).rows
    used = [row for row in rows if row["ChargeCategory"] == "Usage" or row["x_RowId"].endswith("/correction")]
    ours = sums(used, "BillingAccountId", "BillingCurrency", of="EffectiveCost")
    assert ours == sums(charges, "organization_id", "currency", of="amount")


async def test_quantities_are_those_of_the_calls(books: Books) -> None:
    usage = [row for row in (await books.make("focus")).rows if row["ChargeCategory"] == "Usage"]
    charges = [row for row in (await books.make("charges")).rows if not row["corrects"]]
    ours = sums(usage, "SkuMeter", of="ConsumedQuantity")
    parts = ("cached_tokens", "cache_write_tokens")
    expected = {
        "Input Tokens": sum(int(row["input_tokens"]) - sum(int(row[name]) for name in parts) for row in charges),
        "Cached Input Tokens": sum(int(row["cached_tokens"]) for row in charges),
        "Cache Write Tokens": sum(int(row["cache_write_tokens"]) for row in charges),
        "Output Tokens": sum(int(row["output_tokens"]) - int(row["reasoning_tokens"]) for row in charges),
        "Reasoning Tokens": sum(int(row["reasoning_tokens"]) for row in charges),
        "Requests": len(charges),
        "Images": sum(int(row["images"]) for row in charges),
        "Audio Seconds": sum(int(row["audio_seconds"]) for row in charges),
    }
    assert {meter: int(units) for (meter,), units in ours.items()} == expected


async def test_what_is_billed_is_what_is_owed_and_what_is_bought_is_cash(books: Books) -> None:
    rows, journal = (await books.make("focus")).rows, (await books.make("journal")).rows
    owed = [row for row in journal if row["kind"] == "charge_batch" and row["account"] == "unbilled"]
    debits, credits = (sums(owed, "organization_id", of=side) for side in ("debit", "credit"))
    billed = sums([row for row in rows if _is_of_calls(row)], "BillingAccountId", of="BilledCost")
    assert {key: units for key, units in billed.items() if units} == {key: debits[key] - credits[key] for key in debits}
    cash = [row for row in journal if row["kind"] in ("topup", "void_grant") and row["account"] == "cash_clearing"]
    bought = sums([row for row in rows if row["ChargeCategory"] == "Purchase"], "BillingCurrency", of="BilledCost")
    paid, back = (sums(cash, "currency", of=side) for side in ("debit", "credit"))
    assert bought == {key: paid[key] - back[key] for key in paid}


async def test_what_was_given_is_credited(books: Books) -> None:
    rows, journal = (await books.make("focus")).rows, (await books.make("journal")).rows
    credited = sums([row for row in rows if row["ChargeCategory"] == "Credit"], "BillingAccountId", of="BilledCost")
    drawn = [row for row in journal if row["kind"] == "charge_batch" and row["account"] == "customer_promo"]
    used, back = (sums(drawn, "organization_id", of=side) for side in ("debit", "credit"))
    assert credited == {key: back[key] - used[key] for key in used}
    assert len(credited) == 2


async def test_each_period_is_whole_and_in_its_own_time_zone(books: Books) -> None:
    everything, march = (await books.make("focus")).rows, (await books.make("focus", start=MARCH, end=APRIL)).rows
    assert march == [row for row in everything if row["x_RowId"].split("/")[1] == "2026-03-01"]
    assert {row["BillingPeriodStart"] for row in march} == {
        *("2026-03-01T00:00:00Z", "2026-03-01T05:00:00Z", "2026-02-28T15:00:00Z")
    }
    korean = {row["BillingPeriodEnd"] for row in march if row["BillingAccountId"] == str(books.month.korean.id)}
    assert korean == {"2026-03-31T15:00:00Z"}
    corrections = [row for row in everything if row["InvoiceId"] == "CN-000001"]
    assert {row["ChargeClass"] for row in corrections} == {"Correction"}
    assert {(row["BillingPeriodStart"], row["ChargePeriodStart"]) for row in corrections} == {
        ("2026-03-31T15:00:00Z", "2026-02-28T15:00:00Z")
    }


async def test_billing_periods_close_with_their_invoices(books: Books) -> None:
    now = await books.make("focus_billing_period")
    assert wrong("focus_billing_period", now) == []
    status = {row["BillingPeriodStart"]: row["BillingPeriodStatus"] for row in now.rows}
    assert status["2026-02-28T15:00:00Z"] == "Closed"
    assert status["2026-03-31T15:00:00Z"] == "Open"
    before = await books.make("focus_billing_period", watermark=books.voided.posting_id)
    status = {row["BillingPeriodStart"]: row["BillingPeriodStatus"] for row in before.rows}
    assert status["2026-02-28T15:00:00Z"] == "Open"


async def test_both_data_sets_have_a_document_in_the_same_period(books: Books) -> None:
    detail, usage = (await books.make("focus_invoice_detail")).rows, (await books.make("focus_1_4")).rows
    periods = {row["InvoiceId"]: (row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in detail}
    for row in usage:
        if row["InvoiceId"]:
            assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == periods[row["InvoiceId"]]


async def test_a_voided_invoice_is_told_and_not_summed(books: Books) -> None:
    rows = (await books.make("focus_invoice_detail")).rows
    status = {row["InvoiceId"]: row["InvoiceIssueStatus"] for row in rows}
    assert status == dict.fromkeys(await payable(books), "Issued") | {"INV-000001": "Voided"}
    assert {row["ReferenceInvoiceId"] for row in rows if row["InvoiceId"] == "CN-000001"} == {"INV-000003"}
    assert all(row["InvoiceId"] != "INV-000001" for row in (await books.make("focus")).rows)


async def test_details_are_joined_by_their_ids(books: Books) -> None:
    """A row of Cost and Usage that names a line of an invoice bills what that line does."""
    details = {row["InvoiceDetailId"]: row for row in (await books.make("focus_invoice_detail")).rows}
    named = [row for row in (await books.make("focus_1_4")).rows if row["InvoiceDetailId"]]
    assert {row["ChargeCategory"] for row in named} == {"Tax", "Adjustment"}
    for row in named:
        assert Decimal(row["BilledCost"]) == Decimal(details[row["InvoiceDetailId"]]["BilledCost"])


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("ChargeCategory", '"Sale"', "may not be 'Sale'"),
        ("BilledCost", "1,5", "cells"),
        ("BilledCost", "x", "no number"),
        ("BilledCost", "", "BilledCost is empty"),
        ("ListCost", "7.000000000", "times PricingQuantity is"),
        ("ContractedCost", "7.000000000", "times PricingQuantity is"),
        ("BillingPeriodEnd", "2026-03-01", "no time in UTC"),
        ("BillingPeriodEnd", "2020-01-01T00:00:00Z", "ends before it begins"),
        ("ChargePeriodEnd", "2026-09-01T00:00:00Z", "not within the billing period"),
        ("ChargeFrequency", '"Recurring"', "ChargeFrequency of Usage"),
        ("ConsumedUnit", "", "belongs to Usage"),
        ("PricingUnit", "", "come together"),
        ("SkuId", "", "SkuId is empty"),
        ("SkuPriceDetails", '"[]"', "no JSON object"),
        ("EffectiveCost", "NaN", "no number"),
    ],
)
async def test_the_reader_is_strict(books: Books, column: str, value: str, complaint: str) -> None:
    """What other validators let pass is found: each fault is put into an honest file."""
    file = await books.make("focus")
    head, first, rest = file.body.decode().split("\r\n", 2)
    place = [each.name for each in DATA_SETS["focus"]].index(column)
    # Before the one cell with a comma in it, the details of the price, there is one comma a column.
    cells = first.split(",")
    cells[place : place + 1 + (column == "SkuPriceDetails")] = [value]
    broken = "\r\n".join((head, ",".join(cells), rest))
    found = list(check("focus", io.StringIO(broken, newline="")))
    assert len(found) >= 1
    assert any(complaint in each for each in found), found


async def test_the_reader_sums(books: Books) -> None:
    file, due = await books.make("focus"), await payable(books)
    due["INV-000002"] += Decimal("0.01")
    due["INV-000009"] = Decimal(1)
    found = wrong("focus", file, due)
    assert [each.split(":")[0] for each in found] == ["Invoice INV-000002", "Invoice INV-000009"]
    assert next(check("focus", ["BilledCost\r\n"])).startswith("The header is not that of focus")
    twice = file.body + file.body.split(b"\r\n")[1] + b"\r\n"
    assert "there was a row" in "".join(check("focus", io.StringIO(twice.decode(), newline="")))


def _is_of_calls(row: dict[str, str]) -> bool:
    return row["ChargeCategory"] in ("Usage", "Credit") or row["x_RowId"].endswith("/correction")
