"""Sound files that hold packets of a codec in a container: Ogg, MP4, WebM. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from gateway.api.frames import MAX_FRAMES, Unreadable, opus_samples

# Ogg (RFC 3533) ------------------------------------------------------------------------------------------------------

_VORBIS_LIE: Final = 8
"""Blocks of Vorbis have two sizes, at most this far apart in what encoders make."""


def ogg_seconds(content: bytes) -> Fraction:
    """Opus by its packets; Vorbis by the position of its last page, where its packets can be as few."""
    packets, granule = _ogg_packets(content)
    first = packets[0]
    if first.startswith(b"OpusHead"):
        skipped = int.from_bytes(first[10:12], "little")
        # The second packet holds titles.
        return Fraction(max(0, sum(map(opus_samples, packets[2:])) - skipped), 48_000)
    if first.startswith(b"\x01vorbis"):
        rate = int.from_bytes(first[12:16], "little")
        most = max(0, len(packets) - 3) << (first[28] >> 4) >> 1
        return Fraction(granule if granule * _VORBIS_LIE >= most else most, rate)
    raise Unreadable


def _ogg_packets(content: bytes) -> tuple[list[bytes], int]:
    """The beginnings of all packets, and the greatest position. One stream: a second one would be another sound."""
    packets: list[bytes] = []
    place = greatest = 0
    is_begun = False
    serial: bytes | None = None
    while place < len(content):
        if content[place : place + 4] != b"OggS":
            raise Unreadable
        (granule,) = struct.unpack_from("<q", content, place + 6)
        if serial is None:
            serial = content[place + 14 : place + 18]
        elif serial != content[place + 14 : place + 18]:
            raise Unreadable
        greatest = max(greatest, granule)
        sizes = content[place + 27 : place + 27 + content[place + 26]]
        place += 27 + len(sizes)
        for size in sizes:
            if not is_begun:
                packets.append(content[place : place + min(size, 64)])
                if len(packets) > MAX_FRAMES:
                    raise Unreadable
            is_begun = size == 255
            place += size
    return packets, greatest


# MP4 (ISO 14496-12) --------------------------------------------------------------------------------------------------

_AAC_FRAME: Final = 1_024
_ALAC_FRAME: Final = 4_096
_AAC_RATES: Final = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)
_MAX_TABLE: Final = 1_000_000


def mp4_seconds(content: bytes) -> Fraction:
    """The longest track of sound: by the times of its samples, or by their number where these say less."""
    (moov,) = _boxes(content, 0, len(content), b"moov")
    tracks = [_track_seconds(content, *track) for track in _boxes(content, *moov, b"trak")]
    found = [seconds for seconds in tracks if seconds is not None]
    if not found:
        raise Unreadable
    return max(found)


def _boxes(content: bytes, start: int, end: int, *names: bytes) -> list[tuple[int, int]]:
    """Where the insides of the boxes of a path are."""
    found = []
    for name, inside, after in _all_boxes(content, start, end):
        if name == names[0]:
            found += _boxes(content, inside, after, *names[1:]) if len(names) > 1 else [(inside, after)]
    return found


def _all_boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    looked_at = 0
    while start + 8 <= end:
        looked_at += 1
        size, name = struct.unpack_from(">I4s", content, start)
        inside = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", content, inside)
            inside += 8
        elif size == 0:
            size = end - start
        if size < inside - start or looked_at > MAX_FRAMES:
            raise Unreadable
        yield name, inside, min(start + size, end)
        start += size


def _track_seconds(content: bytes, start: int, end: int) -> Fraction | None:
    ((mdia, mdia_end),) = _boxes(content, start, end, b"mdia")
    ((hdlr, _),) = _boxes(content, mdia, mdia_end, b"hdlr")
    if content[hdlr + 8 : hdlr + 12] != b"soun":
        return None
    ((mdhd, _),) = _boxes(content, mdia, mdia_end, b"mdhd")
    (timescale,) = struct.unpack_from(">I", content, mdhd + (20 if content[mdhd] == 1 else 12))
    ((stbl, stbl_end),) = _boxes(content, mdia, mdia_end, b"minf", b"stbl")
    ((stts, stts_end),) = _boxes(content, stbl, stbl_end, b"stts")
    ((stsz, _),) = _boxes(content, stbl, stbl_end, b"stsz")
    ((stsd, stsd_end),) = _boxes(content, stbl, stbl_end, b"stsd")
    (entries,) = struct.unpack_from(">I", content, stts + 4)
    (samples,) = struct.unpack_from(">I", content, stsz + 8)
    if not samples or entries > _MAX_TABLE or stts + 8 + entries * 8 > stts_end:
        # Without samples it is in fragments.
        raise Unreadable
    times = struct.unpack_from(f">{entries * 2}I", content, stts + 8)
    lasts = sum(count * delta for count, delta in zip(times[::2], times[1::2], strict=True))
    name, entry, entry_end = next(_all_boxes(content, stsd + 8, stsd_end))
    (rate,) = struct.unpack_from(">H", content, entry + 24)
    if name == b"mp4a":
        told = _aac_rate(content[entry:entry_end])
        at_least = Fraction(samples * _AAC_FRAME, min(rate or told, told))
    elif name == b"alac":
        at_least = Fraction((samples - 1) * _ALAC_FRAME, rate)
    else:
        raise Unreadable
    return max(Fraction(lasts, timescale), at_least)


def _aac_rate(entry: bytes) -> int:
    """The rate in the configuration of the decoder, which decoders believe (ISO 14496-1, 14496-3)."""
    place = entry.index(b"esds") + 8 if b"esds" in entry else len(entry)
    while place < len(entry):
        tag = entry[place]
        place += 1
        while entry[place] & 0x80:
            place += 1
        place += 1
        match tag:
            case 3:
                place += 3
            case 4:
                place += 13
            case 5:
                bits = int.from_bytes(entry[place : place + 5], "big")
                if bits >> 35 == 31:
                    raise Unreadable
                index = bits >> 31 & 15
                return bits >> 7 & 0xFFFFFF if index == 15 else _AAC_RATES[index]
            case _:
                break
    raise Unreadable


# WebM (RFC 8794, RFC 9559) -------------------------------------------------------------------------------------------

_SEGMENT, _TRACKS, _TRACK, _CLUSTER, _GROUP = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675, 0xA0
_OPENED: Final = frozenset({_SEGMENT, _TRACKS, _TRACK, _CLUSTER, _GROUP})
_NUMBER, _CODEC = 0xD7, 0x86
_BLOCKS: Final = frozenset({0xA3, 0xA1})
_LACED: Final = 0x06


def webm_seconds(content: bytes) -> Fraction:
    """Opus by its packets."""
    number = track = None
    samples = 0
    for name, inside, end in _elements(content):
        if name == _TRACK:
            number = None
        elif name == _NUMBER:
            number = int.from_bytes(content[inside:end], "big")
        elif name == _CODEC and content[inside:end].startswith(b"A_"):
            if content[inside:end].rstrip(b"\0") != b"A_OPUS" or track is not None:
                raise Unreadable
            track = number
        elif name in _BLOCKS:
            block_track, place = _number(content, inside, 8)
            if block_track == track:
                if content[place + 2] & _LACED:
                    raise Unreadable
                samples += opus_samples(content[place + 3 : min(end, place + 5)])
    if track is None:
        raise Unreadable
    return Fraction(samples, 48_000)


def _elements(content: bytes) -> Iterator[tuple[int, int, int]]:
    """All elements; what holds others is opened and not stepped over, since its size may be unknown."""
    place = looked_at = 0
    while place < len(content):
        looked_at += 1
        if looked_at > MAX_FRAMES:
            raise Unreadable
        name, place = _number(content, place, 4, keeps_mark=True)
        size, place = _number(content, place, 8)
        yield name, place, place + size
        if name not in _OPENED:
            place += size


def _number(content: bytes, place: int, longest: int, *, keeps_mark: bool = False) -> tuple[int, int]:
    first = content[place]
    width = 9 - first.bit_length()
    if width > longest:
        raise Unreadable
    value = int.from_bytes(content[place : place + width], "big")
    return value if keeps_mark else value & (1 << 7 * width) - 1, place + width
