"""What backends may fetch: nothing, unless the operator names the host; and then from there alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.api.requests import parse
from gateway.settings import Settings
from models.call import Endpoint
from models.errors import InvalidRequest

HOSTS = frozenset({"img.example", "cdn.img.example"})


def asks(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]


BODIES: dict[Endpoint, tuple[Callable[[str], dict[str, Any]], str]] = {
    Endpoint.CHAT_COMPLETIONS: (
        lambda url: {"messages": asks({"type": "image_url", "image_url": {"url": url}})},
        "messages[0].content[1].image_url",
    ),
    Endpoint.RESPONSES: (
        lambda url: {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        "input[0].content[0].image_url",
    ),
    Endpoint.MESSAGES: (
        lambda url: {"max_tokens": 5, "messages": asks({"type": "image", "source": {"type": "url", "url": url}})},
        "messages[0].content[1].source.url",
    ),
    Endpoint.MODERATIONS: (
        lambda url: {"input": [{"type": "image_url", "image_url": {"url": url}}]},
        "input[0].image_url",
    ),
}


def sent(endpoint: Endpoint, url: str, hosts: frozenset[str] = HOSTS) -> str:
    """The address as it goes upstream."""
    body = {"model": "m", **BODIES[endpoint][0](url)}
    request = parse(endpoint, json.dumps(body).encode(), hosts)
    assert request.input_bound is None, "a picture costs what is not to be seen from its bytes"
    parts = request.body["input"] if endpoint is Endpoint.MODERATIONS else request.body["messages"][0]["content"]
    return str(parts[-1]["image_url"]["url"])


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize(
    "url",
    [
        "https://img.example/a.png",
        "https://img.example",
        "https://img.example:443/a?b=c#d",
        "https://cdn.img.example/a",
    ],
)
def test_from_hosts_that_the_operator_names(endpoint: Endpoint, url: str) -> None:
    assert sent(endpoint, url) == url


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize(
    "url",
    [
        "http://img.example/a.png", "https://other.example/a", "https://img.example.evil.example/a",
        "https://evil-img.example/", "https://img.example@evil.example/", "https://evil.example#@img.example/",
        "https://evil.example\\@img.example/", "https://img.example:8443/a", "https://img.example:443@evil.example/",
        "https://img.example\n.evil.example/", "https://img.example/a b", "https://img.example/\u00e9",
        "https://IMG.example/a", "HTTPS://img.example/a", " https://img.example/a", "https:img.example/a",
        "https://169.254.169.254/", "https://[::1]/", "//img.example/a", "file://img.example/a", "https://", "",
        "https://img.example/" + "a" * 3_000,
    ],
)  # fmt: skip
def test_and_from_nowhere_else(endpoint: Endpoint, url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sent(endpoint, url)
    assert caught.value.param == BODIES[endpoint][1]


@pytest.mark.parametrize("endpoint", BODIES)
def test_without_hosts_nothing_is_fetched(endpoint: Endpoint) -> None:
    with pytest.raises(InvalidRequest):
        sent(endpoint, "https://img.example/a.png", frozenset())


@pytest.mark.parametrize(
    "host",
    ["*", "*.example", "https://img.example", "img.example:443", "IMG.example", "169.254.169.254", "localhost", ""],
)
def test_what_is_no_host_is_no_setting(host: str) -> None:
    with pytest.raises(ValidationError, match="not a host name"):
        Settings.model_validate({"database_url": "x", "redis_url": "x", "key_pepper": "x" * 32, "media_hosts": [host]})
