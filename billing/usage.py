"""Sums of charges, as usage, costs and invoices need them, so that none of these has to read the charges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID

from billing.booking import UNBILLED, FundedCharge
from billing.months import day_of, quarter_of
from models.call import Charge


class HourKey(NamedTuple):
    """What the charges of a sum have in common; `hour` is in UTC, and is when they ended."""

    organization_id: UUID
    hour: datetime
    project_id: UUID
    api_key_id: UUID
    model: str
    endpoint: str
    batch: bool
    price_version_ids: tuple[UUID, ...]


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
    images: int = 0
    audio_seconds: int = 0
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
        self.images += charge.images
        self.audio_seconds += charge.audio_seconds
        self.amount += charge.amount
        for source, units in funded.funding:
            if source == UNBILLED:
                self.unbilled += units

    def add_sums(self, other: Sums) -> None:
        """Take sums in."""
        self.calls += other.calls
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.images += other.images
        self.audio_seconds += other.audio_seconds
        self.amount += other.amount
        self.unbilled += other.unbilled


@dataclass(frozen=True, slots=True)
class Batch:
    """Charges of one organization that are billed in one month."""

    timezone: str
    billing_month: date
    funded: Sequence[FundedCharge]


def sums_of(batches: Iterable[Batch]) -> tuple[dict[HourKey, Sums], dict[DayKey, Sums]]:
    """The sums of each hour, key, model, endpoint and prices, and those of each day, project, model and prices.

    Charges are added up once, by all that either tells apart; many of a batch are alike in it. Ids are compared as
    numbers there, since to hash a UUID costs more than all the rest.
    """
    hours: dict[HourKey, Sums] = {}
    days: dict[DayKey, Sums] = {}
    for batch in batches:
        for charge, sums in _alike(batch.funded):
            ended = charge.ended_at
            hour = ended.replace(minute=0, second=0, microsecond=0)
            of_hour = HourKey(
                *(charge.organization_id, hour, charge.project_id, charge.api_key_id, charge.model),
                *(charge.endpoint, charge.batch, charge.price_version_ids),
            )
            hours.setdefault(of_hour, Sums()).add_sums(sums)
            of_day = DayKey(
                charge.organization_id,
                batch.billing_month,
                day_of(ended, batch.timezone),
                charge.project_id,
                charge.model,
                charge.price_version_ids,
            )
            days.setdefault(of_day, Sums()).add_sums(sums)
    return hours, days


def _alike(funded: Iterable[FundedCharge]) -> Iterable[tuple[Charge, Sums]]:
    """One charge of each group that has all in common, with the sums of its group."""
    groups: dict[tuple[object, ...], tuple[Charge, Sums]] = {}
    for each in funded:
        charge = each.charge
        key = (
            quarter_of(charge.ended_at),
            charge.project_id.int,
            charge.api_key_id.int,
            charge.model,
            charge.endpoint,
            charge.batch,
            *[version.int for version in charge.price_version_ids],
        )
        if (group := groups.get(key)) is None:
            group = groups[key] = charge, Sums()
        group[1].add(each)
    return groups.values()
