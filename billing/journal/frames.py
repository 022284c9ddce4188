"""The bytes of a segment: a header, then frames that prove themselves; zeros mean the end. Pure.

A frame is `marker, crc, length, kind, call id, payload`, little-endian. The checksum is `zlib.crc32`: it finds what
CRC32C finds at these lengths (every burst of 32 bits, all but one in 2³² of the rest), runs in C, and is in the
standard library, where CRC32C would be one more wheel to have on every platform. It begins with a salt from the
instance and the segment's number, so that bytes of another segment are never taken for this one's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID
from zlib import crc32

FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 64

_MAGIC: Final = b"\x89TGJ\r\n\x1a\n"
_HEADER: Final = struct.Struct("<8sHHIQ16s")
_MARKER: Final = b"\xff\xc0TG"
"""Where a reader that lost its place looks for the next frame. 0xFF and 0xC0 are in no UTF-8, so in no JSON."""
_START: Final = struct.Struct("<4sI")
_HEAD: Final = struct.Struct("<IB16s")
_CRC: Final = struct.Struct("<I")

FRAME_BYTES: Final = _START.size + _HEAD.size
"""What a frame adds to its payload."""


class Record(NamedTuple):
    """One entry of the journal; `kind` is 1 to 255 and says who can read the payload."""

    kind: int
    call_id: UUID
    payload: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no intact frame: `size` of them at `position`.

    `is_tail` where nothing intact follows: a last write that was cut off, and so was never acknowledged. Otherwise it
    is what a failing disk leaves, or pages of one such write that a power cut let reach the disk out of order.
    """

    position: int
    size: int
    is_tail: bool


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself; `version` may be one that this program cannot read."""

    version: int
    instance_id: UUID
    number: int


def salt_of(instance_id: UUID, number: int) -> int:
    """What the checksums of a segment begin with."""
    return crc32(instance_id.bytes + number.to_bytes(8, "little"))


def encode_header(instance_id: UUID, number: int, segment_bytes: int) -> bytes:
    """The first `HEADER_BYTES` of a segment."""
    header = _HEADER.pack(_MAGIC, FORMAT_VERSION, 0, segment_bytes, number, instance_id.bytes)
    return (header + _CRC.pack(crc32(header))).ljust(HEADER_BYTES, b"\0")


def decode_header(segment: bytes) -> Header | None:
    """The header of a segment; None where it is damaged or missing."""
    if len(segment) < HEADER_BYTES:
        return None
    if _CRC.unpack_from(segment, _HEADER.size)[0] != crc32(segment[: _HEADER.size]):
        return None
    magic, version, _, _, number, instance = _HEADER.unpack_from(segment)
    return Header(version, UUID(bytes=instance), number) if magic == _MAGIC else None


def frame(record: Record, salt: int) -> tuple[bytes, bytes, bytes]:
    """The three parts of a record's frame, to be written one after the other."""
    kind, call_id, payload = record
    head = _HEAD.pack(len(payload), kind, call_id.bytes)
    return _START.pack(_MARKER, crc32(payload, crc32(head, salt))), head, payload


def scan(segment: bytes, salt: int, position: int = HEADER_BYTES) -> Iterator[Record | Damage]:
    """All intact records from `position` on, in the order of writing, and what lies damaged between and after them.

    Zeros are looked behind too: a page that the disk lost reads as zeros.
    """
    while True:
        if record := _intact(segment, position, salt):
            yield record
            position += FRAME_BYTES + len(record.payload)
            continue
        found = _next_intact(segment, position, salt)
        if found is None:
            break
        yield Damage(position, found - position, is_tail=False)
        position = found
    rest = len(segment[position:].rstrip(b"\0"))
    if rest:
        yield Damage(position, rest, is_tail=True)


def _intact(segment: bytes, position: int, salt: int) -> Record | None:
    body = position + FRAME_BYTES
    if body > len(segment):
        return None
    marker, expected = _START.unpack_from(segment, position)
    length, kind, call = _HEAD.unpack_from(segment, position + _START.size)
    if marker != _MARKER or body + length > len(segment):
        return None
    if crc32(memoryview(segment)[position + _START.size : body + length], salt) != expected:
        return None
    return Record(kind, UUID(bytes=call), segment[body : body + length])


def _next_intact(segment: bytes, position: int, salt: int) -> int | None:
    while (position := segment.find(_MARKER, position + 1)) >= 0:
        if _intact(segment, position, salt):
            return position
    return None
