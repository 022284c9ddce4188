"""The JSON of charges, open holds and checkpoints: written here, read by the worker and the sweeper."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final

import msgspec

from models.call import CallOrigin, Charge, Checkpoint, HoldRequest, RateBucket
from models.catalog import Rates
from models.money import LARGEST_BALANCE_UNITS
from models.usage import TokenUsage, UsageSource

TOKENS_SUFFIX: Final = ":tokens"
"""How the scope of a bucket of tokens ends. Reserved tokens are given back, requests are not: the call was made."""

_LARGEST_TOKENS: Final = 2**31 - 1
_DEFAULTS: Final = b',"images":0,"audio_seconds":0,"batch":false}'
_HOLD_DEFAULTS: Final = b',"images_bound":0,"audio_seconds_bound":0}'
_RATES_DEFAULTS: Final = b',"image":0,"audio_second":0}'
_ORIGIN_DEFAULTS: Final = b',"batch":false}'
"""How most charges, holds, rates and origins end. It is cut off: whoever reads has the same defaults, and what was
written before these fields were there reads the same. No string can contain it: a quote in one is escaped."""
_ESCAPED_NUL: Final = rb"\u0000"
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class HoldEntry(msgspec.Struct, frozen=True):
    """An open hold as it is in Redis: enough to end the call without the gateway that placed it.

    `placed_at_ms` is in milliseconds since 1970 by the clock of Redis. `instance` is the process that has the hold;
    empty where it gave no name.
    """

    placed_at_ms: int
    request: HoldRequest
    instance: str = ""


_encoder: Final = msgspec.json.Encoder()
_charges: Final = msgspec.json.Decoder(Charge)
_holds: Final = msgspec.json.Decoder(HoldEntry)


def encode_charge(charge: Charge) -> bytes:
    """The charge as JSON."""
    encoded = _encoder.encode(charge)
    return encoded[: -len(_DEFAULTS)] + b"}" if encoded.endswith(_DEFAULTS) else encoded


def decode_charge(payload: bytes) -> Charge:
    """The charge in `payload`; raises `ValueError` with the reason for one that Postgres could not take."""
    try:
        charge = _charges.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not a charge: {error}") from error
    if reason := _defect(charge, payload):
        raise ValueError(f"charge of call {charge.call_id}: {reason}")
    return charge


def encode_request(request: HoldRequest) -> bytes:
    """What a hold asks for as JSON: the larger part of what Redis and the journal keep of it."""
    if request.buckets or request.in_flight or request.spend or request.images_bound or request.audio_seconds_bound:
        return _trimmed(_encoder.encode(request))
    # As most calls are: what they have in common is at hand, and the rest has a shape that is known.
    origin = _encoder.encode(request.origin)
    if origin.endswith(_ORIGIN_DEFAULTS):
        origin = origin[: -len(_ORIGIN_DEFAULTS)] + b"}"
    return (
        b'{"origin":%b,"amount":%d,"rates":%b,"input_bound":%d,"output_bound":%d,"buckets":[],"in_flight":[],"spend":[]}'
        % (origin, request.amount, _rates(request.rates), request.input_bound, request.output_bound)
    )


def _trimmed(encoded: bytes) -> bytes:
    # Ids and names alone are longer than where the search begins.
    origin_end, rates_end = encoded.find(_ORIGIN_DEFAULTS, 200), encoded.rfind(_RATES_DEFAULTS)
    if origin_end < 0 or rates_end < 0 or not encoded.endswith(_HOLD_DEFAULTS):
        # Not as most calls are: all of it is written.
        return encoded
    rates = encoded[origin_end + len(_ORIGIN_DEFAULTS) : rates_end]
    limits = encoded[rates_end + len(_RATES_DEFAULTS) : -len(_HOLD_DEFAULTS)]
    return encoded[:origin_end] + b"}" + rates + b"}" + limits + b"}"


_known_rates: Final[dict[int, tuple[Rates, bytes]]] = {}
_MOST_RATES: Final = 4_096


def _rates(rates: Rates) -> bytes:
    """Rates as JSON, once: the catalog pins the same object for every call between two changes of a price."""
    known = _known_rates.get(id(rates))
    # An id may be another object's by now, but not while the one that had it is kept here.
    if known is not None and known[0] is rates:
        return known[1]
    encoded = _encoder.encode(rates)
    if encoded.endswith(_RATES_DEFAULTS):
        encoded = encoded[: -len(_RATES_DEFAULTS)] + b"}"
    if len(_known_rates) >= _MOST_RATES:
        _known_rates.clear()
    _known_rates[id(rates)] = rates, encoded
    return encoded


def encode_hold(request: HoldRequest, instance: str = "", encoded: bytes = b"") -> bytes:
    """The hold as JSON, without the time, which Redis puts in front; `encoded` is the request, where it is at hand."""
    asked = encoded or encode_request(request)
    if not request.buckets and not request.in_flight and not request.spend:
        # As below, for those without limits, who are the most.
        return b'{"instance":%b,"amount":"%d","tokens":[],"in_flight":[],"request":%b}' % (
            _quoted(instance),
            request.amount,
            asked,
        )
    tokens = tuple(bucket for bucket in request.buckets if bucket.scope.endswith(TOKENS_SUFFIX))
    places = tuple(place.scope for place in request.in_flight)
    spend = tuple(limit.scope for limit in request.spend)
    return _encoder.encode(_Written(instance, str(request.amount), tokens, places, spend, msgspec.Raw(asked)))


@lru_cache(maxsize=16)
def _quoted(instance: str) -> bytes:
    return _encoder.encode(instance)


def decode_hold(payload: bytes) -> HoldEntry:
    """The open hold in `payload`; raises `ValueError` with the reason where it is none."""
    try:
        return _holds.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"not a hold: {error}") from error


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as JSON, without the call, under whose id it is kept."""
    usage = checkpoint.usage
    tokens: tuple[int, ...] = (usage.input, usage.output, usage.cached, usage.cache_write, usage.reasoning)
    if usage.images or usage.audio_seconds:
        tokens += (usage.images, usage.audio_seconds)
    return _encoder.encode(_Point(tokens, checkpoint.source, checkpoint.deployment, checkpoint.accepted))


