"""Sound files made on the spot, of a known length."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from gateway.api.sounds import _CRC8


def wav(seconds: float, *, rate: int = 16_000, told: int | None = None) -> bytes:
    """Silence in PCM; `told` is the size that the header says instead of the true one."""
    data = b"\0\0" * int(seconds * rate)
    size = len(data) if told is None else told
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        (36 + size) % 2**32,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        rate,
        rate * 2,
        2,
        16,
        b"data",
        size,
    )
    return head + data


def flac(frames: int, *, rate: int = 16_000, told: int | None = None, filler: int = 20) -> bytes:
    """Frames of 4,096 samples, with heads that are right and nothing in them."""
    samples = frames * 4_096 if told is None else told
    info = struct.pack(">HH", 4_096, 4_096) + bytes(6) + (rate << 44 | 0 << 41 | 15 << 36 | samples).to_bytes(8, "big")
    pieces = [b"fLaC\x80\x00\x00\x22" + info + bytes(16)]
    for number in range(frames):
        head = b"\xff\xf8\xc0\x08" + chr(number).encode()
        crc = 0
        for byte in head:
            crc = _CRC8[crc ^ byte]
        pieces.append(head + bytes([crc]) + bytes(filler))
    return b"".join(pieces)


def mp3(frames: int, *, tags: bytes = b"") -> bytes:
    """Frames of 1,152 samples at 44.1 kHz and 128 kbit/s."""
    return tags + (b"\xff\xfb\x90\x00" + bytes(413)) * frames


def _page(packets: Iterable[bytes], granule: int, serial: int = 1) -> bytes:
    lacing, data = b"", b""
    for packet in packets:
        lacing += b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
        data += packet
    return struct.pack("<4sBBqIII", b"OggS", 0, 0, granule, serial, 0, 0) + bytes([len(lacing)]) + lacing + data


def opus(packets: int, *, granule: int = 0) -> bytes:
    """Packets of 20 ms."""
    head = b"OpusHead\x01\x01" + struct.pack("<HIhB", 312, 48_000, 0, 0)
    pages = [_page([head], 0), _page([b"OpusTags" + bytes(8)], 0)]
    for _ in range(packets // 50):
        pages.append(_page([b"\x08" + bytes(9)] * 50, granule))
    return b"".join(pages)


def vorbis(packets: int, granule: int) -> bytes:
    """Blocks of at most 2,048 samples at 44.1 kHz."""
    head = b"\x01vorbis" + struct.pack("<IBIIIIBB", 0, 1, 44_100, 0, 0, 0, 0xB8, 1)
    pages = [_page([head], 0), _page([b"\x03vorbis", b"\x05vorbis"], 0)]
    for _ in range(packets // 50):
        pages.append(_page([bytes(10)] * 50, granule))
    return b"".join(pages)


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def m4a(samples: int, *, rate: int = 44_100, delta: int = 1_024, told_rate: int | None = None) -> bytes:
    """AAC samples; `delta` is how long each is said to last, `told_rate` what the entry says beside the decoder."""
    rates = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
    config = (2 << 11 | rates.index(rate) << 7 | 1 << 3).to_bytes(2, "big")
    decoder = b"\x04" + bytes([15 + len(config)]) + b"\x40\x15" + bytes(11) + b"\x05" + bytes([len(config)]) + config
    esds = _box(b"esds", bytes(4) + b"\x03" + bytes([3 + len(decoder)]) + bytes(3) + decoder)
    entry = bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHIHH", 1, 16, 0, told_rate or rate, 0) + esds
    stbl = (
        _box(b"stsd", struct.pack(">II", 0, 1) + _box(b"mp4a", entry))
        + _box(b"stts", struct.pack(">IIII", 0, 1, samples, delta))
        + _box(b"stsz", struct.pack(">III", 0, 100, samples))
    )
    mdia = (
        _box(b"mdhd", bytes(12) + struct.pack(">II", rate, samples * delta) + bytes(4))
        + _box(b"hdlr", bytes(8) + b"soun" + bytes(13))
        + _box(b"minf", _box(b"stbl", stbl))
    )
    return _box(b"ftyp", b"M4A \0\0\0\0") + _box(b"mdat", bytes(64)) + _box(b"moov", _box(b"trak", _box(b"mdia", mdia)))


def webm(blocks: int) -> bytes:
    """Opus packets of 20 ms in clusters of unknown size, as browsers record them."""
    unknown = b"\x01" + b"\xff" * 7
    track = b"\xd7\x81\x01" + b"\x86\x86A_OPUS"
    tracks = b"\x16\x54\xae\x6b" + bytes([0x80 + len(track) + 2]) + b"\xae" + bytes([0x80 + len(track)]) + track
    block = b"\xa3" + bytes([0x80 + 14]) + b"\x81\0\0\x80" + b"\x08" + bytes(9)
    cluster = b"\x1f\x43\xb6\x75" + unknown + b"\xe7\x81\x00" + block * blocks
    return b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67" + unknown + tracks + cluster
