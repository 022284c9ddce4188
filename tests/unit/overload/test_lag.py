"""When a late event loop makes the gateway refuse new calls, and when it stops to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lag import CALM_BELOW_SECONDS, PATIENCE_SECONDS, SHED_ABOVE_SECONDS, LoopLag


def told(lags: list[float]) -> LoopLag:
    """A loop that sleeps a quarter of a second at a time, and each time wakes so late."""
    lag, now = LoopLag(), 1_000.0
    for late in lags:
        lag.woke(now + 0.25, now + 0.25 + late)
        now += 0.25 + late
    return lag


@pytest.mark.parametrize(
    ("lags", "is_shedding"),
    [
        pytest.param([0.0] * 20, False, id="a loop in time"),
        pytest.param([0.2] * 3, False, id="late for less than a second"),
        pytest.param([0.2] * 5, True, id="late for a second"),
        pytest.param([0.09] * 20, False, id="less than a tenth of a second is not late"),
        pytest.param([0.2, 0.2, 0.2, 0.05] * 5, False, id="one wake-up in time starts the second again"),
        pytest.param([30.0], False, id="a single stall is over when it is seen"),
        pytest.param([0.2] * 5 + [0.0] * 4, True, id="calm for less than a second"),
        pytest.param([0.2] * 5 + [0.0] * 5, False, id="calm for a second"),
        pytest.param([0.2] * 5 + [0.07] * 20, True, id="between the bounds nothing changes"),
        pytest.param([0.2] * 5 + [0.0, 0.0, 0.07] * 5, True, id="calm only now and then"),
    ],
)
def test_shedding(lags: list[float], is_shedding: bool) -> None:
    assert told(lags).is_shedding is is_shedding


def test_the_last_lag_is_shown_and_never_negative() -> None:
    lag = LoopLag()
    lag.woke(10.0, 10.125)
    assert lag.seconds == 0.125
    lag.woke(11.0, 10.9)
    assert lag.seconds == 0.0


@given(st.lists(st.floats(0, 0.5), max_size=60))
def test_it_changes_its_mind_only_after_a_second_of_evidence(lags: list[float]) -> None:
    lag, now, evidence = LoopLag(), 1_000.0, list[float]()
    for late in lags:
        before, expected = lag.is_shedding, now + 0.25
        now = expected + late
        lag.woke(expected, now)
        speaks = now - expected < CALM_BELOW_SECONDS if before else now - expected > SHED_ABOVE_SECONDS
        evidence = [*evidence, now] if speaks else []
        has_spoken = len(evidence) > 1 and evidence[-1] - evidence[0] >= PATIENCE_SECONDS
        assert (lag.is_shedding is not before) is has_spoken
        if has_spoken:
            evidence = []


@given(st.lists(st.floats(0, 5), max_size=40))
def test_a_calm_loop_always_recovers(lags: list[float]) -> None:
    assert not told([*lags, *[0.0] * 6]).is_shedding
