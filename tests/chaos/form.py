"""The two forms of these tests: short ones for every run, and the full numbers for `make chaos`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")

IS_FULL = os.environ.get("TOLLGATE_CHAOS") == "full"


def times(short: int, full: int) -> int:
    """How often, in the form that was asked for."""
    return full if IS_FULL else short


def rows(short: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    """The rows of a test: those of every run, and in the full form the others too."""
    return [*short, *more] if IS_FULL else list(short)
