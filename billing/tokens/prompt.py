"""The text of a request that is counted as its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Parts nest once in every API we serve (a tool result with text in it); a hostile body may nest without end.
DEEPEST_PART = 4


def prompt_text(body: Mapping[str, Any]) -> str:
    """The text in an OpenAI request: messages, tools, prompts, inputs; one part per line.

    The template that the backend wraps around it is not in here, nor are images, audio and arrays of token ids. Shapes
    that the API does not know are passed over: refusing them is not this function's part.
    """
    return "\n".join(_parts(body))


def _parts(body: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(body.get("system"))
    yield from _texts(body.get("instructions"))
    for message in _list(body.get("messages")):
        if isinstance(message, Mapping):
            yield from _message(message)
    for key in ("tools", "functions"):
        for tool in _list(body.get(key)):
            yield _compact(tool)
    for key in ("prompt", "suffix", "input"):
        yield from _texts(body.get(key))


def _message(message: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(message.get("name"))
    yield from _texts(message.get("reasoning_content"))
    yield from _texts(message.get("content"))
    yield from _texts(message.get("refusal"))
    for call in (*_list(message.get("tool_calls")), {"function": message.get("function_call")}):
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield from _texts(function.get("name"))
            yield from _texts(function.get("arguments"))


def _texts(value: object, depth: int = 0) -> Iterator[str]:
    """The strings in a string, a list of strings, or a list of content parts and messages."""
    if isinstance(value, str):
        yield value
    if depth == DEEPEST_PART:
        return
    for item in _list(value):
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            for key in ("text", "refusal", "content", "arguments", "output"):
                yield from _texts(item.get(key), depth + 1)
            if isinstance(item.get("input"), Mapping):
                yield _compact(item["input"])


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
