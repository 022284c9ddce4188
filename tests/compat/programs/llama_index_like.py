"""LlamaIndex's client for servers like OpenAI: chat, text completions, functions, objects and embeddings."""

from __future__ import annotations

import base64
import gc
from typing import Any

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.compat.programs.at import PICTURE, QUESTION, At, Told, error, get_weather, usage

MESSAGES = [ChatMessage(role="user", content=QUESTION)]


class Weather(BaseModel):
    """What a model is to fill in."""

    city: str
    degrees: int


def model_at(at: At, **options: Any) -> Any:
    """The client as it is, but for address and key; it is told what the model can do, since it cannot know."""
    named: dict[str, Any] = {"is_chat_model": True, "is_function_calling_model": True, "temperature": 0, **options}
    return OpenAILike(model=at.model, api_base=at.v1, api_key=at.api_key, context_window=4096, **named)


def used(answer: Any) -> Told:
    """This client leaves usage in the raw answer."""
    told = answer.raw.usage
    details = told.prompt_tokens_details
    return usage(told.prompt_tokens, told.completion_tokens, details.cached_tokens if details else None)


def chat(at: At) -> Told:
    """A plain answer."""
    answer = model_at(at, max_tokens=16).chat(MESSAGES)
    return {"text": answer.message.content, "usage": used(answer)}


async def chat_async(at: At) -> Told:
    """The asynchronous methods."""
    it = model_at(at)
    plain = await it.achat(MESSAGES)
    text = "".join([piece.delta or "" async for piece in await it.astream_chat(MESSAGES)])
    return {"text": text, "plain_text": plain.message.content}


def chat_stream(at: At) -> Told:
    """A streamed answer, with usage where it is asked for."""
    it = model_at(at, max_tokens=16, additional_kwargs={"stream_options": {"include_usage": True}})
    answer = list(it.stream_chat(MESSAGES))[-1]
    return {"text": answer.message.content, "usage": used(answer)}


def tools(at: At) -> Told:
    """A function and its result."""
    it, tool = model_at(at), FunctionTool.from_defaults(get_weather)
    first = it.chat_with_tools([tool], chat_history=MESSAGES)
    (call,) = it.get_tool_calls_from_response(first)
    result = ChatMessage(
        role="tool",
        content=str(tool(**call.tool_kwargs)),
        additional_kwargs={"tool_call_id": call.tool_id, "name": call.tool_name},
    )
    second = it.chat_with_tools([tool], chat_history=[*MESSAGES, first.message, result])
    return {
        "calls": [{"name": call.tool_name, "arguments": call.tool_kwargs}],
        "text": second.message.content,
    }


def structured(at: At) -> Told:
    """An object."""
    filled = model_at(at).structured_predict(Weather, PromptTemplate(QUESTION))
    return {"parsed": filled.model_dump()}


def pictures(at: At) -> Told:
    """A question about a picture."""
    picture = ImageBlock(image=base64.b64decode(PICTURE), image_mimetype="image/png")
    asked = ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), picture])
    return {"text": model_at(at).chat([asked]).message.content}


def completions(at: At) -> Told:
    """Text completions."""
    answer = model_at(at, is_chat_model=False, max_tokens=8).complete("Once upon")
    return {"text": answer.text, "usage": used(answer)}


def embeddings(at: At) -> Told:
    """Two vectors."""
    it = OpenAILikeEmbedding(model_name=at.model, api_base=at.v1, api_key=at.api_key)
    return {"vectors": it.get_text_embedding_batch(["one", "two and three"]), "usage": usage(None, None)}


def refused(at: At) -> Told:
    """The exception of a call that is not served."""
    try:
        model_at(at, max_retries=0).chat(MESSAGES)
    except Exception as raised:
        return {"error": error(raised)}
    return {"error": None}


def retried(at: At) -> Told:
    """A call that is refused at first."""
    return {"text": model_at(at).chat(MESSAGES).message.content}


def broken(at: At) -> Told:
    """An answer that cannot go on."""
    text = ""
    try:
        for piece in model_at(at).stream_chat(MESSAGES):
            text += piece.delta or ""
    except Exception as raised:
        return {"text": text, "error": error(raised)}
    return {"text": text, "error": None}


def timeout(at: At) -> Told:
    """A user who does not wait."""
    try:
        model_at(at, max_retries=0, timeout=0.5).chat(MESSAGES)
    except Exception as raised:
        return {"error": error(raised)}
    return {"error": None}


def cancelled(at: At) -> Told:
    """A user who has seen enough."""
    text = ""
    stream = model_at(at).stream_chat(MESSAGES)
    for piece in stream:
        text += piece.delta or ""
        if len(text) > 15:
            break
    # Nothing of this client ends the request; it ends when the interpreter collects what is left of the stream.
    del stream
    gc.collect()
    return {"text": text}
