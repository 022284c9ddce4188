"""Commands of the group `operate`."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
