"""The Anthropic SDK for Python: messages, their streams and tools, counting, and how its exceptions come out."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.compat.programs.at import PICTURE, QUESTION, WEATHER_SCHEMA, At, Told, error, get_weather, usage

CONVERSATION: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"name": "get_weather", "description": "The weather in a city.", "input_schema": WEATHER_SCHEMA}
SURE = {"temperature": 0}
"""No parameter of this client any more; the random demo model says something at once only with it."""


def client(at: At, **options: Any) -> Any:
    """The client as it is, but for address and key."""
    return anthropic.Anthropic(base_url=at.base_url, api_key=at.api_key, **options)


def text_of(message: Any) -> str:
    """The text of a message."""
    return "".join(block.text for block in message.content if block.type == "text")


def of_message(told: Any) -> Told:
    """Usage of a message: Anthropic's `input_tokens` are those that neither came from a cache nor went into one."""
    cached = told.cache_read_input_tokens or 0
    return usage(told.input_tokens + cached + (told.cache_creation_input_tokens or 0), told.output_tokens, cached)


def create(at: At, *, client_options: dict[str, Any] | None = None, **more: Any) -> Any:
    """A message of few tokens."""
    it = client(at, **(client_options or {}))
    return it.messages.create(model=at.model, max_tokens=16, messages=CONVERSATION, **more)


def messages(at: At) -> Told:
    """A plain message."""
    answer = create(at, extra_body=SURE)
    return {
        "text": text_of(answer),
        "finish": answer.stop_reason,
        "usage": of_message(answer.usage),
        "request_id": answer._request_id,
    }


async def messages_async(at: At) -> Told:
    """The asynchronous client, plain and streamed."""
    async with anthropic.AsyncAnthropic(base_url=at.base_url, api_key=at.api_key) as it:
        plain = await it.messages.create(model=at.model, max_tokens=16, messages=CONVERSATION)
        async with it.messages.stream(model=at.model, max_tokens=16, messages=CONVERSATION) as stream:
            text = "".join([piece async for piece in stream.text_stream])
    return {"text": text, "plain_text": text_of(plain)}


def messages_stream(at: At) -> Told:
    """`stream()`, which follows every event."""
    it = client(at).messages
    with it.stream(model=at.model, max_tokens=16, messages=CONVERSATION, extra_body=SURE) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    return {
        "text": text_of(answer),
        "delta_text": text,
        "finish": answer.stop_reason,
        "usage": of_message(answer.usage),
        "request_id": stream.request_id,
    }


def messages_tools(at: At) -> Told:
    """A tool, streamed, and its result sent back."""
    it = client(at).messages
    with it.stream(model=at.model, max_tokens=64, messages=CONVERSATION, tools=[TOOL]) as stream:
        pieces = sum(event.type == "input_json" for event in stream)
        first = stream.get_final_message()
    (call,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": get_weather(**call.input)}
    history = [*CONVERSATION, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = it.create(model=at.model, max_tokens=64, messages=history, tools=[TOOL])
    return {
        "calls": [{"name": call.name, "arguments": call.input}],
        "finish": first.stop_reason,
        "pieces": pieces,
        "text": text_of(second),
    }


def messages_reasoning(at: At) -> Told:
    """What a model thinks before it speaks."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = client(at).messages.create(model=at.model, max_tokens=2048, messages=CONVERSATION, thinking=thinking)
    thought = "".join(block.thinking for block in answer.content if block.type == "thinking")
    return {"reasoning": thought, "text": text_of(answer)}


def messages_pictures(at: At) -> Told:
    """A question about a picture."""
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    parts: Any = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    asked: Any = [{"role": "user", "content": parts}]
    return {"text": text_of(client(at).messages.create(model=at.model, max_tokens=16, messages=asked))}


def messages_too_long(at: At) -> Told:
    """A conversation longer than the model's context."""
    long: Any = [{"role": "user", "content": "word " * 6_000}]
    try:
        with client(at).messages.stream(model=at.model, max_tokens=16, messages=long) as stream:
            stream.get_final_message()
    except anthropic.APIStatusError as raised:
        return {"error": error(raised), "type": raised.type, "request_id": raised.request_id}
    return {"error": None}


def count_tokens(at: At) -> Told:
    """The tokens of a conversation before and after it is paid for."""
    counted = client(at).messages.count_tokens(model=at.model, messages=CONVERSATION)
    create(at)
    return {"counted": counted.input_tokens}


def models(at: At) -> Told:
    """The list, and one of it."""
    it = client(at).models
    return {"models": [model.id for model in it.list()], "model": it.retrieve(at.model).id}


def messages_broken(at: At) -> Told:
    """A stream whose backend dies in the middle."""
    text = ""
    try:
        for event in create(at, stream=True):
            if event.type == "content_block_delta":
                text += event.delta.text
    except anthropic.APIError as raised:
        return {"text": text, "error": error(raised)}
    return {"text": text, "error": None}


def refused(at: At) -> Told:
    """The exception of a call that is not served; without retries."""
    try:
        create(at, client_options={"max_retries": 0})
    except anthropic.APIStatusError as raised:
        return {"error": error(raised), "request_id": raised.request_id}
    return {"error": None}


def retried(at: At) -> Told:
    """A call that is refused at first; with the client's own retries."""
    return {"text": text_of(create(at))}


def timeout(at: At) -> Told:
    """A client that does not wait."""
    try:
        create(at, client_options={"max_retries": 0, "timeout": 0.5})
    except anthropic.APITimeoutError as raised:
        return {"error": error(raised)}
    return {"error": None}


def cancelled(at: At) -> Told:
    """A user who has seen enough."""
    text = ""
    with client(at).messages.stream(model=at.model, max_tokens=2048, messages=CONVERSATION) as stream:
        for piece in stream.text_stream:
            text += piece
            if len(text) > 15:
                break
    return {"text": text}
