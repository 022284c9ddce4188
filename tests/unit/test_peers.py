"""Whose address counts: the socket's, and what trusted proxies say."""

from __future__ import annotations

from contextlib import nullcontext
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.peers import check_counting, check_method, check_network, check_scope, client_address
from models.account import KeyScope
from models.errors import NotPermitted

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
INSIDE = KeyScope(networks=(ip_network("192.168.0.0/16"), ip_network("2001:db8::/32")))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        pytest.param("192.168.0.1", [], "192.168.0.1", id="the socket's"),
        pytest.param("8.8.8.8", ["192.168.0.1"], "8.8.8.8", id="A12 an untrusted peer says anything"),
        pytest.param("10.0.0.1", ["192.168.0.1"], "192.168.0.1", id="a trusted proxy is believed"),
        pytest.param("10.0.0.1", ["1.1.1.1, 192.168.0.1"], "192.168.0.1", id="only what it saw itself"),
        pytest.param("10.0.0.1", ["192.168.0.1, 10.0.0.2"], "192.168.0.1", id="two proxies"),
        pytest.param("10.0.0.1", ["192.168.0.1", "10.0.0.2"], "192.168.0.1", id="two headers"),
        pytest.param("10.0.0.1", ["10.0.0.9"], "10.0.0.9", id="a client among the proxies"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="a proxy that says nothing"),
        pytest.param("10.0.0.1", [""], None, id="a proxy that says an empty thing"),
        pytest.param("10.0.0.1", ["192.168.0.1, unknown"], None, id="no address"),
        pytest.param("10.0.0.1", ["192.168.0.1:4711"], "192.168.0.1", id="with a port"),
        pytest.param("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1", id="IPv6 with a port"),
        pytest.param("::ffff:10.0.0.1", ["::ffff:192.168.0.1"], "192.168.0.1", id="IPv4 within IPv6"),
        pytest.param("fd00::1%eth0", ["2001:db8::1"], "2001:db8::1", id="with a zone"),
        pytest.param("", ["192.168.0.1"], None, id="a socket without an address"),
    ],
)
def test_client_address(peer: str, forwarded: list[str], client: str | None) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert client_address(peer, headers, TRUSTED) == (None if client is None else ip_address(client))


@given(st.ip_addresses(), st.lists(st.binary(max_size=60), max_size=4))
def test_nothing_is_believed_without_a_trusted_proxy(peer: object, values: list[bytes]) -> None:
    headers = [(b"X-Forwarded-For", value) for value in values]
    assert client_address(str(peer), headers, ()) == client_address(str(peer), [], ())


@given(st.ip_addresses(network="10.0.0.0/8"), st.text(alphabet="0123456789abcdef.:[]%, ", max_size=80))
def test_no_header_breaks_it(peer: object, value: str) -> None:
    with_header = client_address(str(peer), [(b"x-forwarded-for", value.encode())], TRUSTED)
    assert with_header is None or with_header.version in (4, 6)


def test_a_scope_is_checked_as_a_whole() -> None:
    scope = KeyScope(frozenset({"/v1/embeddings"}), INSIDE.networks)
    check_scope(scope, "/v1/embeddings", "2001:db8::7", [], ())
    with pytest.raises(NotPermitted, match="/v1/completions"):
        check_scope(scope, "/v1/completions", "192.168.0.1", [], ())
    with pytest.raises(NotPermitted, match="address"):
        check_scope(scope, "/v1/embeddings", "8.8.8.8", [], ())
    check_network(KeyScope(frozenset()), "8.8.8.8", [], ())


CHAT = frozenset({"/v1/chat/completions"})


@pytest.mark.parametrize(
    ("endpoints", "may_count", "may_change"),
    [
        pytest.param(None, True, True, id="a key for everything"),
        pytest.param(CHAT, True, True, id="a key for what is counted"),
        pytest.param(CHAT | {"/v1/audio/translations"}, True, True, id="a key for more"),
        pytest.param(frozenset({"/v1/embeddings"}), False, True, id="a key for something else"),
        pytest.param(frozenset[str](), False, False, id="a key that only reads"),
    ],
)
def test_what_else_a_scope_is_for(endpoints: frozenset[str] | None, may_count: bool, may_change: bool) -> None:
    scope = KeyScope(endpoints)
    with nullcontext() if may_count else pytest.raises(NotPermitted, match="/v1/tokenize"):
        check_counting(scope, "/v1/tokenize", CHAT | {"/v1/messages"})
    with nullcontext() if may_change else pytest.raises(NotPermitted, match="only read"):
        check_method(scope, "DELETE")
    check_method(scope, "GET")
