"""How long a sound is, by what is in its file rather than by what the file says of itself. Pure.

What is read here decides what a call costs where the backend does not tell it, and bounds it where it does. Libraries
that read tags (tinytag, mutagen) believe the header: a header that says one second would buy an hour. So frames and
packets are counted, as a decoder would count them. What cannot be counted is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from gateway.api.containers import mp4_seconds, ogg_seconds, webm_seconds
from gateway.api.frames import MAX_FRAMES, Unreadable
from models.errors import InvalidRequest

MAX_SECONDS: Final = 8 * 3_600
KINDS: Final = "wav, flac, mp3, ogg (Opus or Vorbis), m4a, webm (Opus)"

_BROKEN: Final = (Unreadable, ArithmeticError, LookupError, ValueError, StopIteration, struct.error)
_SLACK_BYTES: Final = 64 * 1024
"""What a WAV file may have after its samples: titles and the like."""
_PCM: Final = frozenset({1, 3, 6, 7})
"""Format tags whose samples have one size: integers, floats, A-law, µ-law."""
_EXTENSIBLE: Final = 0xFFFE


def measure(content: bytes) -> tuple[str, int]:
    """What kind of file it is, and its length in seconds, begun ones as whole; raises `InvalidRequest`.

    Takes up to a second for a large file of tiny frames: not for the event loop.
    """
    for kind, is_kind, seconds_of in _READERS:
        if is_kind(content):
            try:
                seconds = seconds_of(content)
            except _BROKEN:
                raise InvalidRequest(
                    f"The file begins as {kind} but its sound cannot be measured. Send {KINDS}.", param="file"
                ) from None
            if seconds > MAX_SECONDS:
                raise InvalidRequest(
                    f"The sound is longer than {MAX_SECONDS // 3_600} hours; send it in parts.", param="file"
                )
            # A sound of no length is one second: a backend is busy with it all the same.
            return kind, max(1, -(-seconds.numerator // seconds.denominator))
    raise InvalidRequest(f"The file is no sound that is known here. Send {KINDS}.", param="file")


# WAV -----------------------------------------------------------------------------------------------------------------


def _wav_seconds(content: bytes) -> Fraction:
    place, bytes_per_second = 12, 0
    while True:
        name, size = struct.unpack_from("<4sI", content, place)
        place += 8
        if name == b"fmt ":
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", content, place)
            if tag == _EXTENSIBLE:
                (tag,) = struct.unpack_from("<H", content, place + 24)
            if tag not in _PCM or bits % 8:
                raise Unreadable
            # Not the number of bytes a second that is said beside it: no decoder goes by that.
            bytes_per_second = rate * channels * bits // 8
        elif name == b"data":
            rest = len(content) - place
            # Programs that write while they record leave a size of nothing, or of everything.
            length = size if size and 0 <= rest - size <= _SLACK_BYTES else rest
            return Fraction(length, bytes_per_second)
        place += size + size % 2


# FLAC ----------------------------------------------------------------------------------------------------------------

_FLAC_SYNC: Final = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_BLOCKS: Final = {1: 192, **{2 + n: 576 << n for n in range(4)}, **{8 + n: 256 << n for n in range(8)}}
_LARGEST_FLAC_BLOCK: Final = 65_536
_BYTES_A_LOOKALIKE: Final = 5_000_000


def _crc8_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte << 1) ^ (0x107 if byte & 0x80 else 0)
        table.append(byte)
    return tuple(table)


_CRC8: Final = _crc8_table()


def _flac_seconds(content: bytes) -> Fraction:
    info = int.from_bytes(content[18:26], "big")
    rate, told = info >> 44, info & (1 << 36) - 1
    samples = 0
    for number, found in enumerate(_FLAC_SYNC.finditer(content, 42)):
        if number == MAX_FRAMES:
            raise Unreadable
        samples += _flac_block(content, found.start())
    # Bytes inside a frame may look like another frame, once in some megabytes.
    slack = _LARGEST_FLAC_BLOCK * len(content) // _BYTES_A_LOOKALIKE + samples // 100
    is_told_true = told and abs(samples - told) <= slack
    return Fraction(told if is_told_true else samples, rate)


def _flac_block(content: bytes, start: int) -> int:
    """Samples of the frame that begins here; 0 where none does, by the checksum of its head."""
    head = content[start : start + 16]
    if len(head) < 6 or head[3] & 1:
        return 0
    number, place = head[4], 5
    while number & 0x80 and number & 0x40:
        number = number << 1 & 0xFF
        place += 1
    block, rate = head[2] >> 4, head[2] & 15
    samples = _FLAC_BLOCKS.get(block, 0)
    if block in (6, 7):
        width = block - 5
        samples = int.from_bytes(head[place : place + width], "big") + 1
        place += width
    place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if place >= len(head):
        return 0
    crc = 0
    for byte in head[:place]:
        crc = _CRC8[crc ^ byte]
    return samples if crc == head[place] else 0


# MP3 -----------------------------------------------------------------------------------------------------------------

_BITRATES: Final = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s by version (2: also 2.5) and layer; layer 3 of version 2 is as its layer 2."""
_RATES: Final = (44_100, 48_000, 32_000)


