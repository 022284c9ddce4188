"""From the bytes of a request body to a `CallRequest`: decode, check every parameter, bound what it can cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.api import messages, parameters, responses
from gateway.api.conversations import has_media
from models.call import CallRequest, Endpoint
from models.errors import InvalidRequest

_decode = msgspec.json.Decoder().decode

_TABLES = {
    Endpoint.CHAT_COMPLETIONS: parameters.CHAT,
    Endpoint.COMPLETIONS: parameters.COMPLETIONS,
    Endpoint.EMBEDDINGS: parameters.EMBEDDINGS,
}
_REQUIRED = {
    Endpoint.CHAT_COMPLETIONS: ("model", "messages"),
    Endpoint.COMPLETIONS: ("model", "prompt"),
    Endpoint.EMBEDDINGS: ("model", "input"),
    Endpoint.RESPONSES: ("model", "input"),
    Endpoint.MESSAGES: ("model", "max_tokens", "messages"),
}


def decode(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body; strict: no NaN, no invalid UTF-8, bounded depth."""
    if not body:
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        decoded = _decode(body)
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(decoded, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return decoded


def parse(endpoint: Endpoint, body: bytes) -> CallRequest:
    """The call a request body asks for; raises `InvalidRequest` naming the parameter that is wrong."""
    return read(endpoint, decode(body), len(body))


def read(endpoint: Endpoint, decoded: dict[str, Any], size: int, history: Sequence[dict[str, Any]] = ()) -> CallRequest:
    """The call that a decoded body of `size` bytes asks for; `history` are the items of the response before it."""
    for required in _REQUIRED[endpoint]:
        if decoded.get(required) is None:
            raise InvalidRequest(f"You must provide '{required}'.", param=required)
    match endpoint:
        case Endpoint.RESPONSES:
            return responses.read(decoded, history)
        case Endpoint.MESSAGES:
            return messages.read(decoded)
        case _:
            return _read_openai(endpoint, decoded, size)


def _read_openai(endpoint: Endpoint, decoded: dict[str, Any], size: int) -> CallRequest:
    kept = parameters.checked(decoded, _TABLES[endpoint])
    options = kept.pop("stream_options", None)
    stream = bool(kept.pop("stream", False))
    if options is not None and not stream:
        raise parameters.wrong("stream_options", "is only allowed when 'stream' is true")
    if "top_logprobs" in kept and not kept.get("logprobs"):
        raise parameters.wrong("top_logprobs", "is only allowed when 'logprobs' is true")
    limits = [kept.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in kept]
    is_chat = endpoint is Endpoint.CHAT_COMPLETIONS
    subject = _REQUIRED[endpoint][1]
    return CallRequest(
        endpoint,
        kept.pop("model"),
        kept,
        stream,
        bool(options and options.get("include_usage")),
        kept.pop("n", 1),
        1 if is_chat else parameters.text_count(kept[subject]),
        min(limits) if limits else None,
        _input_bound(is_chat, kept, size),
        decoded.get("user") or decoded.get("safety_identifier"),
    )


def _input_bound(is_chat: bool, body: Mapping[str, Any], size: int) -> int | None:
    """Byte-level tokenizers never give more tokens than UTF-8 bytes, and JSON is no shorter than its text.

    A token id of an array takes at least one digit and a comma, so the body's size bounds those as well. What a
    picture or a sound costs is not to be seen from its bytes.
    """
    return None if is_chat and has_media(body["messages"]) else size
