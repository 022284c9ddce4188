"""What the APIs of conversations have in common: each becomes a chat, which is what every backend can hold. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import msgspec

from gateway.api.parameters import MAX_TOOLS, bounded, media_url, string, wrong
from models.call import CallRequest, Endpoint
from models.errors import InvalidRequest

MAX_TEXT: Final = 20_000_000
"""Longer than any body may be: the limit of the body is the limit of its texts."""

_encode = msgspec.json.Encoder().encode


def chat_call(
    endpoint: Endpoint,
    model: str,
    body: dict[str, Any],
    *,
    stream: bool,
    max_output_tokens: int | None,
    end_user: str | None,
    echo: dict[str, Any] | None = None,
    stored_input: list[Any] | None = None,
) -> CallRequest:
    """The call of a conversation whose chat is `body`; its input is bounded by the bytes of that."""
    size = size_of(body)
    return CallRequest(
        endpoint,
        model,
        body,
        stream=stream,
        include_usage=True,
        max_output_tokens=max_output_tokens,
        input_bound=None if has_media(body["messages"]) else size,
        end_user=end_user,
        echo=echo,
        stored_input=stored_input,
    )


def size_of(value: Any) -> int:
    """Bytes of a part of a body as JSON, or an error where it holds what JSON cannot."""
    try:
        return len(_encode(value))
    except (OverflowError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"The body holds a value that no backend can take: {error}") from None


def has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a chat holds pictures or sounds: what these cost is not to be seen from their bytes."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                if part["type"] not in ("text", "refusal"):
                    return True
    return False


def text_in(value: Any, param: str) -> str:
    """A string, or an error that names where it should have been."""
    if not isinstance(value, str):
        raise wrong(param, "must be a string")
    return value


def objects_in(value: Any, param: str, limit: int) -> list[dict[str, Any]]:
    """A list of objects of bounded length, or an error that names the one that is none."""
    if not isinstance(value, list) or len(value) > limit:
        raise wrong(param, f"must be a list of at most {limit} entries")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong(f"{param}[{index}]", "must be an object")
    return value


def function_tools(param: str, functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Functions as the tools of a chat, with schemas of bounded size."""
    if len(functions) > MAX_TOOLS:
        raise wrong(param, f"must be a list of at most {MAX_TOOLS} tools")
    for index, function in enumerate(functions):
        string(128)(f"{param}[{index}].name", function.get("name"))
    bounded(param, functions)
    return [
        {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}
        for function in functions
    ]


def picture(url: Any, param: str, media_hosts: Set[str] = frozenset()) -> dict[str, Any]:
    """A picture as a part of a chat message; `data:`, or from `media_hosts`."""
    return {"type": "image_url", "image_url": {"url": media_url(param, url, media_hosts)}}


def content_of(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Parts as the content of a message: one text where there is nothing else, since not every template takes parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def with_system(messages: list[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """A chat that begins with one system message: many templates take no other, and none later."""
    texts = [instructions] if instructions else []
    rest = list(messages)
    while rest and rest[0]["role"] == "system" and (said := _texts(rest[0]["content"])) is not None:
        texts += said
        del rest[0]
    return [{"role": "system", "content": "\n\n".join(texts)}, *rest] if texts else rest


def _texts(content: str | list[dict[str, Any]]) -> list[str] | None:
    """The texts of a message; None where it holds anything else."""
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content] if all(part["type"] == "text" for part in content) else None


def add_tool_call(messages: list[dict[str, Any]], call_id: str, name: str, arguments: str) -> None:
    """Put a tool call into the assistant's last message, or into a new one where the last is somebody else's."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    calls = messages[-1].setdefault("tool_calls", [])
    if len(calls) >= MAX_TOOLS:
        raise InvalidRequest(f"One turn may hold at most {MAX_TOOLS} tool calls.")
    calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
