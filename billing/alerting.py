"""When there is something to tell, and when to try again to tell it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from models.money import Units, currency

GIVE_UP_AFTER: Final = timedelta(days=1)
"""From the alert on: what a receiver has not taken by then is not sent again."""

_FIRST_DELAY: Final = timedelta(seconds=5)
_LONGEST_DELAY: Final = timedelta(hours=1)


def reached(limit: Units, spent: Units, percents: Iterable[int]) -> list[int]:
    """The parts of a limit, in percent, that what was spent has come to. Nothing spent has come to nothing."""
    return [percent for percent in percents if spent > 0 and spent * 100 >= limit * percent]


def suggested_top_up(balance: Units, threshold: Units, code: str) -> Units:
    """What brings a balance to twice its threshold, rounded up to what can be paid (the currency's minor unit)."""
    kept = currency(code)
    minor = 10 ** (kept.ledger_scale - kept.minor_digits)
    return Units(-(-(2 * threshold - balance) // minor) * minor)


def next_attempt(
    attempts: int, created_at: datetime, now: datetime, jitter_permille: int, give_up_after: timedelta = GIVE_UP_AFTER
) -> datetime | None:
    """When an alert is sent again after `attempts` that failed; None where it is given up.

    The delay doubles from 5 seconds to an hour. `jitter_permille` is random from 0 to 1000 and moves it from half to
    one and a half, so that receivers that were away together are not all asked together.
    """
    # Twelve times doubled is beyond the longest: a larger number would only be slower to compute.
    delay = min(_FIRST_DELAY * 2 ** min(attempts - 1, 12), _LONGEST_DELAY)
    moment = now + delay * (500 + jitter_permille) / 1_000
    return moment if moment <= created_at + give_up_after else None
