"""openai-python: chat, responses, embeddings and text completions, and how its exceptions come out."""

from __future__ import annotations

import json
import uuid
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam
from pydantic import BaseModel

from tests.compat.programs.at import PICTURE, QUESTION, WEATHER_SCHEMA, At, Told, error, get_weather, usage

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": WEATHER_SCHEMA,
        "strict": True,
    },
}
RESPONSES_TOOL: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": WEATHER_SCHEMA,
    "strict": True,
}


class Weather(BaseModel):
    """What a model is to fill in."""

    city: str
    degrees: int


def client(at: At, **options: Any) -> openai.OpenAI:
    """The client as it is, but for address and key."""
    return openai.OpenAI(base_url=at.v1, api_key=at.api_key, **options)


def of_chat(told: Any) -> Told:
    """Usage of a chat or text completion."""
    details = told.prompt_tokens_details
    return usage(told.prompt_tokens, told.completion_tokens, details.cached_tokens if details else None)


def of_response(told: Any) -> Told:
    """Usage of a response."""
    return usage(told.input_tokens, told.output_tokens, told.input_tokens_details.cached_tokens)


# Chat ----------------------------------------------------------------------------------------------------------------


def chat(at: At) -> Told:
    """A plain answer."""
    answer = client(at).chat.completions.create(model=at.model, messages=MESSAGES, max_tokens=16, temperature=0)
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "model": answer.model,
        "usage": of_chat(answer.usage),
        "request_id": answer._request_id,
    }


