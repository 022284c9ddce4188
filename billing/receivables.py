"""What is owed, by how late it is, and the statement of an account. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Final
from uuid import UUID

from models.money import Units


class Bucket(StrEnum):
    """How late a claim is."""

    NOT_DUE = "not_due"
    UP_TO_30 = "1_30"
    UP_TO_60 = "31_60"
    UP_TO_90 = "61_90"
    OVER_90 = "over_90"


_BOUNDS: Final = ((0, Bucket.NOT_DUE), (30, Bucket.UP_TO_30), (60, Bucket.UP_TO_60), (90, Bucket.UP_TO_90))


@dataclass(frozen=True, slots=True)
class OpenItem:
    """An invoice of which `amount` was still owed on the day that is looked at."""

    organization_id: UUID
    currency: str
    invoice_id: UUID
    number: str
    issued_on: date
    due_on: date
    amount: Units


@dataclass(frozen=True, slots=True)
class Ageing:
    """What one organization owes, by how late it is."""

    organization_id: UUID
    currency: str
    buckets: dict[Bucket, Units]
    total: Units


def bucket_of(due_on: date, today: date) -> Bucket:
    """How late a claim is that was due on `due_on`: on that day itself it is not."""
    late = (today - due_on).days
    return next((bucket for bound, bucket in _BOUNDS if late <= bound), Bucket.OVER_90)


def age(items: Iterable[OpenItem], today: date) -> list[Ageing]:
    """The ageing of each organization that owes anything, in the order of their ids."""
    sums: dict[tuple[UUID, str], dict[Bucket, Units]] = {}
    for item in items:
        buckets = sums.setdefault((item.organization_id, item.currency), dict.fromkeys(Bucket, Units(0)))
        bucket = bucket_of(item.due_on, today)
        buckets[bucket] = Units(buckets[bucket] + item.amount)
    return [
        Ageing(owner, code, buckets, Units(sum(buckets.values()))) for (owner, code), buckets in sorted(sums.items())
    ]


class EntryKind(StrEnum):
    """What changed what an organization owes."""

    INVOICE = "invoice"
    VOID = "void"
    CREDIT_NOTE = "credit_note"
    PAYMENT = "payment"
    REFUND = "refund"
    WRITE_OFF = "write_off"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a statement: `amount` is what is owed more, or less where it is negative."""

    on: date
    kind: EntryKind
    reference: str
    amount: Units
    balance: Units = Units(0)


@dataclass(frozen=True, slots=True)
class Statement:
    """What was owed at the beginning, everything that changed it, and what is owed at the end."""

    opening: Units
    entries: tuple[Entry, ...]
    closing: Units


def state(entries: Sequence[Entry], since: date, until: date) -> Statement:
    """The statement from `since` to `until`, both inclusive, of all that ever changed what is owed."""
    before = sum(entry.amount for entry in entries if entry.on < since)
    balance = int(before)
    shown = []
    for entry in sorted(entries, key=lambda entry: entry.on):
        if since <= entry.on <= until:
            balance += entry.amount
            shown.append(Entry(entry.on, entry.kind, entry.reference, entry.amount, Units(balance)))
    return Statement(Units(before), tuple(shown), Units(balance))
