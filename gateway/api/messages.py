"""Requests of Anthropic's Messages API (`/v1/messages`): content blocks become the messages of a chat. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final

import msgspec

from gateway.api import conversations, parameters
from gateway.api.conversations import content_of, objects_in, picture, text_in
from gateway.api.parameters import Check, boolean, integer, number, one_of, only, refused, wrong
from models.call import CallRequest, Endpoint
from models.errors import InvalidRequest

_SERVER_TOOLS: Final = "tools of the server do not run here; only those that your program runs"
_encode = msgspec.json.Encoder().encode


def _system(param: str, value: Any) -> Any:
    """Text, or a list of blocks of text."""
    if isinstance(value, str):
        return value
    return "\n\n".join(
        text_in(block.get("text"), f"{param}[{place}].text")
        for place, block in enumerate(objects_in(value, param, parameters.MAX_MESSAGES))
    )


def _stops(param: str, value: Any) -> Any:
    """A list of at most 16 strings."""
    if not isinstance(value, list):
        raise wrong(param, "must be a list of strings")
    return parameters.stop(param, value)


def _metadata(param: str, value: Any) -> Any:
    """An object; `user_id` is kept with the receipt."""
    if not isinstance(value, dict) or not isinstance(value.get("user_id") or "", str):
        raise wrong(param, "must be an object with user_id")
    user = value.get("user_id") or ""
    parameters.end_user(f"{param}.user_id", user)
    return user


def _thinking(param: str, value: Any) -> Any:
    """An object of type enabled, disabled or adaptive; the model decides how it thinks."""
    kind = value.get("type") if isinstance(value, dict) else None
    one_of("enabled", "disabled", "adaptive")(f"{param}.type", kind)
    return parameters.DROP


def _tools(param: str, value: Any) -> Any:
    """Tools that your program runs; those of the server do not run here."""
    for place, tool in enumerate(objects_in(value, param, parameters.MAX_TOOLS)):
        if tool.get("type", "custom") not in ("custom", None):
            raise wrong(f"{param}[{place}].type", f"is not supported: {_SERVER_TOOLS}")
        if not isinstance(tool.get("input_schema"), dict):
            raise wrong(f"{param}[{place}].input_schema", "must be an object")
    return value


def _tool_choice(param: str, value: Any) -> Any:
    """An object of type auto, any, tool or none."""
    if not isinstance(value, dict):
        raise wrong(param, "must be an object")
    one_of("auto", "any", "tool", "none")(f"{param}.type", value.get("type"))
    if value["type"] == "tool":
        text_in(value.get("name"), f"{param}.name")
    return value


def _output_config(param: str, value: Any) -> Any:
    """An object; `format` of type json_schema with a schema of bounded size."""
    form = value.get("format") if isinstance(value, dict) else wrong
    if form is not None and (
        not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict)
    ):
        raise wrong(f"{param}.format", "must be an object of type json_schema with a schema")
    parameters.bounded(param, value)
    return value


def _conversation(param: str, value: Any) -> Any:
    """A list of messages with blocks: text, image, document (text), tool_use, tool_result, thinking."""
    return objects_in(value, param, parameters.MAX_MESSAGES)


MESSAGES: Final[Mapping[str, Check]] = {
    "model": parameters.string(256),
    "messages": _conversation,
    "max_tokens": integer(1, parameters.MAX_TOKENS),
    "system": _system,
    "stop_sequences": _stops,
    "stream": boolean,
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(0, 1_000_000),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "metadata": _metadata,
    "thinking": _thinking,
    "output_config": _output_config,
    "cache_control": parameters.dropped(parameters.mapping),
    "service_tier": only("auto", "standard_only", why="there is one tier"),
    "speed": only("standard", why="there is one speed"),
    "diagnostics": refused("the cache is the engine's own; usage tells what was read from it"),
    "container": refused("there are none here"),
    "mcp_servers": refused(_SERVER_TOOLS),
    "context_management": refused("send a shorter conversation"),
    "inference_geo": refused("the operator decides where models run"),
    "output_format": refused("send output_config.format"),
}


def read(decoded: Mapping[str, Any], media_hosts: Set[str] = frozenset()) -> CallRequest:
    """The call that a request asks for."""
    kept = parameters.checked(decoded, MESSAGES)
    messages = chat_messages(kept["messages"], media_hosts)
    if not messages:
        raise wrong("messages", "must hold a message")
    body: dict[str, Any] = {"messages": conversations.with_system(messages, kept.get("system"))}
    body |= {name: kept[name] for name in ("temperature", "top_p", "top_k") if name in kept}
    if kept.get("stop_sequences"):
        body["stop"] = kept["stop_sequences"]
    body |= _tools_of(kept) | _format_of(kept.get("output_config"))
    return conversations.chat_call(
        Endpoint.MESSAGES,
        kept["model"],
        body,
        stream=kept.get("stream", False),
        max_output_tokens=kept.get("max_tokens"),
        end_user=kept.get("metadata") or None,
    )


def chat_messages(messages: list[dict[str, Any]], media_hosts: Set[str] = frozenset()) -> list[dict[str, Any]]:
    """Messages of the Messages API as those of a chat."""
    chat: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        param = f"messages[{place}]"
        role = one_of("user", "assistant", "system")(f"{param}.role", message.get("role"))
        content = message.get("content")
        if isinstance(content, str):
            chat.append({"role": role, "content": content})
            continue
        blocks = objects_in(content, f"{param}.content", parameters.MAX_MESSAGES)
        if role == "assistant":
            _add_assistant(chat, blocks, f"{param}.content")
        else:
            _add_user(chat, role, blocks, f"{param}.content", media_hosts)
    return chat


def _add_user(
    chat: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]], param: str, media_hosts: Set[str]
) -> None:
    parts = []
    for place, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            call_id = text_in(block.get("tool_use_id"), f"{param}[{place}].tool_use_id")
            content = _result(block.get("content"), f"{param}[{place}].content", media_hosts)
            chat.append({"role": "tool", "tool_call_id": call_id, "content": content})
        else:
            parts.append(_part(block, f"{param}[{place}]", media_hosts))
    if parts:
        chat.append({"role": role, "content": content_of(parts)})


def _result(content: Any, param: str, media_hosts: Set[str]) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return content or ""
    blocks = objects_in(content, param, parameters.MAX_MESSAGES)
    return (
        content_of([_part(block, f"{param}[{place}]", media_hosts) for place, block in enumerate(blocks)])
        if blocks
        else ""
    )


def _add_assistant(chat: list[dict[str, Any]], blocks: list[dict[str, Any]], param: str) -> None:
    texts = []
    calls = []
    for place, block in enumerate(blocks):
        where = f"{param}[{place}]"
        match block.get("type"):
            case "text":
                texts.append(text_in(block.get("text"), f"{where}.text"))
            case "tool_use":
                arguments = block.get("input")
                if not isinstance(arguments, dict):
                    raise wrong(f"{where}.input", "must be an object")
                name = text_in(block.get("name"), f"{where}.name")
                calls.append((text_in(block.get("id"), f"{where}.id"), name, _encoded(arguments, f"{where}.input")))
            case "thinking" | "redacted_thinking":
                # A template decides what a model sees of its earlier thoughts, and most of them leave these out.
                continue
            case _:
                raise wrong(f"{where}.type", f"must be text, tool_use or thinking: {_SERVER_TOOLS}")
    if texts or not calls:
        chat.append({"role": "assistant", "content": "".join(texts)})
    elif calls:
        chat.append({"role": "assistant", "content": None})
    for call in calls:
        conversations.add_tool_call(chat, *call)


def _encoded(value: dict[str, Any], param: str) -> str:
    try:
        return _encode(value).decode()
    except (OverflowError, RecursionError, ValueError):
        raise wrong(param, "holds a value that no backend can take") from None


def _part(block: dict[str, Any], param: str, media_hosts: Set[str]) -> dict[str, Any]:
    source = block.get("source")
    match block.get("type"):
        case "text":
            return {"type": "text", "text": text_in(block.get("text"), f"{param}.text")}
        case "image":
            if media_hosts and isinstance(source, dict) and source.get("type") == "url":
                return picture(source.get("url"), f"{param}.source.url", media_hosts)
            if not isinstance(source, dict) or source.get("type") != "base64":
                raise wrong(f"{param}.source", "must be of type base64; Tollgate lets no backend fetch addresses")
            kind = one_of("image/jpeg", "image/png", "image/gif", "image/webp")(
                f"{param}.source.media_type", source.get("media_type")
            )
            return picture(f"data:{kind};base64,{text_in(source.get('data'), f'{param}.source.data')}", param)
        case "document":
            if not isinstance(source, dict) or source.get("type") != "text":
                raise wrong(f"{param}.source", "must be of type text; other documents are not read here")
            return {"type": "text", "text": text_in(source.get("data"), f"{param}.source.data")}
        case _:
            raise wrong(f"{param}.type", "must be text, image, document or tool_result")


def _tools_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    tools, choice = kept.get("tools", []), kept.get("tool_choice") or {}
    if not tools:
        if choice.get("type") in ("any", "tool"):
            raise InvalidRequest("'tool_choice' demands a tool, but there are no 'tools'.", param="tool_choice")
        return {}
    functions = [
        {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": tool["input_schema"],
            "strict": tool.get("strict"),
        }
        for tool in tools
    ]
    body: dict[str, Any] = {"tools": conversations.function_tools("tools", functions)}
    if choice.get("disable_parallel_tool_use"):
        body["parallel_tool_calls"] = False
    match choice.get("type"):
        case "tool":
            body["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
        case "any":
            body["tool_choice"] = "required"
        case "auto" | "none":
            body["tool_choice"] = choice["type"]
    return body


def _format_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    form = (config or {}).get("format")
    if not form:
        return {}
    schema = {"name": "answer", "schema": form["schema"], "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
