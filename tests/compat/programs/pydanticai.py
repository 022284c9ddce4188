"""Pydantic AI: agents over its models for OpenAI's chat, OpenAI's responses and Anthropic's messages."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelAPIError, ModelHTTPError, Tool
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.compat.programs.at import PICTURE, QUESTION, At, Told, error, usage
from tests.compat.programs.at import get_weather as weather_in

FEW: Any = ModelSettings(max_tokens=16, temperature=0)


class Weather(BaseModel):
    """What a model is to fill in."""

    city: str
    degrees: int


def of_openai(at: At) -> Any:
    """Chat completions."""
    return OpenAIChatModel(at.model, provider=OpenAIProvider(base_url=at.v1, api_key=at.api_key))


def of_responses(at: At) -> Any:
    """Responses."""
    return OpenAIResponsesModel(at.model, provider=OpenAIProvider(base_url=at.v1, api_key=at.api_key))


def of_anthropic(at: At) -> Any:
    """Messages."""
    return AnthropicModel(at.model, provider=AnthropicProvider(base_url=at.base_url, api_key=at.api_key))


def used(told: Any) -> Told:
    """Usage of a run of an agent."""
    return usage(told.input_tokens, told.output_tokens, told.cache_read_tokens)


async def plain(model: Any) -> Told:
    """An agent's answer."""
    answer = await Agent(model, model_settings=FEW).run(QUESTION)
    return {"text": answer.output, "usage": used(answer.usage)}


async def streamed(model: Any) -> Told:
    """An agent's answer as it comes."""
    async with Agent(model, model_settings=FEW).run_stream(QUESTION) as answer:
        text = "".join([piece async for piece in answer.stream_text(delta=True, debounce_by=None)])
        return {"text": text, "usage": used(answer.usage)}


async def called(model: Any) -> Told:
    """An agent that may call a function, and does."""
    calls = []

    def get_weather(city: str) -> str:
        calls.append({"name": "get_weather", "arguments": {"city": city}})
        return weather_in(city)

    answer = await Agent(model, tools=[Tool(get_weather)]).run(QUESTION)
    return {"calls": calls, "text": answer.output}


async def filled_in(model: Any) -> Told:
    """An agent whose answer is an object."""
    return {"parsed": (await Agent(model, output_type=Weather).run(QUESTION)).output.model_dump()}


async def seen(model: Any) -> Told:
    """A question about a picture."""
    picture = BinaryContent(base64.b64decode(PICTURE), media_type="image/png")
    return {"text": (await Agent(model, model_settings=FEW).run([QUESTION, picture])).output}


async def thought(model: Any) -> Told:
    """What a model thinks before it speaks."""
    answer = await Agent(model).run(QUESTION)
    thoughts = "".join(part.content for part in answer.response.parts if part.part_kind == "thinking")
    told = {"reasoning": answer.usage.details.get("reasoning_tokens")}
    return {"reasoning": thoughts, "text": answer.output, "usage": told}


async def broke(model: Any) -> Told:
    """A stream whose backend dies in the middle."""
    text = ""
    try:
        async with Agent(model, retries=0).run_stream(QUESTION) as answer:
            async for piece in answer.stream_text(delta=True, debounce_by=None):
                text += piece
    except Exception as raised:
        return {"text": text, "error": error(raised)}
    return {"text": text, "error": None}


async def chat(at: At) -> Told:
    """A plain answer."""
    return await plain(of_openai(at))


async def chat_stream(at: At) -> Told:
    """A streamed answer."""
    return await streamed(of_openai(at))


async def tools(at: At) -> Told:
    """A function and its result."""
    return await called(of_openai(at))


async def structured(at: At) -> Told:
    """An object."""
    return await filled_in(of_openai(at))


async def reasoning(at: At) -> Told:
    """Thoughts."""
    return await thought(of_openai(at))


async def pictures(at: At) -> Told:
    """A picture."""
    return await seen(of_openai(at))


async def responses(at: At) -> Told:
    """A plain response."""
    return await plain(of_responses(at))


async def responses_stream(at: At) -> Told:
    """A streamed response."""
    return await streamed(of_responses(at))


async def responses_tools(at: At) -> Told:
    """A function and its result."""
    return await called(of_responses(at))


async def responses_structured(at: At) -> Told:
    """An object."""
    return await filled_in(of_responses(at))


async def responses_pictures(at: At) -> Told:
    """A picture."""
    return await seen(of_responses(at))


async def responses_broken(at: At) -> Told:
    """A response that cannot go on."""
    return await broke(of_responses(at))


async def messages(at: At) -> Told:
    """A plain message."""
    return await plain(of_anthropic(at))


async def messages_stream(at: At) -> Told:
    """A streamed message."""
    return await streamed(of_anthropic(at))


async def messages_tools(at: At) -> Told:
    """A tool and its result."""
    return await called(of_anthropic(at))


async def messages_structured(at: At) -> Told:
    """An object."""
    return await filled_in(of_anthropic(at))


async def messages_reasoning(at: At) -> Told:
    """Thoughts."""
    return await thought(of_anthropic(at))


async def messages_pictures(at: At) -> Told:
    """A picture."""
    return await seen(of_anthropic(at))


async def messages_broken(at: At) -> Told:
    """A message that cannot go on."""
    return await broke(of_anthropic(at))


async def refused(at: At) -> Told:
    """The exception of a call that is not served."""
    try:
        await Agent(of_openai(at)).run(QUESTION)
    except ModelHTTPError as raised:
        return {"error": error(raised)}
    return {"error": None}


async def retried(at: At) -> Told:
    """A call that is refused at first."""
    return {"text": (await Agent(of_openai(at)).run(QUESTION)).output}


async def broken(at: At) -> Told:
    """An answer that cannot go on."""
    return await broke(of_openai(at))


async def timeout(at: At) -> Told:
    """A user who does not wait."""
    provider = OpenAIProvider(base_url=at.v1, api_key=at.api_key)
    provider.client.max_retries = 0
    try:
        await Agent(OpenAIChatModel(at.model, provider=provider), model_settings=ModelSettings(timeout=0.5)).run(
            QUESTION
        )
    except ModelAPIError as raised:
        return {"error": error(raised)}
    return {"error": None}


async def cancelled(at: At) -> Told:
    """A user who has seen enough."""
    text = ""
    async with Agent(of_openai(at)).run_stream(QUESTION) as answer:
        async for piece in answer.stream_text(delta=True, debounce_by=None):
            text += piece
            if len(text) > 15:
                await answer.cancel()
                break
    return {"text": text}
