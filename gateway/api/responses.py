"""Requests of the Responses API (`/v1/responses`): items become the messages of a chat. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from gateway.api import conversations, parameters
from gateway.api.conversations import content_of, objects_in, picture, text_in
from gateway.api.parameters import Check, boolean, bounded, dropped, integer, number, one_of, only, refused, wrong
from models.call import CallRequest, Endpoint
from models.errors import InvalidRequest

_KEPT_INCLUDES: Final = frozenset({"message.output_text.logprobs", "reasoning.encrypted_content"})
MAX_KEPT_BYTES: Final = 20_000_000
"""Each turn is kept with all before it, and read again for the next. A first turn is as long as its body at most."""
_HOSTED: Final = "hosted tools do not run here; only tools of type function, which your program runs"


def _input(param: str, value: Any) -> Any:
    """Text, or a list of items: messages, function calls and their outputs, reasoning."""
    if not isinstance(value, str):
        objects_in(value, param, parameters.MAX_MESSAGES)
        if not value:
            raise wrong(param, "must be a string or a list of items")
    return value


def _metadata(param: str, value: Any) -> Any:
    """At most 16 pairs of text; told again with the response."""
    parameters.metadata(param, value)
    for name, item in value.items():
        if len(name) > 64 or not isinstance(item, str) or len(item) > 512:
            raise wrong(param, "must map names of at most 64 characters to texts of at most 512")
    return value


def _text(param: str, value: Any) -> Any:
    """The format of the answer: text, json_object, or json_schema with a schema of bounded size."""
    if not isinstance(value, dict) or not isinstance(value.get("format") or {}, dict):
        raise wrong(param, "must be an object with a format")
    form = value.get("format") or {"type": "text"}
    one_of("text", "json_object", "json_schema")(f"{param}.format.type", form.get("type"))
    if form["type"] == "json_schema" and not isinstance(form.get("schema"), dict):
        raise wrong(f"{param}.format.schema", "must be an object")
    bounded(f"{param}.format", form)
    return value


def _tools(param: str, value: Any) -> Any:
    """Tools of type function; hosted tools do not run here."""
    for index, tool in enumerate(objects_in(value, param, parameters.MAX_TOOLS)):
        if tool.get("type") != "function":
            raise wrong(f"{param}[{index}].type", f"is not supported: {_HOSTED}")
        text_in(tool.get("name"), f"{param}[{index}].name")
    return value


def _tool_choice(param: str, value: Any) -> Any:
    """none, auto, required, a function, or allowed_tools."""
    if isinstance(value, str):
        return one_of("none", "auto", "required")(param, value)
    if not isinstance(value, dict):
        raise wrong(param, "must be none, auto, required or an object")
    one_of("function", "allowed_tools")(f"{param}.type", value.get("type"))
    if value["type"] == "function":
        text_in(value.get("name"), f"{param}.name")
    else:
        one_of("auto", "required")(f"{param}.mode", value.get("mode"))
        for index, tool in enumerate(objects_in(value.get("tools"), f"{param}.tools", parameters.MAX_TOOLS)):
            text_in(tool.get("name"), f"{param}.tools[{index}].name")
    return value


def _reasoning(param: str, value: Any) -> Any:
    """An object; `effort` goes to the model."""
    if not isinstance(value, dict):
        raise wrong(param, "must be an object")
    effort = value.get("effort")
    if effort is not None:
        parameters.CHAT["reasoning_effort"](f"{param}.effort", effort)
    return value


def _include(param: str, value: Any) -> Any:
    """`message.output_text.logprobs` and `reasoning.encrypted_content`; the second adds nothing."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item in _KEPT_INCLUDES for item in value):
        raise wrong(param, f"may hold only {', '.join(sorted(_KEPT_INCLUDES))}")
    return value


def _stream_options(param: str, value: Any) -> Any:
    """`include_obfuscation`, which changes nothing here."""
    if not isinstance(value, dict) or value.keys() - {"include_obfuscation"}:
        raise wrong(param, "may hold only include_obfuscation")
    return parameters.DROP


