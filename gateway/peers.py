"""Who is at the other end: the address that a call comes from, and whether a key may be used from there. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

from models.account import KeyScope, Network
from models.errors import NotPermitted

Address: TypeAlias = IPv4Address | IPv6Address
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def check_scope(
    scope: KeyScope, path: str, peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]
) -> None:
    """Raise `NotPermitted` unless a key of this scope may call this metered path from this peer."""
    check_endpoint(scope, path)
    check_network(scope, peer, headers, trusted)


def check_endpoint(scope: KeyScope, path: str) -> None:
    """Raise `NotPermitted` unless a key of this scope may call this metered path."""
    if scope.endpoints is not None and path not in scope.endpoints:
        raise _not_for(path)


def check_counting(scope: KeyScope, path: str, counted: Collection[str]) -> None:
    """Raise `NotPermitted` unless a key of this scope may call one of the metered paths that are counted at `path`."""
    if scope.endpoints is not None and scope.endpoints.isdisjoint(counted):
        raise _not_for(path)


def check_kept(scope: KeyScope, path: str) -> None:
    """Raise `NotPermitted` unless a key of this scope may see what is kept of calls of this metered path.

    One that only reads may see everything.
    """
    if scope.endpoints and path not in scope.endpoints:
        raise _not_for(path)


def check_method(scope: KeyScope, method: str) -> None:
    """Raise `NotPermitted` for a change that is asked for with a key that may only read."""
    if scope.endpoints is not None and not scope.endpoints and method not in _READING:
        raise NotPermitted("This key may only read. Ask the owner of the organization for a key that may do more.")


def check_network(
    scope: KeyScope, peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]
) -> None:
    """Raise `NotPermitted` unless a key of this scope may be used from this peer."""
    if scope.networks is None:
        return
    address = client_address(peer, headers, trusted)
    if address is None or not any(address in network for network in scope.networks):
        raise NotPermitted("This key may not be used from this address. Ask the owner of the organization.")


def client_address(peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[Network]) -> Address | None:
    """The address of the client: the socket's, or what a trusted proxy says of it in X-Forwarded-For.

    That header is read from its end, since each proxy adds the address that it saw: the first that is no trusted proxy
    is the client, and what stands before it is anybody's claim. None where the address is not known.
    """
    address = _address(peer)
    if address is None or not _is_in(address, trusted):
        return address
    named = [text for name, value in headers if name.lower() == b"x-forwarded-for" for text in value.split(b",")]
    for text in reversed(named):
        address = _address(text.decode("latin-1").strip())
        if address is None or not _is_in(address, trusted):
            return address
    return address


def _not_for(path: str) -> NotPermitted:
    return NotPermitted(f"This key may not call {path}. Ask the owner of the organization.")


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    """An address as sockets and proxies write it: also with a port, in brackets, or IPv4 within IPv6."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
