"""The retry budget: a tenth of the calls of the last ten seconds, and never less than three."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.retries import FLOOR, WINDOW_SECONDS, RetryBudget


@pytest.mark.parametrize(
    ("calls", "retries"),
    [
        pytest.param(0, 3, id="a quiet gateway may retry three times"),
        pytest.param(39, 3, id="a tenth of 39 calls is three"),
        pytest.param(40, 4, id="a tenth of 40 calls is four"),
        pytest.param(1_000, 100, id="a tenth of a thousand is a hundred"),
    ],
)
def test_how_many_retries_there_are(calls: int, retries: int) -> None:
    budget = RetryBudget()
    for _ in range(calls):
        budget.called(50.0)
    assert sum(budget.take(50.0) for _ in range(calls + 10)) == retries


def test_the_budget_comes_back() -> None:
    budget = RetryBudget()
    assert [budget.take(50.9) for _ in range(4)] == [True, True, True, False]
    assert not budget.take(59.9)
    assert budget.take(60.0), "retries leave with their second"


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["call", "call", "call", "retry"])), max_size=120))
def test_never_above_its_share(steps: list[tuple[float, str]]) -> None:
    budget, now = RetryBudget(), 0.0
    calls, retries = list[float](), list[float]()
    for pause, step in steps:
        now += pause
        recent = [[int(time) for time in times if int(now) - int(time) < WINDOW_SECONDS] for times in (calls, retries)]
        if step == "call":
            budget.called(now)
            calls.append(now)
            continue
        allowed = max(FLOOR, len(recent[0]) // 10)
        taken = budget.take(now)
        assert taken is (len(recent[1]) < allowed)
        if taken:
            retries.append(now)
