"""What an answer makes of a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.outcomes import LONGEST_PAUSE_SECONDS, MOST_FAILURES, Again, Ended, judge


@pytest.mark.parametrize(
    ("status", "delays", "failures", "outcome"),
    [
        pytest.param(200, 0, 0, Ended(is_paid=True), id="good"),
        pytest.param(429, 0, 0, Again(7, has_failed=False), id="a rate limit says when"),
        pytest.param(503, 4, 4, Again(16, has_failed=False), id="no room is no failure, however often"),
        pytest.param(502, 0, 0, Again(7, has_failed=True), id="a backend failed"),
        pytest.param(0, 0, 0, Again(7, has_failed=True), id="no answer"),
        pytest.param(504, 9, MOST_FAILURES - 1, Ended(is_paid=False), id="the last failure"),
        pytest.param(400, 0, 0, Ended(is_paid=False), id="a wrong parameter"),
        pytest.param(402, 0, 0, Again(7, has_failed=True), id="no money that is not held"),
        pytest.param(402, 4, 4, Ended(is_paid=False), id="no money at all"),
    ],
)
def test_judge(status: int, delays: int, failures: int, outcome: Ended | Again) -> None:
    assert judge(status, 7, delays=delays, failures=failures) == outcome


@pytest.mark.parametrize("failures", [0, MOST_FAILURES - 1])
def test_money_that_is_held_for_other_lines_is_waited_for(failures: int) -> None:
    assert judge(402, 0, delays=3, failures=failures, is_money_held=True) == Again(8, has_failed=False)
    assert judge(400, 0, delays=3, failures=failures, is_money_held=True) == Ended(is_paid=False)


@given(st.sampled_from([0, 429, 500, 503]), st.integers(0, 10**9), st.integers(0, 10**6))
def test_pauses_are_bounded(status: int, retry_after: int, delays: int) -> None:
    outcome = judge(status, retry_after, delays=delays, failures=0)
    assert isinstance(outcome, Again)
    assert 1 <= outcome.seconds <= LONGEST_PAUSE_SECONDS
