"""LangChain's models for the OpenAI API: chat, responses and embeddings."""

from __future__ import annotations

from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.compat.programs import langchains
from tests.compat.programs.at import At, Told, usage


def model_at(at: At, **options: Any) -> Any:
    """Chat completions."""
    key = SecretStr(at.api_key)
    return ChatOpenAI(base_url=at.v1, api_key=key, model=at.model, temperature=0, stream_usage=True, **options)


def responses_at(at: At, **options: Any) -> Any:
    """Responses."""
    return model_at(at, use_responses_api=True, **options)


def chat(at: At) -> Told:
    """A plain answer."""
    return langchains.plain(model_at(at, max_tokens=16))


async def chat_async(at: At) -> Told:
    """The asynchronous methods."""
    return await langchains.later(model_at(at))


def chat_stream(at: At) -> Told:
    """A streamed answer."""
    return langchains.streamed(model_at(at, max_tokens=16))


def tools(at: At) -> Told:
    """A tool and its result."""
    return langchains.called(model_at(at))


def structured(at: At) -> Told:
    """An object."""
    return langchains.filled_in(model_at(at))


def pictures(at: At) -> Told:
    """A picture."""
    return langchains.seen(model_at(at))


def embeddings(at: At) -> Told:
    """Two vectors of texts; by default this client would send token ids of OpenAI's own vocabularies."""
    it = OpenAIEmbeddings(
        base_url=at.v1, api_key=SecretStr(at.api_key), model=at.model, check_embedding_ctx_length=False
    )
    return {"vectors": it.embed_documents(["one", "two and three"]), "usage": usage(None, None)}


def responses(at: At) -> Told:
    """A plain response."""
    return langchains.plain(responses_at(at, max_tokens=16))


def responses_stream(at: At) -> Told:
    """A streamed response."""
    return langchains.streamed(responses_at(at, max_tokens=16))


def responses_tools(at: At) -> Told:
    """A tool and its result."""
    return langchains.called(responses_at(at))


def responses_structured(at: At) -> Told:
    """An object."""
    return langchains.filled_in(responses_at(at))


def responses_pictures(at: At) -> Told:
    """A picture."""
    return langchains.seen(responses_at(at))


def responses_broken(at: At) -> Told:
    """A response that cannot go on."""
    return langchains.broke(responses_at(at))


def refused(at: At) -> Told:
    """The exception of a call that is not served."""
    return langchains.failed(model_at(at, max_retries=0))


def retried(at: At) -> Told:
    """A call that is refused at first."""
    return {"text": model_at(at).invoke("hi").text}


def broken(at: At) -> Told:
    """An answer that cannot go on."""
    return langchains.broke(model_at(at))


def timeout(at: At) -> Told:
    """A user who does not wait."""
    return langchains.failed(model_at(at, max_retries=0, timeout=0.5))


def cancelled(at: At) -> Told:
    """A user who has seen enough."""
    return langchains.left(model_at(at))


def standard_usage(at: At) -> Told:
    """LangChain's own tests."""
    return langchains.standard(model_at(at))
