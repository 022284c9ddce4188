"""Where alerts may be sent: to https URLs whose every address is public, looked up anew for each connection.

A name that resolved to a public address yesterday may resolve to a private one now, so whoever connects uses an
address that `public_address` has just answered, and not the name.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Final, TypeAlias

import httpx

from models.errors import InvalidRequest

LONGEST_URL: Final = 1_000

_URL: Final = re.compile(r"https://[!#-;=?-Z\[\]_a-z~]+", re.ASCII)
"""Printable ASCII without what parsers of URLs read differently: blanks, quotes, backslashes, braces."""

_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]+", re.ASCII)
_RESOLVE_SECONDS: Final = 5.0

_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_TUNNELS: Final = (IPv6Network("2001::/32"), IPv6Network("2002::/16"), IPv4Network("192.88.99.0/24"))
"""Teredo and 6to4: such addresses carry, or lead to, another one."""

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host, as text; raises `OSError` where there are none."""


def read_url(url: str) -> httpx.URL:
    """The URL in a text; raises `InvalidRequest` for one that is no plain https URL."""
    try:
        parsed = httpx.URL(url) if len(url) <= LONGEST_URL and _URL.fullmatch(url) else None
    except (httpx.InvalidURL, ValueError):
        parsed = None
    if (
        parsed is None
        or parsed.userinfo
        or parsed.fragment
        or not _HOST.fullmatch(parsed.host)
        or (parsed.port is not None and not 0 < parsed.port < 65_536)
    ):
        raise InvalidRequest(
            "The URL must be a plain https URL in ASCII, such as https://example.com/alerts, without user, password or"
            " fragment.",
            param="url",
        )
    return parsed


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as the system knows them."""
    async with asyncio.timeout(_RESOLVE_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def public_address(url: httpx.URL, resolve: Resolve) -> str:
    """An address of the URL's host to connect to; `InvalidRequest` where it has none, or one that is not public."""
    try:
        addresses = await resolve(url.host, url.port or 443)
    except (OSError, UnicodeError):
        addresses = []
    if not addresses:
        raise InvalidRequest("The URL's host has no address. Correct its name.", param="url")
    # One that is not public is enough to refuse them all: the next look-up might answer that one first.
    if not all(is_public(address) for address in addresses):
        raise InvalidRequest(
            "The URL's host has an address that is private, local or reserved. Alerts go to public addresses only.",
            param="url",
        )
    return addresses[0]


async def find_address(url: httpx.URL) -> str:
    """An address to connect to now, as `public_address` answers it by what the system knows."""
    return await public_address(url, resolve)


async def check(url: str) -> None:
    """Return where alerts may be sent to this URL now; raises `InvalidRequest`."""
    await find_address(read_url(url))


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, and of nobody's own network."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if any(parsed in network for network in _TUNNELS):
        return False
    if isinstance(parsed, IPv4Address):
        return parsed.is_global and not parsed.is_multicast
    # Of addresses that carry an IPv4 address that one counts; those with a zone belong to one link.
    carried = parsed.ipv4_mapped or (IPv4Address(parsed.packed[-4:]) if parsed in _NAT64 else None)
    if carried is not None:
        return is_public(str(carried))
    return parsed in _UNICAST and parsed.is_global and parsed.scope_id is None
