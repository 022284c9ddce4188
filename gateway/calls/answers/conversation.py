"""What answers in other APIs than the backend's have in common: they are made anew, of the blocks of a chat."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from gateway.backends.events import Choice, Chunk, read_choice
from gateway.calls.answers.answer import encode
from gateway.calls.answers.blocks import Blocks
from gateway.calls.metering import Meter
from models.call import CallOrigin, CallRequest
from models.catalog import Deployment

CUT = Choice(finish_reason="length")


class Conversation:
    """An answer that is made of blocks; who makes it in a stream overrides `said`."""

    def __init__(self, request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Meter) -> None:
        self.request = request
        self.origin = origin
        self.meter = meter
        self.blocks = Blocks(origin.call_id.hex)

    def said(self, choice: Choice) -> Iterable[bytes]:
        """Events for the client; none where the answer is told as a whole."""
        for _ in self.blocks.add(choice):
            continue
        return ()

    def event(self, raw: bytes, chunk: Chunk, data: bytes) -> bytes:
        """What an event of the backend is in the client's API."""
        return b"".join(piece for choice in chunk.choices or () for piece in self.said(choice))

    def aside(self, raw: bytes) -> bytes:
        """A comment keeps the connection alive in every API; what is not understood cannot be translated."""
        return raw if self.request.stream and raw.startswith(b":") else b""

    def whole(self, answer: dict[str, Any], body: bytes) -> bool:
        """An answer of the backend that did not come in a stream."""
        choices = answer.get("choices")
        read = (
            [read_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
        )
        for choice in read:
            if choice is not None:
                self.said(choice)
        return bool(read) and not self.request.stream

    def cut(self, choices: Collection[int], last: bytes) -> bytes:
        """The hold is spent: as at a limit of length."""
        return b"".join(self.said(CUT)) if choices else b""


def sse(event: dict[str, Any]) -> bytes:
    """An event that is named by its type, as both APIs name theirs."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode(event))