def encode_prompt_checkpoint(tokens: int, deployment: str) -> bytes:
    """The checkpoint of a call that a backend was sent just now, by an estimate of its prompt; each call makes one."""
    return _encoder.encode(_Point((tokens, 0, 0, 0, 0), UsageSource.ESTIMATE, deployment, True))


def decode_checkpoint(origin: CallOrigin, payload: bytes) -> Checkpoint:
    """The checkpoint in `payload` of the call `origin`; raises `ValueError` with the reason where it is none."""
    try:
        point = _points.decode(payload)
        usage = TokenUsage(*point.tokens)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"not a checkpoint of call {origin.call_id}: {error}") from error
    return Checkpoint(origin, usage, point.source, point.deployment, point.accepted)


class _Point(msgspec.Struct, frozen=True, array_like=True):
    """The layout of a checkpoint, short because every open call writes one a second.

    `tokens` are the fields of `TokenUsage` in their order, images and seconds only where there are any.
    """

    tokens: Annotated[tuple[int, ...], msgspec.Meta(min_length=5, max_length=7)]
    source: UsageSource
    deployment: str
    accepted: bool


_points: Final = msgspec.json.Decoder(_Point)


@dataclass(frozen=True, slots=True)
class _Written:
    """The layout in Redis. What `release.lua` needs comes first, the amount as text: Lua would make it a double."""

    instance: str
    amount: str
    tokens: tuple[RateBucket, ...]
    in_flight: tuple[str, ...]
    spend: tuple[str, ...]
    request: msgspec.Raw


def _defect(charge: Charge, payload: bytes) -> str | None:
    """What one bad row would fail a whole batch for: the checks of the table `charge`, and of its column types."""
    parts = (charge.cached_tokens, charge.cache_write_tokens, charge.reasoning_tokens)
    if min(*parts, charge.input_tokens, charge.output_tokens) < 0:
        return "negative tokens"
    if max(charge.input_tokens, charge.output_tokens) > _LARGEST_TOKENS:
        return "more tokens than a column holds"
    # Most calls have neither, and each booking asks.
    if (charge.images or charge.audio_seconds) and not (
        0 <= charge.images <= _LARGEST_TOKENS and 0 <= charge.audio_seconds <= _LARGEST_TOKENS
    ):
        return "images or seconds of audio below zero, or more than a column holds"
    if charge.cached_tokens + charge.cache_write_tokens > charge.input_tokens:
        return "more cached than input tokens"
    if charge.reasoning_tokens > charge.output_tokens:
        return "more reasoning than output tokens"
    if max(abs(charge.amount), abs(charge.hold)) > LARGEST_BALANCE_UNITS:
        return "an amount beyond the largest balance"
    if charge.corrects is None and not 0 <= charge.amount <= charge.hold:
        return "an amount outside its hold"
    if charge.created_at.tzinfo is None or charge.ended_at.tzinfo is None:
        return "a time without a zone"
    # The pattern is dear, and what it is for is hardly ever there.
    if _ESCAPED_NUL in payload and _NUL.search(payload):
        return "a NUL character, which Postgres keeps in no text"
    return None
