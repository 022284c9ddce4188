"""How late a claim is, and the statement of an account."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.receivables import Bucket, Entry, EntryKind, OpenItem, age, bucket_of, state
from models.money import Units

DUE = date(2026, 11, 30)
A, B = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize(
    ("days", "bucket"),
    [
        (-10, Bucket.NOT_DUE),
        (0, Bucket.NOT_DUE),
        (1, Bucket.UP_TO_30),
        (30, Bucket.UP_TO_30),
        (31, Bucket.UP_TO_60),
        (60, Bucket.UP_TO_60),
        (61, Bucket.UP_TO_90),
        (90, Bucket.UP_TO_90),
        (91, Bucket.OVER_90),
    ],
)
def test_buckets(days: int, bucket: Bucket) -> None:
    assert bucket_of(DUE, DUE + timedelta(days=days)) is bucket


def test_ageing_sums_each_organization() -> None:
    items = [
        OpenItem(owner, "USD", UUID(int=9), "INV-1", DUE - timedelta(days=30), due, Units(amount))
        for owner, due, amount in ((B, DUE, 5), (A, DUE, 1), (A, DUE - timedelta(days=40), 2), (A, DUE, 3))
    ]
    found = [(each.organization_id, each.buckets, each.total) for each in age(items, DUE)]
    nothing = dict.fromkeys(Bucket, 0)
    assert found == [
        (A, nothing | {Bucket.NOT_DUE: 4, Bucket.UP_TO_60: 2}, 6),
        (B, nothing | {Bucket.NOT_DUE: 5}, 5),
    ]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(-(10**9), 10**9))), st.integers(0, 60), st.integers(0, 60))
def test_a_statement_leads_from_its_opening_to_its_closing(
    moves: list[tuple[int, int]], first: int, length: int
) -> None:
    entries = [Entry(DUE + timedelta(days=day), EntryKind.INVOICE, "x", Units(amount)) for day, amount in moves]
    since, until = DUE + timedelta(days=first), DUE + timedelta(days=first + length)
    statement = state(entries, since, until)
    assert statement.opening == sum(entry.amount for entry in entries if entry.on < since)
    assert statement.closing == sum(entry.amount for entry in entries if entry.on <= until)
    assert statement.entries == () or statement.entries[-1].balance == statement.closing
