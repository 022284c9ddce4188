"""The nouns of one call's money: the hold taken before it, and the charge or void that ends it.

The wrong order is impossible: a `Hold` comes only from the hot store, which makes it from a `HoldRequest`; a `Charge`
and a `Void` are made only from a `Hold`, by `billing.charges`.
"""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from models.catalog import Rates
from models.money import Units
from models.usage import Ending, TokenUsage, UsageSource
from models.values import value


class Endpoint(StrEnum):
    """The metered endpoints, by the path they have in the OpenAI API, or in that of Anthropic."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    RERANK = "/v1/rerank"
    MODERATIONS = "/v1/moderations"
    IMAGES = "/v1/images/generations"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"
    TRANSLATIONS = "/v1/audio/translations"

    @cached_property
    def upstream(self) -> Endpoint:
        """The endpoint that a backend is asked at: conversations of every API are chats there."""
        return Endpoint.CHAT_COMPLETIONS if self in _CONVERSATIONS else self

    @property
    def generates(self) -> bool:
        """Whether the answer is text that a model generates: it has choices, a length, and comes in a stream."""
        return self in _GENERATING

    @property
    def hears(self) -> bool:
        """Whether it takes a sound, as a form with a file in it, and answers with what is said in it."""
        return self in _HEARING


_CONVERSATIONS: Final = frozenset({Endpoint.RESPONSES, Endpoint.MESSAGES})
_GENERATING: Final = _CONVERSATIONS | {Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS}
_HEARING: Final = frozenset({Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS})


@value
class Upload:
    """A file that a client sent: its kind as its first bytes tell it ("wav"), and its bytes."""

    kind: str
    content: bytes = field(repr=False)


@value
class CallRequest:
    """What a client asked for, reduced to what decides the price.

    `body` is what goes upstream, checked; where the client speaks another API than the backend, it is translated.
    `prompts` is the number of prompts in a list, `n` the choices wanted of each. `input_bound` is the most input
    tokens the text can be (UTF-8 bytes bound tokens), or None where only the model's context bounds it (images).
    `tells_cost` is whether the client wants to be told what the call cost. `echo` is what the answer repeats of a
    request of the Responses API, and `stored_input` its conversation where the answer is to be kept.
    `images_bound` and `audio_seconds_bound` are the most of these that the call can be charged for. `upload` is the
    sound of a call that hears one, `audio_format` the form in which its client wants the words.
    """

    endpoint: Endpoint
    model: str
    body: dict[str, Any]
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    prompts: int = 1
    max_output_tokens: int | None = None
    input_bound: int | None = 0
    end_user: str | None = None
    tells_cost: bool = False
    echo: dict[str, Any] | None = None
    stored_input: list[Any] | None = None
    images_bound: int = 0
    audio_seconds_bound: int = 0
    upload: Upload | None = None
    audio_format: str = ""

    @property
    def choices(self) -> int:
        """Choices the backend generates in all; choice `i` answers prompt `i // n`."""
        return self.n * self.prompts


@value
class CallClaim:
    """A call that was sent with an Idempotency-Key, as it is told from others.

    The SHA-256 of its key, and that of its path and body.
    """

    project_id: UUID
    key_digest: bytes
    request_digest: bytes
    call_id: UUID


@value
class CallAnswer:
    """What a call with a key was answered; `body` is None where it could not be kept."""

    call_id: UUID
    status: int
    content_type: str
    body: bytes | None


@value
class RateBucket:
    """One limit that a hold must pass: a bucket that holds `per_minute` and refills as much, evenly, in `minutes`.

    `scope` names it within its organization, for example `key:<id>:requests`; `cost` is what this call takes.
    `minutes` is 1, or 1440 for a limit of a day.
    """

    scope: str
    per_minute: int
    cost: int
    minutes: int = 1


@value
class InFlightLimit:
    """A limit on the calls of one scope that run at the same time."""

    scope: str
    limit: int


@value
class MonthlyLimit:
    """A limit on what one scope spends in a month: `scope` ends with the month, as in `key:<id>:2026-11`."""

    scope: str
    limit: Units


@value
class CallOrigin:
    """What is known of a call when its hold is taken, and is on its receipt for ever.

    `batch` says that it is one of a batch file.
    """

    call_id: UUID
    organization_id: UUID
    project_id: UUID
    api_key_id: UUID
    shard: int
    currency: str
    endpoint: Endpoint
    model: str
    streamed: bool
    created_at: datetime
    end_user: str | None = None
    batch: bool = False


@value
class HoldRequest:
    """The hold a call needs: at most `amount` will be charged, at the pinned `rates`.

    `input_bound` and `output_bound` are the tokens the amount covers, `images_bound` and `audio_seconds_bound` what it
    covers of these.
    """

    origin: CallOrigin
    amount: Units
    rates: Rates
    input_bound: int
    output_bound: int
    buckets: tuple[RateBucket, ...] = ()
    in_flight: tuple[InFlightLimit, ...] = ()
    spend: tuple[MonthlyLimit, ...] = ()
    # Last, so that entries can leave them out cheaply (billing/hot/entries.py).
    images_bound: int = 0
    audio_seconds_bound: int = 0


@value
class BucketState:
    """What is left in a rate bucket after the hold, and the milliseconds until it is full again."""

    scope: str
    limit: int
    remaining: int
    reset_ms: int


@value
class Hold:
    """A hold that the hot store has acknowledged."""

    request: HoldRequest
    buckets: tuple[BucketState, ...] = ()
    encoded: bytes = field(default=b"", repr=False, compare=False)
    """The request as JSON, where it is at hand: the journal needs it again."""


@value
class Checkpoint:
    """How far a running call has come: what it is charged for, at most its hold, should its gateway die now.

    `accepted` says whether the backend `deployment` took the call on; before that nothing is owed. `source` is where
    `usage` comes from.
    """

    origin: CallOrigin
    usage: TokenUsage
    source: UsageSource
    deployment: str = ""
    accepted: bool = False


@value
class Void:
    """The end of a hold of which nothing is charged, because nothing was generated."""

    hold: Hold
    reason: str


class HoldRefusal(StrEnum):
    """Why the hot store did not take a hold."""

    BALANCE = "balance"
    RATE = "rate"
    IN_FLIGHT = "in_flight"
    SPEND = "spend"
    LIMIT_UNKNOWN = "limit_unknown"
    UNKNOWN_ORGANIZATION = "unknown_organization"
    NO_EPOCH = "no_epoch"


@value
class RefusedHold:
    """A hold that was not taken; nothing changed. `available` is the money there was, where money was the reason.

    For a spend limit it is what is left of that limit.
    """

    reason: HoldRefusal
    scope: str = ""
    retry_after_ms: int = 0
    available: Units = Units(0)
    buckets: tuple[BucketState, ...] = ()


@value
class Charge:
    """What one call cost, as it is on the stream, in Postgres and on the receipt.

    `reported` is the backend's own usage and `counted` ours, where we made one; `flags` names what was wrong with
    the backend's numbers. `version` is the version of the model that served the call: the name the backend has for it.
    """

    call_id: UUID
    organization_id: UUID
    project_id: UUID
    api_key_id: UUID
    currency: str
    endpoint: str
    model: str
    deployment: str
    streamed: bool
    ending: Ending
    usage_source: UsageSource
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    amount: int
    hold: int
    price_version_ids: tuple[UUID, ...]
    created_at: datetime
    ended_at: datetime
    end_user: str | None = None
    reported: dict[str, Any] | None = None
    counted: dict[str, Any] | None = None
    flags: tuple[str, ...] = field(default=())
    corrects: UUID | None = None
    version: str = ""
    # Last, so that entries can leave them out cheaply (billing/hot/entries.py).
    images: int = 0
    audio_seconds: int = 0
    batch: bool = False
