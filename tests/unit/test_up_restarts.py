"""When a child that ended is started again."""

from __future__ import annotations

from gateway.embedded.restarts import LONGEST_DELAY_SECONDS, MOST, WINDOW_SECONDS, Restarts


def test_delays_double() -> None:
    restarts = Restarts()
    assert [restarts.after(float(second)) for second in range(4)] == [0.1, 0.2, 0.4, 0.8]


def test_too_many_ends_within_a_minute_are_the_last() -> None:
    restarts = Restarts()
    delays = [restarts.after(0.0) for _ in range(MOST + 1)]
    assert delays[-1] is None
    assert all(delay is not None and delay <= LONGEST_DELAY_SECONDS for delay in delays[:-1])


def test_ends_of_long_ago_do_not_count() -> None:
    restarts = Restarts()
    for _ in range(MOST):
        restarts.after(0.0)
    assert restarts.after(WINDOW_SECONDS) == 0.1
