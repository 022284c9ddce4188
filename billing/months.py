"""Months and days of an organization, in its own time zone: a call belongs to those in which it ended. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_QUARTER: Final = timedelta(minutes=15)
"""No time zone in use is apart from UTC by anything but whole quarters of an hour."""


def quarter_of(moment: datetime) -> int:
    """The quarter of an hour that a moment lies in: moments of one have day, month and hour in common everywhere."""
    return (moment - _EPOCH) // _QUARTER


def day_of(moment: datetime, timezone: str) -> date:
    """The day that a moment lies in, where the clocks show `timezone` (a name of the IANA database)."""
    return _day_of_quarter((moment - _EPOCH) // _QUARTER, timezone)


def month_of(moment: datetime, timezone: str) -> date:
    """The first day of the month that a moment lies in, where the clocks show `timezone`."""
    return _month_of_quarter((moment - _EPOCH) // _QUARTER, timezone)


def next_month(month: date) -> date:
    """The first day of the month after the one that begins on `month`."""
    return (month + timedelta(days=31)).replace(day=1)


def bounds_of(month: date, timezone: str) -> tuple[datetime, datetime]:
    """When a month begins and when the next one does, in UTC."""
    return _midnight(month, timezone), _midnight(next_month(month), timezone)


def _midnight(day: date, timezone: str) -> datetime:
    return datetime.combine(day, time(), _zone(timezone)).astimezone(UTC)


@lru_cache(maxsize=1_024)
def _zone(timezone: str) -> tzinfo:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        # A name that nobody knows is refused where it is set; were it there all the same, no call may go unbilled.
        return UTC


@lru_cache(maxsize=4_096)
def _day_of_quarter(quarter: int, timezone: str) -> date:
    return (_EPOCH + quarter * _QUARTER).astimezone(_zone(timezone)).date()


@lru_cache(maxsize=4_096)
def _month_of_quarter(quarter: int, timezone: str) -> date:
    return _day_of_quarter(quarter, timezone).replace(day=1)
