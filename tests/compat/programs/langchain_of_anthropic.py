"""LangChain's model for Anthropic's messages."""

from __future__ import annotations

from typing import Any

from langchain_anthropic import ChatAnthropic
from pydantic import SecretStr

from tests.compat.programs import langchains
from tests.compat.programs.at import At, Told


def model_at(at: At, **options: Any) -> Any:
    """Messages; this client knows the limits of Anthropic's own models only, so it is told one."""
    named: dict[str, Any] = {"model": at.model, "max_tokens": 16, **options}
    return ChatAnthropic(base_url=at.base_url, api_key=SecretStr(at.api_key), **named)


def messages(at: At) -> Told:
    """A plain message."""
    return langchains.plain(model_at(at, temperature=0))


async def messages_async(at: At) -> Told:
    """The asynchronous methods."""
    return await langchains.later(model_at(at))


def messages_stream(at: At) -> Told:
    """A streamed message."""
    return langchains.streamed(model_at(at, temperature=0))


def messages_tools(at: At) -> Told:
    """A tool and its result."""
    return langchains.called(model_at(at, max_tokens=64))


def messages_structured(at: At) -> Told:
    """An object."""
    return langchains.filled_in(model_at(at, max_tokens=64))


def messages_pictures(at: At) -> Told:
    """A picture."""
    return langchains.seen(model_at(at))


def messages_broken(at: At) -> Told:
    """A message that cannot go on."""
    return langchains.broke(model_at(at))


def refused(at: At) -> Told:
    """The exception of a call that is not served."""
    return langchains.failed(model_at(at, max_retries=0))


def retried(at: At) -> Told:
    """A call that is refused at first."""
    return {"text": model_at(at).invoke("hi").text}


def timeout(at: At) -> Told:
    """A user who does not wait."""
    return langchains.failed(model_at(at, max_retries=0, timeout=0.5))


def cancelled(at: At) -> Told:
    """A user who has seen enough."""
    return langchains.left(model_at(at, max_tokens=2048))


def standard_usage(at: At) -> Told:
    """LangChain's own tests."""
    return langchains.standard(model_at(at))
