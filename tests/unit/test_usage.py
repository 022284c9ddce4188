"""Months and days in a time zone, and the sums of charges by them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.booking import UNBILLED, FundedCharge, Grant, plan_booking, plan_bookings
from billing.months import bounds_of, day_of, month_of, next_month
from billing.usage import Batch, Sums, sums_of
from models.call import Charge, Hold
from models.ledger import GrantKind
from models.money import Units
from tests.integration.hot.nouns import Tenant, charge

TENANT = Tenant()
ZONES = ("UTC", "Asia/Seoul", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Chatham")


def a_charge(**changes: Any) -> Charge:
    """A charge of a call of the tenant."""
    return replace(charge(Hold(TENANT.request(1_000))), **changes)


@pytest.mark.parametrize(
    ("timezone", "starts_at", "ends_at"),
    [
        ("UTC", "2026-11-01T00:00:00+00:00", "2026-12-01T00:00:00+00:00"),
        ("Asia/Seoul", "2026-10-31T15:00:00+00:00", "2026-11-30T15:00:00+00:00"),
        # Clocks are set back on 1 November.
        ("America/New_York", "2026-11-01T04:00:00+00:00", "2026-12-01T05:00:00+00:00"),
    ],
)
def test_a_month_has_the_bounds_of_its_time_zone(timezone: str, starts_at: str, ends_at: str) -> None:
    expected = datetime.fromisoformat(starts_at), datetime.fromisoformat(ends_at)
    assert bounds_of(date(2026, 11, 1), timezone) == expected


@given(
    moment=st.integers(0, 631_152_000).map(lambda second: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=second)),
    timezone=st.sampled_from(ZONES),
)
def test_every_moment_lies_in_one_month(moment: datetime, timezone: str) -> None:
    month = month_of(moment, timezone)
    starts_at, ends_at = bounds_of(month, timezone)
    assert starts_at <= moment < ends_at
    assert ends_at == bounds_of(next_month(month), timezone)[0]
    assert day_of(moment, timezone) == moment.astimezone(ZoneInfo(timezone)).date()


def test_hours_tell_endpoints_and_batches_apart() -> None:
    kinds = [
        ("/v1/images/generations", False, 1),
        ("/v1/chat/completions", False, 0),
        ("/v1/chat/completions", True, 0),
    ]
    charges = [a_charge(endpoint=endpoint, batch=batch, images=images) for endpoint, batch, images in kinds * 2]
    hours, days = sums_of([Batch("UTC", date(2026, 3, 1), plan_booking(charges, []).funded)])
    assert {(key.endpoint, key.batch, sums.calls, sums.images) for key, sums in hours.items()} == {
        (endpoint, batch, 2, 2 * images) for endpoint, batch, images in kinds
    }
    assert [(sums.calls, sums.images) for sums in days.values()] == [(6, 2)]


def test_sums_are_those_of_the_charges_however_they_are_grouped() -> None:
    ended = datetime(2026, 11, 30, 14, 59, 59, tzinfo=UTC)
    charges = [
        a_charge(ended_at=ended + timedelta(seconds=second), amount=1_000 + second, model=model, images=second)
        for second in range(3)
        for model in ("a", "b")
    ]
    booking = plan_booking(charges, [])
    batches = [Batch("Asia/Seoul", date(2026, 11, 1), booking.funded)]
    hours, days = sums_of(batches)
    assert {key.hour.hour for key in hours} == {14, 15}
    assert {key.day for key in days} == {date(2026, 11, 30), date(2026, 12, 1)}
    for sums in (hours.values(), days.values()):
        assert sum(each.amount for each in sums) == sum(charge.amount for charge in charges)
        assert sum(each.unbilled for each in sums) == sum(charge.amount for charge in charges)
        assert sum(each.calls for each in sums) == len(charges)
        assert sum(each.images for each in sums) == sum(charge.images for charge in charges)
        assert sum(each.audio_seconds for each in sums) == sum(charge.audio_seconds for charge in charges)
        assert sum(each.input_tokens for each in sums) == sum(charge.input_tokens for charge in charges)


def test_a_correction_is_no_call() -> None:
    booked = a_charge(amount=20)
    correction = FundedCharge(a_charge(corrects=booked.call_id, amount=-5), ((UNBILLED, Units(-5)),))
    sums = Sums()
    sums.add(FundedCharge(booked, ((UNBILLED, Units(20)),)))
    sums.add(correction)
    assert (sums.calls, sums.amount, sums.unbilled) == (1, 15, 15)


@given(
    amounts=st.lists(st.integers(0, 100), min_size=1, max_size=12), cut=st.integers(0, 12), credit=st.integers(1, 300)
)
def test_batches_are_funded_as_one_would_be(amounts: list[int], cut: int, credit: int) -> None:
    charges = [a_charge(amount=amount) for amount in amounts]
    grant = Grant(
        charges[0].organization_id,
        GrantKind.PAID,
        Units(credit),
        50,
        datetime(2026, 1, 1, tzinfo=UTC),
    )
    whole = plan_booking(charges, [grant])
    parts = plan_bookings([charges[:cut], charges[cut:]], [grant])
    assert [funded.funding for part in parts for funded in part.funded] == [each.funding for each in whole.funded]
    assert sum(part.total for part in parts) == whole.total
