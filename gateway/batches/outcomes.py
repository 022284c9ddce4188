"""What comes of an attempt at a line: an end, or another attempt later. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_FAILURES: Final = 5
"""After so many failed attempts a line ends with the last one's error: it may be the line that is at fault."""

LONGEST_PAUSE_SECONDS: Final = 300
_LONGEST_POWER: Final = 6
_PUT_OFF: Final = frozenset({429, 503})
"""Answers to which nothing was done: the same call may pass later."""

NO_MONEY: Final = 402
"""It may only be held for other lines, which cost less than was held for them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is what the customer gets, and `is_paid` says whether for money."""

    is_paid: bool


@dataclass(frozen=True, slots=True)
class Again:
    """Tried again after `seconds`."""

    seconds: int
    has_failed: bool


def judge(
    status: int, retry_after_seconds: int, *, delays: int, failures: int, is_money_held: bool = False
) -> Ended | Again:
    """What an answer means for a line that was put off `delays` times before, of which it failed `failures` times.

    Status 0 is no answer at all. Whoever is refused for lack of room or rate comes back until the batch's window ends;
    so does who lacks the money that `is_money_held` for other lines.
    """
    if 200 <= status < 300:
        return Ended(is_paid=True)
    pause = min(LONGEST_PAUSE_SECONDS, max(retry_after_seconds, 2 ** min(delays, _LONGEST_POWER)))
    if status in _PUT_OFF or (status == NO_MONEY and is_money_held):
        return Again(pause, has_failed=False)
    may_pass = status in (0, NO_MONEY) or status >= 500
    if may_pass and failures + 1 < MOST_FAILURES:
        return Again(pause, has_failed=True)
    return Ended(is_paid=False)
