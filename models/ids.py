"""Identifiers: UUIDv7 everywhere, so that ids sort by time and a call's partition follows from its id alone."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def uuid7(now: datetime) -> UUID:
    """A new UUIDv7 (RFC 9562) whose time is `now`."""
    since = now - _EPOCH
    milliseconds = (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000
    random = int.from_bytes(os.urandom(10))
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return UUID(int=value)


def first_uuid7(moment: datetime) -> UUID:
    """The smallest UUID of a moment: the boundary of a monthly partition. Before 1970 it is the smallest of all."""
    return UUID(int=max(0, (moment - _EPOCH) // _MILLISECOND) << 80)


def uuid7_time(identifier: UUID) -> datetime:
    """The moment in a UUIDv7, in whole milliseconds."""
    return _EPOCH + (identifier.int >> 80) * _MILLISECOND


RESPONSE_PREFIX: Final = "resp_"
"""How the id of a response begins; the call that made it follows."""
