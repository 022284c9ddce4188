"""The URLs of Redis that the connection understands."""

from __future__ import annotations

import pytest

from billing.hot.connection import Address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address(None, "localhost", 6379, False, 0, None, None)),
        ("redis://host:7000/2", Address(None, "host", 7000, False, 2, None, None)),
        ("redis://:pass@host", Address(None, "host", 6379, False, 0, None, "pass")),
        ("redis://user:p%40ss@host/", Address(None, "host", 6379, False, 0, "user", "p@ss")),
        ("redis://host/?db=4", Address(None, "host", 6379, False, 4, None, None)),
        ("redis://[::1]:7000", Address(None, "::1", 7000, False, 0, None, None)),
        ("rediss://host:7000", Address(None, "host", 7000, True, 0, None, None)),
        ("unix:///run/redis.sock", Address("/run/redis.sock", "localhost", 6379, False, 0, None, None)),
        ("unix://user:pass@/run/r.sock?db=1", Address("/run/r.sock", "localhost", 6379, False, 1, "user", "pass")),
    ],
)
def test_address(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    "url", ["", "http://host", "localhost:6379", "redis://host/first", "redis://host:port", "unix://"]
)
def test_a_url_that_can_never_work(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reasons are worded by urllib in part
        Address.parse(url)


@pytest.mark.parametrize(
    ("url", "commands"),
    [
        ("redis://host", [("PING",)]),
        ("redis://:pass@host/3", [("AUTH", "pass"), ("SELECT", 3), ("PING",)]),
        ("redis://user:pass@host", [("AUTH", "user", "pass"), ("PING",)]),
    ],
)
def test_introduction(url: str, commands: list[tuple[object, ...]]) -> None:
    assert Address.parse(url).introduction() == commands


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Address.parse("redis://:secret@host"))
