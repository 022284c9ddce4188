"""When limits are reached, how much to top up, and how long an alert is tried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.alerting import GIVE_UP_AFTER, next_attempt, reached, suggested_top_up
from models.money import CURRENCIES, Units

START = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("limit", "spent", "expected"),
    [
        pytest.param(100, 79, [], id="below"),
        pytest.param(100, 80, [80], id="exactly there"),
        pytest.param(100, 1_000, [80, 100, 150], id="all at once"),
        pytest.param(0, 0, [], id="a limit of nothing, and nothing spent"),
        pytest.param(0, 1, [80, 100, 150], id="a limit of nothing"),
        pytest.param(3, 2, [], id="66.7 percent is not 80"),
        pytest.param(10**24, 8 * 10**23, [80], id="beyond what a double holds"),
    ],
)
def test_reached(limit: int, spent: int, expected: list[int]) -> None:
    assert reached(Units(limit), Units(spent), [80, 100, 150]) == expected


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**15), st.sampled_from(sorted(CURRENCIES)))
def test_a_top_up_reaches_twice_the_threshold_and_can_be_paid(balance: int, threshold: int, code: str) -> None:
    balance = min(balance, threshold - 1)
    amount = suggested_top_up(Units(balance), Units(threshold), code)
    minor = 10 ** (CURRENCIES[code].ledger_scale - CURRENCIES[code].minor_digits)
    assert amount % minor == 0
    assert 0 <= balance + amount - 2 * threshold < minor


@given(st.integers(0, 1_000))
def test_an_alert_is_tried_for_a_day_at_growing_distances(jitter: int) -> None:
    now = START
    delays: list[timedelta] = []
    while (moment := next_attempt(len(delays) + 1, START, now, jitter)) is not None:
        delays.append(moment - now)
        now = moment
    assert timedelta(seconds=2.5) <= delays[0] <= timedelta(seconds=7.5)
    assert delays == sorted(delays)
    assert delays[-1] <= timedelta(hours=1.5)
    assert GIVE_UP_AFTER - timedelta(hours=1.5) <= now - START <= GIVE_UP_AFTER
    assert 20 <= len(delays) <= 60


def test_however_many_attempts_there_were_the_next_is_computed() -> None:
    assert next_attempt(10**9, START, START, 500) == START + timedelta(hours=1)
