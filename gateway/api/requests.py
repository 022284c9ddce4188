"""From the bytes of a request body to a `CallRequest`: decode, check every parameter, bound what it can cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import lru_cache, partial
from typing import Any

import msgspec

from gateway.api import images, messages, moderations, parameters, reranks, responses
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
    Endpoint.RERANK: ("model", "query", "documents"),
    Endpoint.MODERATIONS: ("model", "input"),
    Endpoint.IMAGES: ("model", "prompt"),
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


def parse(endpoint: Endpoint, body: bytes, media_hosts: Set[str] = frozenset()) -> CallRequest:
    """The call a request body asks for; raises `InvalidRequest` naming the parameter that is wrong.

    `media_hosts` are the hosts from which backends may fetch what is in a conversation. Bodies that are forms are read
    by `transcripts`.
    """
    return read(endpoint, decode(body), len(body), media_hosts=media_hosts)


def read(
    endpoint: Endpoint,
    decoded: dict[str, Any],
    size: int,
    history: Sequence[dict[str, Any]] = (),
    media_hosts: Set[str] = frozenset(),
) -> CallRequest:
    """The call that a decoded body of `size` bytes asks for; `history` are the items of the response before it."""
    if endpoint.hears:
        raise InvalidRequest("A sound is sent in a form, not in JSON.", status=415)
    for required in _REQUIRED[endpoint]:
        if decoded.get(required) is None:
            raise InvalidRequest(f"You must provide '{required}'.", param=required)
    reader = _READERS.get(endpoint)
    if reader is not None:
        return reader(decoded, size, history, media_hosts)
    return _read_openai(endpoint, decoded, size, media_hosts)


_READERS: dict[Endpoint, Callable[[dict[str, Any], int, Sequence[dict[str, Any]], Set[str]], CallRequest]] = {
    Endpoint.RESPONSES: lambda decoded, size, history, hosts: responses.read(decoded, history, hosts),
    Endpoint.MESSAGES: lambda decoded, size, history, hosts: messages.read(decoded, hosts),
    Endpoint.RERANK: lambda decoded, size, history, hosts: reranks.read(decoded),
    Endpoint.MODERATIONS: lambda decoded, size, history, hosts: moderations.read(decoded, size, hosts),
    Endpoint.IMAGES: lambda decoded, size, history, hosts: images.read(decoded),
}


@lru_cache(maxsize=8)
def _chat_table(media_hosts: Set[str]) -> Mapping[str, parameters.Check]:
    return {**parameters.CHAT, "messages": partial(parameters.messages, media_hosts=media_hosts)}


def _read_openai(endpoint: Endpoint, decoded: dict[str, Any], size: int, media_hosts: Set[str]) -> CallRequest:
    is_chat = endpoint is Endpoint.CHAT_COMPLETIONS
    kept = parameters.checked(decoded, _chat_table(media_hosts) if is_chat and media_hosts else _TABLES[endpoint])
    options = kept.pop("stream_options", None)
    stream = bool(kept.pop("stream", False))
    if options is not None and not stream:
        raise parameters.wrong("stream_options", "is only allowed when 'stream' is true")
    if "top_logprobs" in kept and not kept.get("logprobs"):
        raise parameters.wrong("top_logprobs", "is only allowed when 'logprobs' is true")
    limits = [kept.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in kept]
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