_TEXT: Final = parameters.string(conversations.MAX_TEXT)
_ID: Final = parameters.string(128)
RESPONSES: Final[Mapping[str, Check]] = {
    "model": parameters.string(256),
    "input": _input,
    "instructions": _TEXT,
    "max_output_tokens": integer(1, parameters.MAX_TOKENS),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_logprobs": integer(0, 20),
    "stream": boolean,
    "stream_options": _stream_options,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": boolean,
    "max_tool_calls": dropped(integer(1, 1_000_000)),
    "text": _text,
    "reasoning": _reasoning,
    "include": _include,
    "store": boolean,
    "previous_response_id": _ID,
    "metadata": _metadata,
    "user": parameters.end_user,
    "safety_identifier": parameters.end_user,
    "prompt_cache_key": dropped(parameters.string()),
    "prompt_cache_retention": dropped(parameters.string(32)),
    "prompt_cache_options": dropped(parameters.mapping),
    "moderation": refused("send the text to /v1/moderations"),
    "access_programs": refused("there are none here"),
    "background_options": refused("answers are given while the client waits"),
    "image": refused("pictures are sent as they are"),
    "truncation": only("disabled", why="a conversation is never shortened unseen; send a shorter one"),
    "background": only(False, why="answers are given while the client waits; /v1/batches runs calls without one"),
    "service_tier": only("auto", "default", why="there is one tier"),
    "conversation": refused("send previous_response_id or the items"),
    "prompt": refused("prompt templates are not kept here; send instructions and input"),
    "context_management": refused("send a shorter conversation"),
}


def read(
    decoded: Mapping[str, Any], history: Sequence[dict[str, Any]] = (), media_hosts: Set[str] = frozenset()
) -> CallRequest:
    """The call that a request asks for; `history` are the items of the response that it goes on from."""
    kept = parameters.checked(decoded, RESPONSES)
    own = kept["input"]
    items = [*history, *([{"type": "message", "role": "user", "content": own}] if isinstance(own, str) else own)]
    if len(items) > parameters.MAX_MESSAGES:
        raise wrong("input", f"may make a conversation of at most {parameters.MAX_MESSAGES} items")
    if history and kept.get("store") and conversations.size_of(items) > MAX_KEPT_BYTES:
        raise wrong(
            "store", f"would keep a conversation of more than {MAX_KEPT_BYTES} bytes; begin a new one, or leave it out"
        )
    messages = _messages(items, len(history), media_hosts)
    if not messages:
        raise wrong("input", "must hold a message")
    body: dict[str, Any] = {"messages": conversations.with_system(messages, kept.get("instructions"))}
    body |= {name: kept[name] for name in ("temperature", "top_p", "parallel_tool_calls") if name in kept}
    body |= _tools_of(kept) | _format_of(kept.get("text"))
    if effort := (kept.get("reasoning") or {}).get("effort"):
        body["reasoning_effort"] = effort
    if "message.output_text.logprobs" in kept.get("include", ()):
        body |= {"logprobs": True, "top_logprobs": kept.get("top_logprobs", 0)}
    return conversations.chat_call(
        Endpoint.RESPONSES,
        kept["model"],
        body,
        stream=kept.get("stream", False),
        max_output_tokens=kept.get("max_output_tokens"),
        end_user=decoded.get("user") or decoded.get("safety_identifier"),
        echo=_echo(kept, decoded),
        stored_input=items if kept.get("store") else None,
    )


