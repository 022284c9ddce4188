"""Signatures of webhooks, made and checked: `t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">`, as Stripe has them.

Pure: the time is an argument. See https://docs.stripe.com/webhooks#verify-manually.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from models.errors import InvalidRequest

_PARAM: Final = "signature"
_LONGEST_HEADER: Final = 2_048
# Bytes and ASCII only: Python's int() would also take digits of other scripts, signs, blanks and underscores.
_TIME: Final = re.compile(rb"[0-9]{1,12}")
_DIGEST: Final = re.compile(rb"[0-9a-f]{64}")
_WRONG: Final = (
    "The signature of this webhook is missing or wrong. Check that the provider and Tollgate have the same secret, and"
    " that nothing between them changes the body."
)


def sign(secret: bytes, body: bytes, at_seconds: int) -> str:
    """The header that signs a body at a time."""
    stamp = b"%d" % at_seconds
    return f"t={stamp.decode()},v1={_digest(secret, stamp, body).decode()}"


def check_signature(header: bytes, body: bytes, secret: bytes, now_seconds: int, tolerance_seconds: int) -> None:
    """Return where the header signs this body with this secret, at a time within the tolerance of now.

    Any one of several `v1` will do: a provider signs with two secrets while one takes the place of the other. Raises
    `InvalidRequest`, and says that the time is wrong only to one who knows the secret.
    """
    assert secret, "an empty secret is anybody's"
    stamp, digests = _parsed(header)
    expected = _digest(secret, stamp, body)
    # All are compared, each in constant time.
    matches = [hmac.compare_digest(expected, digest) for digest in digests]
    if not any(matches):
        raise InvalidRequest(_WRONG, param=_PARAM)
    if abs(now_seconds - int(stamp)) > tolerance_seconds:
        raise InvalidRequest(
            f"This webhook was signed more than {tolerance_seconds} seconds from now. Set the clocks right, or have"
            " the provider send it again.",
            param=_PARAM,
        )


def _parsed(header: bytes) -> tuple[bytes, list[bytes]]:
    """The one time in a header and its `v1` digests; schemes that are not known are left out, as Stripe asks for."""
    stamps, digests = [], []
    for part in header.split(b",") if len(header) <= _LONGEST_HEADER else ():
        name, _, value = part.strip(b" ").partition(b"=")
        if name == b"t":
            stamps.append(value)
        elif name == b"v1" and _DIGEST.fullmatch(value):
            digests.append(value)
    if len(stamps) != 1 or not _TIME.fullmatch(stamps[0]):
        raise InvalidRequest(_WRONG, param=_PARAM)
    return stamps[0], digests


def _digest(secret: bytes, stamp: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, stamp + b"." + body, "sha256").hex().encode()
