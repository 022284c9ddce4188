"""Sharing out: the parts sum to the whole, whatever the weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.exports.focus import shares

WEIGHTS = st.lists(st.integers(0, 10**20), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        pytest.param(10, [1, 1, 1], [4, 3, 3], id="what is left over goes to the first of equals"),
        pytest.param(10, [1, 2, 7], [1, 2, 7], id="what divides is divided"),
        pytest.param(5, [0, 0], [5, 0], id="without weights the first has it all"),
        pytest.param(1, [1, 3], [0, 1], id="the larger remainder comes first"),
        pytest.param(-10, [1, 1, 1], [-3, -3, -4], id="below zero, too"),
    ],
)
def test_shares(total: int, weights: list[int], parts: list[int]) -> None:
    assert shares(total, weights) == parts


@given(st.integers(-(10**20), 10**20), WEIGHTS)
def test_no_unit_is_lost(total: int, weights: list[int]) -> None:
    parts = shares(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    if whole:
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part * whole - total * weight) < whole, "nobody is off by a whole unit"
