"""What the doctor thinks of secrets: empty, short and usual ones are refused."""

from __future__ import annotations

import pytest

from gateway.doctor import password_fault, pepper_fault


@pytest.mark.parametrize(
    ("pepper", "fine"),
    [
        pytest.param("", False, id="empty"),
        pytest.param("x7Kp2mQ9", False, id="short"),
        pytest.param("a" * 64, False, id="one letter"),
        pytest.param("changeme" * 8, False, id="default"),
        pytest.param("nJ3vX8qLz0RtYb5WcK1dFg7HsPa2MeUo", True, id="32 random characters"),
    ],
)
def test_pepper(pepper: str, fine: bool) -> None:
    assert (pepper_fault(pepper) is None) == fine


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        pytest.param("redis://localhost:6379/0", True, id="none on this machine"),
        pytest.param("unix:///run/redis.sock", True, id="none on a socket"),
        pytest.param("redis://redis.internal:6379/0", False, id="none on another machine"),
        pytest.param("postgresql://app:postgres@db/x", False, id="a usual one"),
        pytest.param("postgresql://app:Password@localhost/x", False, id="a usual one in other case, here"),
        pytest.param("postgresql://metering:metering@db/x", False, id="the user's name"),
        pytest.param("postgresql://app:k3%40Vw9zQ@db/x", True, id="a random one"),
    ],
)
def test_password(url: str, fine: bool) -> None:
    assert (password_fault(url) is None) == fine