async def chat_async(at: At) -> Told:
    """The asynchronous client, plain and streamed."""
    async with openai.AsyncOpenAI(base_url=at.v1, api_key=at.api_key) as it:
        plain = await it.chat.completions.create(model=at.model, messages=MESSAGES, max_tokens=16)
        stream = await it.chat.completions.create(model=at.model, messages=MESSAGES, max_tokens=16, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    return {"text": text, "plain_text": plain.choices[0].message.content}


def chat_stream(at: At) -> Told:
    """Chunks as they come, with usage at the end."""
    stream = client(at).chat.completions.create(
        model=at.model,
        messages=MESSAGES,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, finish, told = "", None, None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        told = chunk.usage or told
    return {
        "text": text,
        "finish": finish,
        "usage": of_chat(told),
        "request_id": stream.response.headers["x-request-id"],
    }


def chat_stream_helper(at: At) -> Told:
    """`stream()`, which puts the whole answer together."""
    events = []
    with client(at).chat.completions.stream(
        model=at.model, messages=MESSAGES, max_tokens=16, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        for event in stream:
            events.append(event.type)
        answer = stream.get_final_completion()
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "usage": of_chat(answer.usage),
        "events": sorted(set(events)),
    }


def chat_choices(at: At) -> Told:
    """Three answers at once, streamed by the helper."""
    with client(at).chat.completions.stream(
        model=at.model, messages=MESSAGES, max_tokens=8, temperature=0, n=3, stream_options={"include_usage": True}
    ) as stream:
        answer = stream.get_final_completion()
    return {"texts": [choice.message.content for choice in answer.choices], "usage": of_chat(answer.usage)}


def tools(at: At) -> Told:
    """A call of a function, its answer, and what the model makes of it."""
    it = client(at)
    first = it.chat.completions.create(model=at.model, messages=MESSAGES, tools=[TOOL], tool_choice="auto")
    message = first.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    result: ChatCompletionMessageParam = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": get_weather(**arguments),
    }
    said: Any = message.to_dict()
    second = it.chat.completions.create(model=at.model, messages=[*MESSAGES, said, result], tools=[TOOL])
    return {
        "calls": [{"name": call.function.name, "arguments": arguments}],
        "finish": first.choices[0].finish_reason,
        "text": second.choices[0].message.content,
    }


def tools_stream(at: At) -> Told:
    """The pieces of a call's arguments, put together by the helper."""
    pieces = []
    with client(at).chat.completions.stream(model=at.model, messages=MESSAGES, tools=[TOOL]) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                pieces.append(event.arguments_delta)
        choice = stream.get_final_completion().choices[0]
    assert choice.message.tool_calls is not None
    calls = [
        {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
        for call in choice.message.tool_calls
    ]
    return {"calls": calls, "finish": choice.finish_reason, "pieces": len(pieces)}


def structured(at: At) -> Told:
    """`parse()` with a pydantic class."""
    answer = client(at).chat.completions.parse(model=at.model, messages=MESSAGES, response_format=Weather)
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    return {"parsed": parsed.model_dump()}


def refusal(at: At) -> Told:
    """A model that refuses, plain and streamed."""
    it = client(at)
    answer = it.chat.completions.parse(model=at.model, messages=MESSAGES, response_format=Weather)
    with it.chat.completions.stream(model=at.model, messages=MESSAGES, response_format=Weather) as stream:
        streamed = stream.get_final_completion().choices[0].message.refusal
    return {"refusal": answer.choices[0].message.refusal, "streamed_refusal": streamed}


def pictures(at: At) -> Told:
    """A question about a picture."""
    parts: Any = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
    ]
    answer = client(at).chat.completions.create(model=at.model, messages=[{"role": "user", "content": parts}])
    return {"text": answer.choices[0].message.content}


def completions(at: At) -> Told:
    """Text completions."""
    answer = client(at).completions.create(model=at.model, prompt="Once upon", max_tokens=8, temperature=0)
    return {"text": answer.choices[0].text, "usage": of_chat(answer.usage), "request_id": answer._request_id}


def embeddings(at: At) -> Told:
    """Two vectors, which this client asks for in base64."""
    answer = client(at).embeddings.create(model=at.model, input=["one", "two and three"])
    return {
        "vectors": [vector.embedding for vector in answer.data],
        "usage": usage(answer.usage.prompt_tokens, 0),
        "request_id": answer._request_id,
    }


def models(at: At) -> Told:
    """The list, and one of it."""
    it = client(at)
    return {"models": [model.id for model in it.models.list()], "model": it.models.retrieve(at.model).id}


# Responses -----------------------------------------------------------------------------------------------------------


def responses(at: At) -> Told:
    """A plain response."""
    answer = client(at).responses.create(model=at.model, input=QUESTION, max_output_tokens=16, temperature=0)
    return {
        "text": answer.output_text,
        "finish": answer.status,
        "usage": of_response(answer.usage),
        "request_id": answer._request_id,
    }


def responses_stream(at: At) -> Told:
    """`stream()`, which follows every event."""
    events, numbers, text = [], [], ""
    with client(at).responses.stream(model=at.model, input=QUESTION, max_output_tokens=16, temperature=0) as stream:
        for event in stream:
            events.append(event.type)
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
        answer = stream.get_final_response()
    return {
        "text": answer.output_text,
        "delta_text": text,
        "finish": answer.status,
        "usage": of_response(answer.usage),
        "events": events,
        "numbers": numbers,
    }


def responses_stored(at: At) -> Told:
    """A response that is kept, gone on from, and deleted."""
    it = client(at).responses
    first = it.create(model=at.model, input=QUESTION, store=True)
    second = it.create(model=at.model, input="And in Rome?", previous_response_id=first.id)
    again = it.retrieve(first.id)
    it.delete(first.id)
    try:
        it.retrieve(first.id)
        is_gone = False
    except openai.NotFoundError:
        is_gone = True
    return {"text": second.output_text, "again": again.output_text, "is_gone": is_gone}


def responses_tools(at: At) -> Told:
    """A function call as an item, and its output sent back."""
    it = client(at)
    with it.responses.stream(model=at.model, input=QUESTION, tools=[RESPONSES_TOOL]) as stream:
        pieces = sum(event.type == "response.function_call_arguments.delta" for event in stream)
        first = stream.get_final_response()
    (call,) = [item for item in first.output if item.type == "function_call"]
    arguments = json.loads(call.arguments)
    history: Any = [
        {"role": "user", "content": QUESTION},
        *(item.to_dict() for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": get_weather(**arguments)},
    ]
    second = it.responses.create(model=at.model, input=history, tools=[RESPONSES_TOOL])
    return {
        "calls": [{"name": call.name, "arguments": arguments}],
        "pieces": pieces,
        "text": second.output_text,
    }


def responses_structured(at: At) -> Told:
    """`responses.parse()` with a pydantic class."""
    answer = client(at).responses.parse(model=at.model, input=QUESTION, text_format=Weather)
    assert answer.output_parsed is not None
    return {"parsed": answer.output_parsed.model_dump()}


def responses_refusal(at: At) -> Told:
    """A model that refuses."""
    with client(at).responses.stream(model=at.model, input=QUESTION, text_format=Weather) as stream:
        pieces = [event.delta for event in stream if event.type == "response.refusal.delta"]
        (message,) = stream.get_final_response().output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "refusal"
    assert part.refusal == "".join(pieces)
    return {"refusal": part.refusal}


def responses_reasoning(at: At) -> Told:
    """What a model thinks before it speaks."""
    answer = client(at).responses.create(model=at.model, input=QUESTION)
    thoughts = [item.content or [] for item in answer.output if item.type == "reasoning"]
    assert answer.usage is not None
    return {
        "reasoning": "".join(part.text for thought in thoughts for part in thought),
        "text": answer.output_text,
        "usage": {"reasoning": answer.usage.output_tokens_details.reasoning_tokens},
    }


def responses_pictures(at: At) -> Told:
    """A question about a picture."""
    parts: Any = [
        {"type": "input_text", "text": QUESTION},
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PICTURE}"},
    ]
    answer = client(at).responses.create(model=at.model, input=[{"role": "user", "content": parts}])
    return {"text": answer.output_text}


def responses_counted(at: At) -> Told:
    """The tokens of a conversation before and after it is paid for."""
    it = client(at).responses
    counted = it.input_tokens.count(model=at.model, input=QUESTION)
    it.create(model=at.model, input=QUESTION, max_output_tokens=16)
    return {"counted": counted.input_tokens}


def responses_broken(at: At) -> Told:
    """A response whose backend dies in the middle."""
    text = ""
    try:
        for event in client(at).responses.create(model=at.model, input=QUESTION, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.failed" and event.response.error is not None:
                return {"text": text, "error": {"message": event.response.error.message}}
    except openai.APIError as raised:
        return {"text": text, "error": error(raised)}
    return {"text": text, "error": None}


# Failures ------------------------------------------------------------------------------------------------------------


def refused(at: At) -> Told:
    """The exception of a call that is not served; without retries."""
    try:
        client(at, max_retries=0).chat.completions.create(model=at.model, messages=MESSAGES, max_tokens=16)
    except openai.APIStatusError as raised:
        return {"error": error(raised), "request_id": raised.request_id}
    return {"error": None}


def retried(at: At) -> Told:
    """A call that is refused at first; with the client's own retries."""
    answer = client(at).chat.completions.create(model=at.model, messages=MESSAGES, max_tokens=16)
    return {"text": answer.choices[0].message.content}


def idempotent(at: At) -> Told:
    """The same call, sent twice under one key."""
    it, key = client(at).chat.completions, {"Idempotency-Key": str(uuid.uuid4())}
    answers = [it.create(model=at.model, messages=MESSAGES, max_tokens=16, extra_headers=key) for _ in range(2)]
    return {"texts": [answer.choices[0].message.content for answer in answers], "ids": [one.id for one in answers]}


def broken(at: At) -> Told:
    """A stream whose backend dies in the middle."""
    text = ""
    try:
        for chunk in client(at).chat.completions.create(model=at.model, messages=MESSAGES, stream=True):
            text += chunk.choices[0].delta.content or ""
    except openai.APIError as raised:
        return {"text": text, "error": error(raised)}
    return {"text": text, "error": None}


def timeout(at: At) -> Told:
    """A client that does not wait."""
    try:
        client(at, max_retries=0, timeout=0.5).chat.completions.create(model=at.model, messages=MESSAGES)
    except openai.APITimeoutError as raised:
        return {"error": error(raised)}
    return {"error": None}


def cancelled(at: At) -> Told:
    """A user who has seen enough."""
    text = ""
    with client(at).chat.completions.create(model=at.model, messages=MESSAGES, stream=True) as stream:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if len(text) > 10:
                break
    return {"text": text}
