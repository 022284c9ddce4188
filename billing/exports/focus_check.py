"""A strict reader of FOCUS files: columns, types, allowed values, and the arithmetic that others leave out."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Final

from billing.exports.focus_columns import (
    BILLING_PERIOD_1_4,
    COST_AND_USAGE_1_2,
    COST_AND_USAGE_1_4,
    INVOICE_DETAIL_1_4,
    FocusColumn,
    Form,
)

DATA_SETS: Final = {
    "focus": COST_AND_USAGE_1_2,
    "focus_1_4": COST_AND_USAGE_1_4,
    "focus_invoice_detail": INVOICE_DETAIL_1_4,
    "focus_billing_period": BILLING_PERIOD_1_4,
}
"""Columns by the kind of export."""

_DECIMAL: Final = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_PRICED: Final = ("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")
_OF_USAGE: Final = ("ConsumedQuantity", "ConsumedUnit")


def check(kind: str, lines: Iterable[str], payable: Mapping[str, Decimal] | None = None) -> Iterator[str]:
    """What is wrong in a file, sentence by sentence; nothing for a file that is right.

    `payable` is what is to be paid of each document that is not void, by its number: the rows that name it must sum to
    that, and no other document may be named.
    """
    reader = csv.reader(lines, strict=True)
    columns = DATA_SETS[kind]
    names = [column.name for column in columns]
    if next(reader, None) != names:
        yield f"The header is not that of {kind}: {', '.join(names)}."
        return
    billed: Counter[str] = Counter()
    seen: set[str] = set()
    for number, cells in enumerate(reader, 2):
        if len(cells) != len(names):
            yield f"Row {number} has {len(cells)} cells, not {len(names)}."
            continue
        row = dict(zip(names, cells, strict=True))
        wrong = [*_cells(columns, row)] or [*_row(kind, row)]
        yield from (f"Row {number}: {each}" for each in wrong)
        if wrong:
            continue
        identifier = row.get("x_RowId") or row.get("InvoiceDetailId") or f"{row['BillingPeriodStart']}"
        if identifier in seen and kind != "focus_billing_period":
            yield f"Row {number}: there was a row {identifier} before."
        seen.add(identifier)
        if row.get("InvoiceId") and row.get("InvoiceIssueStatus") != "Voided":
            billed[row["InvoiceId"].removeprefix("'")] += Decimal(row["BilledCost"])  # type: ignore[assignment]
    if payable is not None and "InvoiceId" in names:
        for name in sorted(payable.keys() | billed.keys()):
            if payable.get(name) != billed.get(name, 0):
                yield f"Invoice {name}: its rows sum to {billed.get(name, 0)}, and {payable.get(name)} is to be paid."


def _cells(columns: Iterable[FocusColumn], row: Mapping[str, str]) -> Iterator[str]:
    for column in columns:
        value = row[column.name]
        if not value:
            if not column.nullable:
                yield f"{column.name} is empty."
        elif column.form is Form.DECIMAL and not _DECIMAL.fullmatch(value):
            yield f"{column.name} is no number: {value!r}."
        elif column.form is Form.TIME and not _is_time(value):
            yield f"{column.name} is no time in UTC: {value!r}."
        elif column.form is Form.JSON and not _is_object(value):
            yield f"{column.name} is no JSON object: {value!r}."
        elif column.allowed is not None and value not in column.allowed:
            yield f"{column.name} may not be {value!r}."


def _row(kind: str, row: Mapping[str, str]) -> Iterator[str]:
    if not row["BillingPeriodStart"] < row["BillingPeriodEnd"]:
        yield "The billing period ends before it begins."
    if kind not in ("focus", "focus_1_4"):
        return
    if not row["ChargePeriodStart"] < row["ChargePeriodEnd"]:
        yield "The charge period ends before it begins."
    is_within = (
        row["BillingPeriodStart"] <= row["ChargePeriodStart"] and row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
    )
    if not is_within and row["ChargeClass"] != "Correction":
        yield "The charge period is not within the billing period, and the row is no correction."
    for cost, unit_price in _PRICED:
        if row[unit_price] and row["PricingQuantity"]:
            product = Decimal(row[unit_price]) * Decimal(row["PricingQuantity"])
            if Decimal(row[cost]) != product:
                yield f"{cost} is {row[cost]}, and {unit_price} times PricingQuantity is {product}."
    yield from _category(row)


def _category(row: Mapping[str, str]) -> Iterator[str]:
    category = row["ChargeCategory"]
    is_usage = category == "Usage"
    if is_usage != (row["ChargeFrequency"] == "Usage-Based"):
        yield f"ChargeFrequency of {category} may not be {row['ChargeFrequency']}."
    for name in _OF_USAGE:
        if bool(row[name]) != is_usage:
            yield f"{name} belongs to Usage and to nothing else."
    if bool(row["PricingQuantity"]) != bool(row["PricingUnit"]):
        yield "PricingQuantity and PricingUnit come together."
    if category in ("Usage", "Purchase"):
        for name in ("SkuId", "PricingQuantity", "PricingCategory"):
            if not row[name]:
                yield f"{name} is empty, which {category} may not be."
    elif category in ("Tax", "Credit") and (row["SkuPriceId"] or row["ListUnitPrice"] or row["PricingCategory"]):
        yield f"{category} has no price."
    if category == "Credit" and Decimal(row["BilledCost"]) > 0:
        yield "A credit is not above zero."
    if category == "Purchase" and Decimal(row["EffectiveCost"]) != 0:
        yield "What is bought ahead costs when it is used: EffectiveCost is 0."


def _is_time(value: str) -> bool:
    try:
        return bool(_TIME.fullmatch(value)) and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _is_object(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except ValueError:
        return False