def _mp3_frame(content: bytes, place: int) -> tuple[int, int, int] | None:
    """Bytes, samples and samples a second of the frame that begins here; None where none does."""
    if place + 4 > len(content) or content[place] != 0xFF or content[place + 1] & 0xE0 != 0xE0:
        return None
    second, third = content[place + 1], content[place + 2]
    version_code, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate_code, rate_code = third >> 4, third >> 2 & 3
    if version_code == 1 or layer == 4 or bitrate_code in (0, 15) or rate_code == 3:
        return None
    version = 1 if version_code == 3 else 2
    bitrate = _BITRATES[version, min(layer, 2) if version == 2 else layer][bitrate_code] * 1_000
    rate = _RATES[rate_code] >> {3: 0, 2: 1, 0: 2}[version_code]
    if layer == 1:
        return (12 * bitrate // rate + (third >> 1 & 1)) * 4, 384, rate
    samples = 576 if layer == 3 and version == 2 else 1_152
    return samples // 8 * bitrate // rate + (third >> 1 & 1), samples, rate


def _mp3_seconds(content: bytes) -> Fraction:
    place = 0
    if content.startswith(b"ID3"):
        size = content[6] << 21 | content[7] << 14 | content[8] << 7 | content[9]
        place = 10 + size
    samples: dict[int, int] = {}
    looked_at = 0
    is_first = True
    while 0 <= place < len(content):
        looked_at += 1
        if looked_at > MAX_FRAMES:
            raise Unreadable
        frame = _mp3_frame(content, place)
        if frame is None:
            place = content.find(b"\xff", place + 1)
            continue
        length, count, rate = frame
        # The first frame of a file often holds notes on the others, and no sound. Later ones are heard.
        if not is_first or not any(mark in content[place : place + 64] for mark in (b"Xing", b"Info", b"VBRI")):
            samples[rate] = samples.get(rate, 0) + count
        is_first = False
        place += length
    if not samples:
        raise Unreadable
    return sum((Fraction(count, rate) for rate, count in samples.items()), Fraction(0))


def _is_mp3(content: bytes) -> bool:
    if content.startswith(b"ID3"):
        return len(content) > 10
    frame = _mp3_frame(content, 0)
    return frame is not None and (frame[0] >= len(content) or _mp3_frame(content, frame[0]) is not None)


_READERS: Final[tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], Fraction]], ...]] = (
    ("wav", lambda content: content[:4] == b"RIFF" and content[8:12] == b"WAVE", _wav_seconds),
    ("flac", lambda content: content[:4] == b"fLaC", _flac_seconds),
    ("ogg", lambda content: content[:4] == b"OggS", ogg_seconds),
    ("m4a", lambda content: content[4:8] == b"ftyp", mp4_seconds),
    ("webm", lambda content: content[:4] == b"\x1a\x45\xdf\xa3", webm_seconds),
    ("mp3", _is_mp3, _mp3_seconds),
)
"""MP3 last: it has no mark of its own."""
