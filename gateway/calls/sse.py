"""Server-sent events as bytes: cut a stream into events, whatever the split, without changing a byte of them."""

from __future__ import annotations

import re
from typing import TypeAlias

EVENT_LIMIT_BYTES = 4 * 1024 * 1024
DONE = b"[DONE]"

# A line ends with CRLF, LF or CR (WHATWG HTML, 9.2.6), and an empty line ends the event. The group is atomic, so that
# a CRLF is never taken for two line ends. U+2028 and U+0085 are text, unlike for str.splitlines().
_END = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")
_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """A backend sent an event above `EVENT_LIMIT_BYTES`, or no event end at all."""


Event: TypeAlias = tuple[bytes, bytes | None]
"""All the bytes of one event, with the empty line that ends it, and its data: None for a comment."""


class EventSplitter:
    """Feed it bytes as they come; it gives the events they complete."""

    __slots__ = ("_buffer", "_scanned", "_started")

    def __init__(self) -> None:
        self._buffer = b""
        self._scanned = 0
        self._started = False

    def feed(self, piece: bytes) -> list[Event]:
        """Events completed by `piece`; raises `EventTooLarge`."""
        buffer = self._buffer + piece if self._buffer else piece
        if not self._started:
            if len(buffer) < 3 and _BOM.startswith(buffer):
                self._buffer = buffer
                return []
            # openai-python loses the first event of a stream with a byte order mark.
            buffer = buffer.removeprefix(_BOM)
            self._started = True
        events, self._buffer = _cut_plain(buffer) if buffer.find(b"\r") < 0 else _cut(buffer, self._scanned)
        # The end of an event may be split anywhere: look at the last three bytes again.
        self._scanned = max(0, len(self._buffer) - 3)
        if len(self._buffer) > EVENT_LIMIT_BYTES:
            raise EventTooLarge(f"an event of more than {EVENT_LIMIT_BYTES} bytes")
        return events

    def flush(self) -> list[Event]:
        """The event left without its empty line when the stream ended, made whole; or nothing."""
        rest, self._buffer, self._scanned = self._buffer, b"", 0
        if not rest.strip(b"\r\n"):
            return []
        raw = rest.rstrip(b"\r\n") + b"\n\n"
        return [(raw, _data(raw, len(raw) - 2))]


def _cut(buffer: bytes, scanned: int) -> tuple[list[Event], bytes]:
    """Complete events, and the rest; `scanned` bytes are known to hold no end of an event."""
    events = []
    start = 0
    for match in _END.finditer(buffer, scanned):
        raw = buffer[start : match.end()]
        events.append((raw, _data(raw, match.start() - start)))
        start = match.end()
    return events, buffer[start:]


def _cut_plain(buffer: bytes) -> tuple[list[Event], bytes]:
    """The same where lines end with LF alone, as all engines send them, at a fifth of the cost."""
    pieces = buffer.split(b"\n\n")
    rest = pieces.pop()
    events = []
    for event in pieces:
        # Not `in`, which takes the bytes for a number first, and fails.
        is_plain = event.startswith(b"data: ") and event.find(b"\n") < 0
        events.append((event + b"\n\n", event[6:] if is_plain else _data(event, len(event))))
    return events, rest


def _data(raw: bytes, end: int) -> bytes | None:
    if raw.startswith(b"data: ") and raw.find(b"\n", 0, end) < 0 and raw.find(b"\r", 0, end) < 0:
        return raw[6:end]
    lines = []
    for line in _LINE.split(raw[:end]):
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
