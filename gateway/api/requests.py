"""From the bytes of a request body to a `CallRequest`: decode, check every parameter, bound what it can cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.api import parameters
from models.call import CallRequest, Endpoint
from models.errors import InvalidRequest

_decode = msgspec.json.Decoder().decode

_TABLES = {
    Endpoint.CHAT_COMPLETIONS: (parameters.CHAT, "messages"),
    Endpoint.COMPLETIONS: (parameters.COMPLETIONS, "prompt"),
    Endpoint.EMBEDDINGS: (parameters.EMBEDDINGS, "input"),
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
    decoded = decode(body)
    table, subject = _TABLES[endpoint]
    for required in ("model", subject):
        if decoded.get(required) is None:
            raise InvalidRequest(f"You must provide '{required}'.", param=required)
    kept = parameters.checked(decoded, table)
    options = kept.pop("stream_options", None)
    stream = bool(kept.pop("stream", False))
    if options is not None and not stream:
        raise parameters.wrong("stream_options", "is only allowed when 'stream' is true")
    if "top_logprobs" in kept and not kept.get("logprobs"):
        raise parameters.wrong("top_logprobs", "is only allowed when 'logprobs' is true")
    limits = [kept.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in kept]
    return CallRequest(
        endpoint,
        kept.pop("model"),
        kept,
        stream,
        bool(options and options.get("include_usage")),
        kept.pop("n", 1),
        1 if endpoint is Endpoint.CHAT_COMPLETIONS else parameters.text_count(kept[subject]),
        min(limits) if limits else None,
        _input_bound(endpoint, kept, len(body)),
        decoded.get("user") or decoded.get("safety_identifier"),
    )


def _input_bound(endpoint: Endpoint, body: Mapping[str, Any], size: int) -> int | None:
    """Byte-level tokenizers never give more tokens than UTF-8 bytes, and JSON is no shorter than its text.

    A token id of an array takes at least one digit and a comma, so the body's size bounds those as well. What a
    picture or a sound costs is not to be seen from its bytes.
    """
    if endpoint is Endpoint.CHAT_COMPLETIONS:
        for message in body["messages"]:
            content = message.get("content")
            if isinstance(content, list) and any(part["type"] not in ("text", "refusal") for part in content):
                return None
    return size