def _echo(kept: Mapping[str, Any], decoded: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request, with the values that hold where nothing was said."""
    text, reasoning = kept.get("text") or {}, kept.get("reasoning") or {}
    return {
        "background": False,
        "instructions": kept.get("instructions"),
        "max_output_tokens": kept.get("max_output_tokens"),
        "max_tool_calls": decoded.get("max_tool_calls"),
        "metadata": kept.get("metadata", {}),
        "parallel_tool_calls": kept.get("parallel_tool_calls", True),
        "previous_response_id": kept.get("previous_response_id"),
        "prompt_cache_key": decoded.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "safety_identifier": decoded.get("safety_identifier"),
        "service_tier": "default",
        "store": bool(kept.get("store")),
        "temperature": kept.get("temperature", 1),
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": kept.get("tool_choice", "auto"),
        "tools": kept.get("tools", []),
        "top_logprobs": kept.get("top_logprobs", 0),
        "top_p": kept.get("top_p", 1),
        "truncation": "disabled",
        "user": decoded.get("user"),
    }


# Items ---------------------------------------------------------------------------------------------------------------


def _messages(items: Sequence[dict[str, Any]], own_from: int, media_hosts: Set[str]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for place, item in enumerate(items):
        param = f"input[{place - own_from}]"
        match item.get("type", "message"):
            case "message":
                messages.append(_message(item, param, media_hosts))
            case "function_call":
                name, arguments = text_in(item.get("name"), f"{param}.name"), item.get("arguments")
                call_id = text_in(item.get("call_id"), f"{param}.call_id")
                conversations.add_tool_call(messages, call_id, name, text_in(arguments, f"{param}.arguments"))
            case "function_call_output":
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": text_in(item.get("call_id"), f"{param}.call_id"),
                        "content": _content(item.get("output"), f"{param}.output", media_hosts),
                    }
                )
            case "reasoning":
                # A template decides what a model sees of its earlier thoughts, and most of them leave these out.
                continue
            case "item_reference":
                raise wrong(param, "is a reference; send the item itself, or previous_response_id")
            case _:
                raise wrong(
                    f"{param}.type", "must be message, function_call, function_call_output or reasoning: " + _HOSTED
                )
    return messages


def _message(item: dict[str, Any], param: str, media_hosts: Set[str]) -> dict[str, Any]:
    role = one_of("user", "assistant", "system", "developer")(f"{param}.role", item.get("role"))
    content = _content(item.get("content"), f"{param}.content", media_hosts)
    # No template of an open model knows a developer.
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(value: Any, param: str, media_hosts: Set[str]) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return value
    parts = objects_in(value, param, parameters.MAX_MESSAGES)
    if not parts:
        raise wrong(param, "must be a string or a list of parts")
    return content_of([_part(part, f"{param}[{place}]", media_hosts) for place, part in enumerate(parts)])


def _part(part: dict[str, Any], param: str, media_hosts: Set[str]) -> dict[str, Any]:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": text_in(part.get("text"), f"{param}.text")}
        case "refusal":
            return {"type": "text", "text": text_in(part.get("refusal"), f"{param}.refusal")}
        case "input_image":
            if part.get("file_id") is not None:
                raise wrong(f"{param}.file_id", "is not supported: send the picture as a data: URL")
            return picture(part.get("image_url"), f"{param}.image_url", media_hosts)
        case "input_audio":
            sound = part.get("input_audio")
            if not isinstance(sound, dict) or not isinstance(sound.get("data"), str):
                raise wrong(f"{param}.input_audio", "must be an object with base64 data")
            return {"type": "input_audio", "input_audio": sound}
        case _:
            raise wrong(f"{param}.type", "must be input_text, input_image, input_audio, output_text or refusal")


# Tools and formats ---------------------------------------------------------------------------------------------------


def _tools_of(kept: Mapping[str, Any]) -> dict[str, Any]:
    tools, choice = kept.get("tools", []), kept.get("tool_choice")
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        allowed = {tool["name"] for tool in choice["tools"]}
        tools, choice = [tool for tool in tools if tool.get("name") in allowed], choice["mode"]
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("'tool_choice' demands a tool, but there are no 'tools'.", param="tool_choice")
        return {}
    names = ("name", "description", "parameters", "strict")
    functions = [{name: tool[name] for name in names if name in tool} for tool in tools]
    body: dict[str, Any] = {"tools": conversations.function_tools("tools", functions)}
    if isinstance(choice, dict):
        body["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif choice is not None:
        body["tool_choice"] = choice
    return body


def _format_of(text: Mapping[str, Any] | None) -> dict[str, Any]:
    form = (text or {}).get("format")
    if not form or form["type"] == "text":
        return {}
    if form["type"] == "json_object":
        return {"response_format": {"type": "json_object"}}
    names = ("name", "description", "schema", "strict")
    schema = {name: form[name] for name in names if form.get(name) is not None}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", **schema}}}
