"""The answer to a call: fed with what the backend says, it gives the bytes that the client gets."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Protocol

import msgspec

from gateway.backends.events import Chunk
from gateway.calls.metering import Reading
from models.errors import TollgateError
from models.usage import Ending
from models.values import value

encode = msgspec.json.Encoder().encode


@value
class End:
    """How an answer has ended.

    `usage` gives what we tell of its usage; `is_usage_known` is whether that is more than our own estimate. `done` is
    the event with which the backend ended its stream, `cost` what the call cost as an amount and its currency, where
    the client asked for it.
    """

    ending: Ending
    ended_at: datetime
    done: bytes
    usage: Callable[[], Reading]
    is_usage_known: bool
    cost: dict[str, str] | None = None
    is_kept: bool = False
    """Whether the response can be read again."""


class Answer(Protocol):
    """One attempt to answer a call. What it returns while the backend speaks is sent at once; nothing, if empty."""

    def event(self, raw: bytes, chunk: Chunk, data: bytes) -> bytes:
        """An event of the backend's stream: its bytes, what Tollgate reads of it, and its data."""

    def aside(self, raw: bytes) -> bytes:
        """A comment, or an event that nobody understands."""

    def whole(self, answer: dict[str, Any], body: bytes) -> bool:
        """The backend's answer where it did not stream; answers whether it will do."""

    def cut(self, choices: Collection[int], last: bytes) -> bytes:
        """The hold is spent: end these choices as at a limit of length; `last` is the event that went too far."""

    def end(self, end: End) -> bytes:
        """The call is paid for: the last bytes of a stream, or the whole answer."""

    def broke(self, error: TollgateError) -> bytes:
        """The event that ends a stream which cannot go on."""


def with_cost(usage: dict[str, Any], end: End) -> dict[str, Any]:
    """A usage object, with the cost where the client asked for it."""
    return usage if end.cost is None else {**usage, "cost": end.cost}
