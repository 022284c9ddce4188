"""Sums of charges, as usage, costs and invoices need them, so that none of these has to read the charges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID

from billing.booking import UNBILLED, FundedCharge
from billing.months import day_of


class HourKey(NamedTuple):
    """What the charges of a sum have in common; `hour` is in UTC, and is when they ended."""

    organization_id: UUID
    hour: datetime
    project_id: UUID
    api_key_id: UUID
    model: str


class DayKey(NamedTuple):
    """What the charges of a sum have in common; `day` is in the organization's time zone, and is when they ended."""

    organization_id: UUID
    billing_month: date
    day: date
    project_id: UUID
    model: str
    price_version_ids: tuple[UUID, ...]


@dataclass(slots=True)
class Sums:
    """Of some charges: `calls` leaves corrections out, tokens are those of the columns, money is in ledger units.

    `unbilled` is the part of `amount` that no grant paid.
    """

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    amount: int = 0
    unbilled: int = 0

    def add(self, funded: FundedCharge) -> None:
        """Take a charge in."""
        charge = funded.charge
        self.calls += charge.corrects is None
        self.input_tokens += charge.input_tokens
        self.cached_tokens += charge.cached_tokens
        self.cache_write_tokens += charge.cache_write_tokens
        self.output_tokens += charge.output_tokens
        self.reasoning_tokens += charge.reasoning_tokens
        self.amount += charge.amount
        for source, units in funded.funding:
            if source == UNBILLED:
                self.unbilled += units


@dataclass(frozen=True, slots=True)
class Batch:
    """Charges of one organization that are billed in one month."""

    timezone: str
    billing_month: date
    funded: Sequence[FundedCharge]


def by_hour(batches: Iterable[Batch]) -> dict[HourKey, Sums]:
    """The sums of each hour, key and model."""
    sums: dict[HourKey, Sums] = {}
    for batch in batches:
        for funded in batch.funded:
            charge = funded.charge
            hour = charge.ended_at.replace(minute=0, second=0, microsecond=0)
            key = HourKey(charge.organization_id, hour, charge.project_id, charge.api_key_id, charge.model)
            if (into := sums.get(key)) is None:
                into = sums[key] = Sums()
            into.add(funded)
    return sums


def by_day(batches: Iterable[Batch]) -> dict[DayKey, Sums]:
    """The sums of each day, project, model and set of prices."""
    sums: dict[DayKey, Sums] = {}
    for batch in batches:
        for funded in batch.funded:
            charge = funded.charge
            day = day_of(charge.ended_at, batch.timezone)
            key = DayKey(
                charge.organization_id,
                batch.billing_month,
                day,
                charge.project_id,
                charge.model,
                charge.price_version_ids,
            )
            if (into := sums.get(key)) is None:
                into = sums[key] = Sums()
            into.add(funded)
    return sums
