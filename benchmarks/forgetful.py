"""`python -m benchmarks.forgetful serve`: a gateway that does not know conversations again, to compare with."""

from __future__ import annotations

from gateway.calls import choice
from gateway.cli import main


def _forget(body: object) -> None:
    """Every call is as good anywhere."""


if __name__ == "__main__":
    setattr(choice, "prefix_of", _forget)  # noqa: B010 - of that module, where it is called
    main()
