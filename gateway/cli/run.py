"""Commands of the group `run`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
