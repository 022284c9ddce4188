"""One event of a backend's stream: the few fields that matter, and the bytes less what the client did not ask for."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_NOTHING = msgspec.Raw()


class Function(msgspec.Struct):
    """The function of a tool call, as pieces of text."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A piece of a tool call; `index` says of which."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    """What an event adds to a chat message: all of it is generated, all of it counts."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """What an event adds to one choice."""

    index: int = 0
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    """vLLM: the stop sequence at which it ended."""
    logprobs: msgspec.Raw = _NOTHING


class Chunk(msgspec.Struct):
    """The fields of an event that Tollgate reads; everything else passes."""

    choices: list[Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    timings: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    model: msgspec.Raw = _NOTHING
    object: str = ""


_decode_typed = msgspec.json.Decoder(Chunk).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def read(data: bytes) -> Chunk | None:
    """The chunk in an event's data; None where it is no JSON object of that shape."""
    try:
        return _decode_typed(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def read_any(data: bytes | msgspec.Raw) -> Any:
    """Any JSON value, or None where it is none."""
    try:
        return _decode_any(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def read_choice(choice: Any) -> Choice | None:
    """A choice of an answer that did not stream; its `message` has the shape of a delta. None where it is none."""
    try:
        return msgspec.convert({**choice, "delta": choice.get("message")}, Choice)
    except (msgspec.ValidationError, AttributeError, TypeError):
        return None


def text_of(choice: Choice) -> str:
    """All the text an event adds to a choice: content, refusal, reasoning, names and arguments of tool calls."""
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    if (
        delta.tool_calls is None
        and delta.reasoning is None
        and delta.reasoning_content is None
        and delta.refusal is None
    ):
        return delta.content or ""
    pieces = [delta.content, delta.refusal, delta.reasoning_content or delta.reasoning]
    for call in delta.tool_calls or ():
        if call.function is not None:
            pieces += [call.function.name, call.function.arguments]
    return "".join(piece for piece in pieces if piece)


def replace(raw: bytes, key: bytes, value: msgspec.Raw, instead: bytes | None) -> bytes:
    """The event with the value of a top-level key replaced, or, with None, the key taken out; no other byte changed.

    `value` is the exact text the decoder found, with its quotes and braces, which cannot occur inside a JSON string.
    """
    text = bytes(value)
    member = b'"' + key + b'":' + text
    if instead is not None:
        if member in raw:
            return raw.replace(member, b'"' + key + b'":' + instead, 1)
    elif b"," + member in raw:
        return raw.replace(b"," + member, b"", 1)
    return _replace_spaced(raw, key, text, instead)


def _replace_spaced(raw: bytes, key: bytes, text: bytes, instead: bytes | None) -> bytes:
    name, body = b'"' + re.escape(key) + rb'"\s*:\s*', re.escape(text)
    if instead is not None:
        return re.sub(b"(" + name + b")" + body, lambda match: match[1] + instead, raw, count=1)
    taken, count = re.subn(rb"\s*,\s*" + name + body, b"", raw, count=1)
    return taken if count else re.sub(name + body + rb"\s*,?\s*", b"", raw, count=1)


def usage_event(chunk: dict[str, Any], usage: dict[str, Any]) -> bytes:
    """The usage event of the OpenAI API, made by us where a backend's own would be wrong."""
    return b"data: " + _encode({**head_of(chunk), "choices": [], "usage": usage}) + b"\n\n"


def head_of(chunk: Any) -> dict[str, Any]:
    """What is the same in every event of a stream, from one of them."""
    names = ("id", "object", "created", "model", "system_fingerprint")
    return {name: chunk[name] for name in names if name in chunk} if isinstance(chunk, dict) else {}
