"""What a chat model can say beside text reaches the client, in a stream and in one object; and it is paid for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.requests import parse
from gateway.calls.commands import Connect, SendBody
from models.call import Endpoint, Hold
from models.catalog import BackendKind
from tests.unit.samples import deployment, make_call

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "logprobs": True,
    "top_logprobs": 2,
    "reasoning_effort": "low",
}
LOGPROBS = {"content": [{"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}]}
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
DELTAS: list[dict[str, Any]] = [
    {"delta": {"role": "assistant", "reasoning_content": "let me "}},
    {"delta": {"reasoning_content": "think"}},
    {"delta": {"content": "x"}, "logprobs": LOGPROBS},
    {"delta": {"tool_calls": [CALL]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}, "finish_reason": "tool_calls"},
]
USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "completion_tokens_details": {"reasoning_tokens": 4}}


def played(stream: bool) -> tuple[dict[str, Any], str]:
    """What went upstream, and what the client got."""
    body = ASKED | ({"stream": True} if stream else {})
    call = make_call(parse(Endpoint.CHAT_COMPLETIONS, json.dumps(body).encode()), (deployment(BackendKind.VLLM),))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    call.upstream_head(200, b"text/event-stream")
    events = [{"id": "c", "choices": [{"index": 0, "finish_reason": None, **delta}]} for delta in DELTAS]
    for event in [*events, {"id": "c", "choices": [], "usage": USAGE}]:
        call.upstream_bytes(b"data: " + json.dumps(event).encode() + b"\n\n")
    call.upstream_bytes(b"data: [DONE]\n\n")
    call.settled()
    said = call.take()
    assert call.charge is not None
    assert (call.charge.output_tokens, call.charge.reasoning_tokens) == (12, 4)
    (asked,) = [json.loads(command.body) for command in said if isinstance(command, Connect)]
    return asked, b"".join(command.data for command in said if isinstance(command, SendBody)).decode()


def test_in_one_object() -> None:
    asked, told = played(stream=False)
    assert {name: asked[name] for name in ASKED if name != "model"} == {
        name: value for name, value in ASKED.items() if name != "model"
    }
    (choice,) = json.loads(told)["choices"]
    assert choice["logprobs"] == LOGPROBS
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "refusal": None,
        "content": "x",
        "reasoning_content": "let me think",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }


@pytest.mark.parametrize("delta", DELTAS, ids=range(len(DELTAS)))
def test_in_a_stream(delta: dict[str, Any]) -> None:
    _, told = played(stream=True)
    assert json.dumps(delta["delta"]) in told
    assert (json.dumps(LOGPROBS) in told) == any("logprobs" in one for one in DELTAS)
