"""The example of `docs/webhooks.md` takes what Tollgate signs, and nothing else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.signatures import sign

PAGE = Path(__file__).parents[3] / "docs" / "webhooks.md"
SECRET, BODY = "tg_hook_of_the_tests", b'{"event":"balance.low"}'


@pytest.fixture
def is_from_tollgate() -> Callable[..., bool]:
    """The function on the page."""
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102  # our own page
    function: Callable[..., bool] = names["is_from_tollgate"]
    return function


def test_the_example_takes_what_is_signed(is_from_tollgate: Callable[..., bool]) -> None:
    now = int(time.time())
    header = sign(SECRET.encode(), BODY, now)
    assert is_from_tollgate(SECRET, header, BODY)
    assert is_from_tollgate(SECRET, header + ",v1=" + "0" * 64, BODY)


@pytest.mark.parametrize(
    ("secret", "body", "away", "change"),
    [
        pytest.param("another", BODY, 0, ("", ""), id="another secret"),
        pytest.param(SECRET, BODY + b" ", 0, ("", ""), id="another body"),
        pytest.param(SECRET, BODY, -400, ("", ""), id="old"),
        pytest.param(SECRET, BODY, 400, ("", ""), id="of the future"),
        pytest.param(SECRET, BODY, 0, ("t=", "x="), id="no time"),
        pytest.param(SECRET, BODY, 0, ("t=1", "t=１"), id="a digit of another script"),
        pytest.param(SECRET, BODY, 0, ("v1=", "v0="), id="another scheme"),
        pytest.param(SECRET, BODY, 0, ("v1=", "v1=é"), id="no ASCII"),
    ],
)
def test_the_example_refuses(
    is_from_tollgate: Callable[..., bool], secret: str, body: bytes, away: int, change: tuple[str, str]
) -> None:
    header = sign(secret.encode(), body, int(time.time()) + away).replace(*change)
    assert not is_from_tollgate(SECRET, header, BODY)
