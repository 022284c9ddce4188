"""Where alerts may go: https to public addresses, whatever the URL looks like and the name resolves to."""

from __future__ import annotations

import asyncio

import pytest

from gateway.destinations import check, is_public, public_address, read_url
from models.errors import InvalidRequest

PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
PRIVATE = [
    *("127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    "0.0.0.0",  # noqa: S104  # nobody listens
    *("169.254.169.254", "192.0.0.1", "192.0.2.1", "198.18.0.1", "192.88.99.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fc00::1", "fd00:ec2::254"),
    *("fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "no address", ""),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_not_public(address: str) -> None:
    assert not is_public(address)


REFUSED = {
    "no TLS": "http://example.com/",
    "another scheme": "file:///etc/passwd",
    "a scheme in capitals, as a proxy might read it": "HTTPS://example.com/",
    "no scheme": "//example.com/",
    "a user": "https://user@example.com/",
    "a password": "https://user:password@example.com/",
    "another host before the at sign": "https://example.com:443@127.0.0.1/",
    "a fragment": "https://example.com/#x",
    "a backslash": "https://example.com\\@127.0.0.1/",
    "a blank": "https://example.com /",
    "a line break": "https://example.com/\r\nhost: 127.0.0.1",
    "NUL": "https://example.com/\0",
    "full-width digits": "https://１２７.０.０.１/",
    "enclosed letters": "https://ⓔxample.com/",
    "a full stop of another script": "https://127。0。0。1/",
    "letters that look alike": "https://exаmple.com/",
    "no host": "https:///alerts",
    "a port beyond the last": "https://example.com:99999/",
    "port zero": "https://example.com:0/",
    "percent signs in the host": "https://127.0.0.1%2f.example.com/",
    "longer than a URL is": "https://example.com/" + "x" * 1_000,
}


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
def test_urls_that_are_refused_unseen(url: str) -> None:
    with pytest.raises(InvalidRequest, match="plain https URL"):
        read_url(url)


@pytest.mark.parametrize(
    "url", ["https://example.com", "https://a.example.com:8443/x?key=a%20b", "https://[2606:4700::1111]/"]
)
def test_urls_that_are_read(url: str) -> None:
    assert str(read_url(url)) == url


HIDDEN = {
    "loopback": "https://127.0.0.1/",
    "a name of this machine": "https://localhost/",
    "the same with a dot": "https://localhost./",
    "one number": "https://2130706433/",
    "octal": "https://0177.0.0.1/",
    "hexadecimal": "https://0x7f.0.0.1/",
    "short": "https://127.1/",
    "IPv6": "https://[::1]/",
    "IPv4 in IPv6": "https://[::ffff:169.254.169.254]/",
    "cloud metadata": "https://169.254.169.254/latest/meta-data",
}


@pytest.mark.parametrize("url", HIDDEN.values(), ids=HIDDEN)
def test_this_machine_is_no_destination_however_it_is_written(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"public addresses only|no address|plain https URL"):
        asyncio.run(check(url))


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        pytest.param(["93.184.215.14"], "93.184.215.14", id="a public one"),
        pytest.param(["93.184.215.14", "10.0.0.1"], None, id="a public one and a private one"),
        pytest.param([], None, id="none"),
    ],
)
def test_every_address_of_a_name_counts(addresses: list[str], expected: str | None) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("example.com", 8443)
        return addresses

    async def ask() -> str:
        return await public_address(read_url("https://example.com:8443/"), resolve)

    if expected is None:
        with pytest.raises(InvalidRequest, match="address"):
            asyncio.run(ask())
    else:
        assert asyncio.run(ask()) == expected
