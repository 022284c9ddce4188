"""The sliding window counts what an exact list of times would, in whole seconds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.window import Window


@given(st.integers(1, 12), st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_counts_like_a_list_of_times(seconds: int, steps: list[tuple[float, bool]]) -> None:
    window, times, now = Window(seconds), list[float](), 0.0
    for pause, counts in steps:
        now += pause
        if counts:
            window.add(now)
            times.append(now)
        assert window.sum(now) == sum(int(now) - int(time) < seconds for time in times)


def test_a_long_silence_empties_it() -> None:
    window = Window(10)
    window.add(5.0)
    assert window.sum(1e9) == 0
