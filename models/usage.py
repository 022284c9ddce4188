"""What a call has used, in one internal form: tokens, images and seconds of audio; and how well it is known."""

from __future__ import annotations

from enum import StrEnum

from models.values import value


@value
class TokenUsage:
    """Tokens of one call, the images it made, and the seconds of audio it took or made, begun ones as whole.

    `cached` (read from the backend's prefix cache) and `cache_write` are disjoint parts of `input`; `reasoning`
    is part of `output`.
    """

    input: int
    output: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    images: int = 0
    audio_seconds: int = 0

    def __post_init__(self) -> None:
        if min(self.input, self.output, self.cached, self.cache_write, self.reasoning) < 0:
            raise ValueError(f"tokens cannot be negative: {self}")
        if self.cached + self.cache_write > self.input:
            raise ValueError(f"cached and cache-write tokens are parts of the input: {self}")
        if self.reasoning > self.output:
            raise ValueError(f"reasoning tokens are part of the output: {self}")
        if self.images < 0 or self.audio_seconds < 0:
            raise ValueError(f"images and seconds cannot be negative: {self}")


class UsageSource(StrEnum):
    """Where the charged token numbers come from, best first."""

    BACKEND = "backend"
    BACKEND_PARTIAL = "backend_partial"
    TIKTOKEN = "tiktoken"
    ESTIMATE = "estimate"
    CHECKPOINT = "checkpoint"


class Ending(StrEnum):
    """How a charged call ended."""

    FINISHED = "finished"
    CLIENT_GONE = "client_gone"
    BACKEND_FAILED = "backend_failed"
    HOLD_SPENT = "hold_spent"
    DRAINED = "drained"
    RECOVERED = "recovered"


class BilledCount(StrEnum):
    """Whose count of tokens a model is billed by."""

    BACKEND = "backend"
    TIKTOKEN = "tiktoken"
    LOWER = "lower"
