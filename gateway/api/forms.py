"""Bodies of type multipart/form-data (RFC 7578), read strictly and in linear time. Pure.

Ours, since the body is in memory and bounded before: parsers of streams, and those of mail, take more than is needed
here, and have been slow on purpose-made bodies (GHSA-59g5-xgcq-4qw3, CVE-2024-8984).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from models.errors import InvalidRequest

MAX_PARTS: Final = 64
MAX_PART_HEAD_BYTES: Final = 1_024
LONGEST_BOUNDARY: Final = 70
"""RFC 2046, 5.1.1."""

FORM: Final = b"multipart/form-data"
_BOUNDARY: Final = re.compile(rb";[ \t]*boundary=(?:\"([^\"\r\n]{1,70})\"|([^\s;\"]{1,70}))[ \t]*(?:;|$)", re.I)
_LONGEST_NAME: Final = 64
_FILE: Final = frozenset({b"filename", b"filename*"})
_OPTION: Final = re.compile(rb";[ \t]*([\w*-]+)=(?:\"((?:[^\"\\\r\n]|\\.)*)\"|([^\s;\"]+))")
"""A quoted value may hold what looks like another option. .NET sends names that need no quotes without them."""


class Part(NamedTuple):
    """A field of a form; `is_file` says that it came with a file name, which nobody here needs to know."""

    name: str
    content: bytes
    is_file: bool


def boundary_of(content_type: bytes) -> bytes:
    """The boundary that a content type names; raises `InvalidRequest` (415) where it is no form, or names none."""
    kind, _, _ = content_type.partition(b";")
    if kind.strip().lower() != FORM:
        raise InvalidRequest("Send the file and its parameters as content-type multipart/form-data.", status=415)
    # Bounded before it is looked at: nothing honest is longer.
    found = _BOUNDARY.search(content_type) if len(content_type) <= 256 else None
    if found is None:
        raise InvalidRequest(
            f"The content-type must name a boundary of at most {LONGEST_BOUNDARY} characters.", status=415
        )
    return found[1] or found[2]


def parts_in(content_type: bytes, body: bytes) -> list[Part]:
    """The fields of a form in their order."""
    delimiter = b"--" + boundary_of(content_type)
    if not body.startswith(delimiter + b"\r\n"):
        raise _broken("it does not begin with its boundary")
    parts: list[Part] = []
    start = len(delimiter) + 2
    while True:
        end = body.find(b"\r\n" + delimiter, start - 2)
        if end < 0:
            raise _broken("it does not end with its boundary")
        if len(parts) == MAX_PARTS:
            raise InvalidRequest(f"A form may have at most {MAX_PARTS} fields.")
        parts.append(_part(body, start, end))
        after = end + 2 + len(delimiter)
        closing = body[after : after + 2]
        if closing == b"--":
            return parts
        if closing != b"\r\n":
            raise _broken("a boundary is followed by something else")
        start = after + 2


def _part(body: bytes, start: int, end: int) -> Part:
    split = body.find(b"\r\n\r\n", start, min(end, start + MAX_PART_HEAD_BYTES))
    if split < 0:
        raise _broken("a field has no head, or one that is too long")
    disposition = b""
    for line in body[start:split].split(b"\r\n"):
        header, _, value = line.partition(b":")
        match header.strip().lower():
            case b"content-disposition":
                if disposition:
                    raise _broken("a field has two names")
                disposition = value.strip()
            case b"content-transfer-encoding":
                if value.strip().lower() not in (b"binary", b"8bit", b"7bit"):
                    raise _broken("a field is encoded; send it as it is")
    options: dict[bytes, bytes] = {}
    for option, quoted, plain in _OPTION.findall(disposition):
        options.setdefault(option.lower(), quoted or plain)
    own = options.get(b"name", b"")
    if not disposition.lower().startswith(b"form-data") or not 0 < len(own) <= _LONGEST_NAME:
        raise _broken("a field has no name")
    try:
        name = own.decode()
    except UnicodeDecodeError:
        raise _broken("the name of a field is not UTF-8") from None
    return Part(name, body[split + 4 : end], not options.keys().isdisjoint(_FILE))


def _broken(what: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid multipart/form-data: {what}.")
