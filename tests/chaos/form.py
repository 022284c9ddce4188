"""The two forms of these tests: short ones for every run, and the full numbers for `make chaos`."""

from __future__ import annotations

import os

IS_FULL = os.environ.get("TOLLGATE_CHAOS") == "full"


def times(short: int, full: int) -> int:
    """How often, in the form that was asked for."""
    return full if IS_FULL else short
