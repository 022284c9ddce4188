"""What the readers of sound files have in common. Pure."""

from __future__ import annotations

from typing import Final

MAX_FRAMES: Final = 400_000
"""Frames, packets and boxes that are looked at in one file: five hours of the smallest that are in use."""

_SILK, _HYBRID, _CELT = (480, 960, 1_920, 2_880), (480, 960), (120, 240, 480, 960)


class Unreadable(Exception):
    """The file is not what it seems, or nothing that is counted here."""


def opus_samples(packet: bytes) -> int:
    """Samples of an Opus packet at 48 kHz, by its first two bytes (RFC 6716, section 3.1)."""
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    size = _SILK[config & 3] if config < 12 else _HYBRID[config & 1] if config < 16 else _CELT[config & 3]
    frames = (1, 2, 2)[code] if code < 3 else packet[1] & 63 if len(packet) > 1 else 0
    return size * frames
