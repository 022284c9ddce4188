"""What LangChain's chat models have in common, whoever's API they speak."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from pydantic import BaseModel

from tests.compat.programs.at import PICTURE, QUESTION, Told, error, get_weather, usage

STANDARD = ("test_usage_metadata", "test_usage_metadata_streaming")


class Weather(BaseModel):
    """What a model is to fill in."""

    city: str
    degrees: int


def used(message: Any) -> Told:
    """LangChain's usage metadata."""
    told = message.usage_metadata
    return usage(told["input_tokens"], told["output_tokens"], told.get("input_token_details", {}).get("cache_read"))


def plain(model: Any) -> Told:
    """`invoke`."""
    answer = model.invoke(QUESTION)
    return {"text": answer.text, "usage": used(answer)}


async def later(model: Any) -> Told:
    """`ainvoke` and `astream`."""
    answer = await model.ainvoke(QUESTION)
    return {"plain_text": answer.text, "text": "".join([chunk.text async for chunk in model.astream(QUESTION)])}


def streamed(model: Any) -> Told:
    """`stream`, all chunks added up."""
    whole = None
    for chunk in model.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return {"text": whole.text, "usage": used(whole)}


def called(model: Any) -> Told:
    """A tool, streamed, and its result."""
    tool = StructuredTool.from_function(get_weather)
    able = model.bind_tools([tool])
    question = HumanMessage(QUESTION)
    first = None
    for chunk in able.stream([question]):
        first = chunk if first is None else first + chunk
    assert first is not None
    (call,) = first.tool_calls
    second = able.invoke([question, first, tool.invoke(call)])
    return {"calls": [{"name": call["name"], "arguments": call["args"]}], "text": second.text}


def filled_in(model: Any, **options: Any) -> Told:
    """`with_structured_output`."""
    return {"parsed": model.with_structured_output(Weather, **options).invoke(QUESTION).model_dump()}


def seen(model: Any) -> Told:
    """A question about a picture."""
    picture = {"type": "image", "base64": PICTURE, "mime_type": "image/png"}
    return {"text": model.invoke([HumanMessage([{"type": "text", "text": QUESTION}, picture])]).text}


def broke(model: Any) -> Told:
    """A stream whose backend dies in the middle."""
    text = ""
    try:
        for chunk in model.stream(QUESTION):
            text += chunk.text
    except Exception as raised:
        return {"text": text, "error": error(raised)}
    return {"text": text, "error": None}


def failed(model: Any) -> Told:
    """The exception of a call that is not served."""
    try:
        model.invoke(QUESTION)
    except Exception as raised:
        return {"error": error(raised)}
    return {"error": None}


def left(model: Any) -> Told:
    """A user who has seen enough."""
    text = ""
    stream = model.stream(QUESTION)
    for chunk in stream:
        text += chunk.text
        if len(text) > 15:
            break
    stream.close()
    return {"text": text}


def standard(model: Any) -> Told:
    """LangChain's own tests of usage metadata."""

    # As its makers have one write it, but for the `class`: without LangChain at hand no type checker knows the parent.
    tests = type("Standard", (ChatModelIntegrationTests,), {"chat_model_class": type(model), "chat_model_params": {}})
    for name in STANDARD:
        getattr(tests(), name)(model)
    return {"passed": STANDARD}
