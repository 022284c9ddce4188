"""What the other engines send, written from their sources, is asked for and read as they mean it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.requests import parse
from gateway.backends import DIALECTS
from gateway.calls.commands import Connect, SendBody, Settle
from models.call import Charge, Endpoint, Hold
from models.catalog import BackendKind
from models.errors import InvalidRequest
from tests.unit.samples import deployment, make_call

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    return event(id="1", choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish}], **more)


def usage(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


DONE = b"data: [DONE]\n\n"
VLLM = (
    delta("", usage=usage(9, 0)),
    delta("a", usage=usage(9, 1)),
    delta("b", finish="stop", usage=usage(9, 2)),
    event(id="1", choices=[], usage=usage(9, 2, prompt_tokens_details={"cached_tokens": 4, "created_cache_tokens": 2})),
    DONE,
)
SGLANG = (
    delta("a", usage=usage(9, 1)),
    delta("", finish="stop", usage=usage(9, 5, reasoning_tokens=3)),
    event(id="1", choices=[], usage=usage(9, 5, reasoning_tokens=3)),
    DONE,
)
OLLAMA = (
    delta("a", usage=usage(0, 0)),
    delta("", finish="stop", usage=usage(0, 0)),
    event(id="1", choices=[], usage=usage(9, 2)),
    DONE,
)
TGI = (delta("a"), delta("b", finish="length", usage=usage(9, 2)), b"data: [DONE]\n\n")
OPENAI = (delta("a"), delta("", finish="stop"), event(choices=[], usage=usage(9, 2)), DONE)


def played(kind: BackendKind, events: tuple[bytes, ...], **more: Any) -> tuple[dict[str, Any], Charge, bytes]:
    """The body that went upstream, the charge, and what the client got."""
    call = make_call(parse(Endpoint.CHAT_COMPLETIONS, json.dumps({**CHAT, **more}).encode()), (deployment(kind),))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    call.upstream_head(200, b"text/event-stream")
    call.upstream_bytes(b"".join(events))
    call.settled()
    said = call.take()
    (connect,) = [command for command in said if isinstance(command, Connect)]
    (charge,) = [command.charge for command in said if isinstance(command, Settle)]
    return json.loads(connect.body), charge, b"".join(one.data for one in said if isinstance(one, SendBody))


@pytest.mark.parametrize(
    ("kind", "stream", "tokens"),
    [
        pytest.param(BackendKind.VLLM, VLLM, (9, 4, 2, 2, 0), id="vLLM"),
        pytest.param(BackendKind.SGLANG, SGLANG, (9, 0, 0, 5, 3), id="SGLang"),
        pytest.param(BackendKind.OLLAMA, OLLAMA, (9, 0, 0, 2, 0), id="Ollama"),
        pytest.param(BackendKind.TGI, TGI, (9, 0, 0, 2, 0), id="TGI"),
        pytest.param(BackendKind.OPENAI, OPENAI, (9, 0, 0, 2, 0), id="another server"),
    ],
)
def test_usage_is_read_as_it_is_meant(
    kind: BackendKind, stream: tuple[bytes, ...], tokens: tuple[int, int, int, int, int]
) -> None:
    asked, charge, body = played(kind, stream, stream=True)
    assert asked["stream"] is True
    assert asked["stream_options"]["include_usage"] is True
    assert tokens == (
        charge.input_tokens,
        charge.cached_tokens,
        charge.cache_write_tokens,
        charge.output_tokens,
        charge.reasoning_tokens,
    )
    assert charge.flags == ()
    assert b'"usage":{' not in body


@pytest.mark.parametrize("kind", BackendKind)
def test_a_limit_is_sent_where_the_engine_needs_one(kind: BackendKind) -> None:
    stream = OPENAI if kind is not BackendKind.LLAMACPP else (delta("a", finish="stop"), *OPENAI[2:])
    assert played(kind, stream, max_tokens=7)[0]["max_tokens"] == 7
    without = played(kind, stream)[0]
    # vLLM and SGLang refuse more than the context leaves, and know that number better than we do.
    assert ("max_tokens" in without) == DIALECTS[kind].needs_max_tokens


@pytest.mark.parametrize(
    "more", [pytest.param({"tool_choice": "auto"}, id="auto"), pytest.param({"logprobs": False}, id="no logprobs")]
)
def test_what_asks_for_no_more_than_an_engine_does_anyway_is_taken(more: dict[str, Any]) -> None:
    """The AI SDK says so with every tool."""
    request = parse(Endpoint.CHAT_COMPLETIONS, json.dumps({**CHAT, **more}).encode())
    DIALECTS[BackendKind.OLLAMA].check(request)


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        pytest.param(BackendKind.OLLAMA, {"n": 2}, "n", id="Ollama answers one choice whatever n is"),
        pytest.param(BackendKind.OLLAMA, {"logit_bias": {"5": 1}}, "logit_bias", id="Ollama ignores biases"),
        pytest.param(BackendKind.TGI, {"n": 2}, "n", id="TGI too"),
        pytest.param(BackendKind.LLAMACPP, {"reasoning_effort": "low"}, "reasoning_effort", id="llama.cpp ignores it"),
    ],
)
def test_what_an_engine_would_ignore_is_refused(kind: BackendKind, more: dict[str, Any], param: str) -> None:
    request = parse(Endpoint.CHAT_COMPLETIONS, json.dumps({**CHAT, **more}).encode())
    with pytest.raises(InvalidRequest) as caught:
        DIALECTS[kind].check(request)
    assert caught.value.param == param
