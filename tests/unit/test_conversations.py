"""The Responses and the Messages API as chats, and chats as their answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.requests import parse, read
from gateway.calls.commands import SendBody, SendError
from gateway.calls.metering import OwnCount
from models.call import CallRequest, Endpoint, Hold
from models.catalog import BackendKind
from models.errors import BackendFailed, InvalidRequest
from models.usage import Ending
from tests.unit.samples import deployment, make_call

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def asked(endpoint: Endpoint, **body: Any) -> dict[str, Any]:
    """What goes upstream for a request."""
    return parse(endpoint, json.dumps({"model": "m", "max_tokens": 9} | body).encode()).body


def responses(**body: Any) -> CallRequest:
    return parse(Endpoint.RESPONSES, json.dumps({"model": "m"} | body).encode())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"input": "hi"}, [{"role": "user", "content": "hi"}], id="a text"),
        pytest.param(
            {
                "input": [{"role": "developer", "content": "short"}, {"role": "user", "content": "hi"}],
                "instructions": "kind",
            },
            [{"role": "system", "content": "kind\n\nshort"}, {"role": "user", "content": "hi"}],
            id="instructions and a developer become one system message",
        ),
        pytest.param(
            {
                "instructions": "be kind",
                "input": [
                    {
                        "role": "developer",
                        "content": [
                            {"type": "input_text", "text": "be brief"},
                            {"type": "input_text", "text": "be true"},
                        ],
                    },
                    {"role": "user", "content": "hi"},
                ],
            },
            [{"role": "system", "content": "be kind\n\nbe brief\n\nbe true"}, {"role": "user", "content": "hi"}],
            id="and so do the parts of a developer's message",
        ),
        pytest.param(
            {
                "input": [
                    {"type": "reasoning", "id": "rs", "summary": []},
                    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                    {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c1", "output": "1"},
                    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
                ]
            },
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "1"},
                {"role": "tool", "tool_call_id": "c2", "content": "2"},
            ],
            id="calls of one turn are one message",
        ),
        pytest.param(
            {
                "input": [
                    {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": PIXEL}],
                    },
                ]
            },
            [
                {"role": "assistant", "content": "yes"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see"},
                        {"type": "image_url", "image_url": {"url": PIXEL}},
                    ],
                },
            ],
            id="parts",
        ),
    ],
)
def test_items_become_messages(body: dict[str, Any], expected: list[Any]) -> None:
    assert responses(**body).body["messages"] == expected


def test_tools_and_formats_of_a_response_request() -> None:
    tool = {"type": "function", "name": "f", "description": "d", "parameters": WEATHER, "strict": True}
    form = {"type": "json_schema", "name": "city", "schema": WEATHER, "strict": True}
    request = responses(
        input="hi",
        tools=[tool],
        tool_choice={"type": "function", "name": "f"},
        text={"format": form},
        reasoning={"effort": "low"},
        max_output_tokens=7,
    )
    assert request.body["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": WEATHER, "strict": True}}
    ]
    assert request.body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert request.body["response_format"]["json_schema"] == {"name": "city", "schema": WEATHER, "strict": True}
    assert request.body["reasoning_effort"] == "low"
    assert request.max_output_tokens == 7
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    both = responses(input="hi", tools=[tool, tool | {"name": "g"}], tool_choice=allowed).body
    assert [each["function"]["name"] for each in both["tools"]] == ["f"]
    assert both["tool_choice"] == "required"


def test_the_history_comes_before_the_input_and_is_bounded_with_it() -> None:
    history = [{"type": "message", "role": "user", "content": "x" * 1_000}]
    request = read(Endpoint.RESPONSES, {"model": "m", "input": "hi", "store": True}, 30, history)
    assert [message["content"] for message in request.body["messages"]] == ["x" * 1_000, "hi"]
    assert request.input_bound is not None
    assert request.input_bound > 1_000
    assert request.stored_input == [*history, {"type": "message", "role": "user", "content": "hi"}]


def test_a_conversation_that_is_kept_grows_no_further_than_a_body() -> None:
    # Thoughts reach no backend, so that no context bounds them, and nobody pays for them.
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x" * 8_000_000}]}
    body = {"model": "m", "input": [thought, {"role": "user", "content": "hi"}], "store": True}
    kept = read(Endpoint.RESPONSES, body, 1, [thought]).stored_input
    assert kept is not None
    with pytest.raises(InvalidRequest) as caught:
        read(Endpoint.RESPONSES, body, 1, kept)
    assert caught.value.param == "store"
    assert read(Endpoint.RESPONSES, body | {"store": False}, 1, kept).stored_input is None


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        pytest.param(
            Endpoint.RESPONSES, {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", id="hosted"
        ),
        pytest.param(Endpoint.RESPONSES, {"input": "x", "background": True}, "background", id="background"),
        pytest.param(
            Endpoint.RESPONSES,
            {
                "input": "x",
                "tools": [{"type": "function", "name": ["f"]}],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            },
            "tools[0].name",
            id="a name that is no text, where only some tools are allowed",
        ),
        pytest.param(
            Endpoint.RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", id="reference"
        ),
        pytest.param(
            Endpoint.RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://10.0.0.1/x"}]}]},
            "input[0].content[0].image_url",
            id="a picture to be fetched",
        ),
        pytest.param(Endpoint.RESPONSES, {"input": [{"role": "tool", "content": "x"}]}, "input[0].role", id="role"),
        pytest.param(Endpoint.RESPONSES, {"input": "x", "api_base": "http://x"}, "api_base", id="a destination"),
        pytest.param(Endpoint.RESPONSES, {"input": "x", "tool_choice": "required"}, "tool_choice", id="no tools"),
        pytest.param(Endpoint.MESSAGES, {"messages": []}, "messages", id="no message"),
        pytest.param(
            Endpoint.MESSAGES,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}
                ]
            },
            "messages[0].content[0].source",
            id="an image to be fetched",
        ),
        pytest.param(
            Endpoint.MESSAGES,
            {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "web_search_20250305", "name": "w"}]},
            "tools[0].type",
            id="a tool of the server",
        ),
        pytest.param(
            Endpoint.MESSAGES,
            {"messages": [{"role": "user", "content": "x"}], "mcp_servers": []},
            "mcp_servers",
            id="mcp",
        ),
    ],
)
def test_what_cannot_be_served_is_named(endpoint: Endpoint, body: dict[str, Any], param: str) -> None:
    more = {"max_tokens": 9} if endpoint is Endpoint.MESSAGES else {}
    with pytest.raises(InvalidRequest) as refused:
        parse(endpoint, json.dumps({"model": "m"} | more | body).encode())
    assert refused.value.param == param


def test_blocks_become_messages() -> None:
    body = asked(
        Endpoint.MESSAGES,
        system=[{"type": "text", "text": "kind", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "look"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"city": "서울"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "and?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                ],
            },
        ],
        tools=[{"name": "f", "description": "d", "input_schema": WEATHER}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
    )
    assert body["messages"] == [
        {"role": "system", "content": "kind"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "look",
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"city":"서울"}'}}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and?"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
        },
    ]
    assert body["tool_choice"] == "required"
    assert body["parallel_tool_calls"] is False
    assert body["stop"] == ["END"]


# Answers -------------------------------------------------------------------------------------------------------------


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(finish: str | None = None, **delta: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def call_of(*functions: tuple[int, str | None, str | None, str]) -> bytes:
    calls = [
        {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, call_id, name, arguments in functions
    ]
    return said(tool_calls=calls)


USAGE = event(
    choices=[],
    usage={"prompt_tokens": 20, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 8}},
)
DONE = b"data: [DONE]\n\n"
TURN = (
    said(role="assistant", content=""),
    said(reasoning_content="hm"),
    said(content="Let me"),
    said(content=" see"),
    call_of((0, "c1", "weather", "")),
    call_of((0, None, None, '{"city":')),
    call_of((0, None, None, '"Bonn"}'), (1, "c2", "time", "{}")),
    said("tool_calls"),
    USAGE,
    DONE,
)


def told(endpoint: Endpoint, *events: bytes, stream: bool, ends: bool = True) -> bytes:
    """All that the client gets for these events of a backend."""
    body = {"model": "m", "input": "hi"} if endpoint is Endpoint.RESPONSES else CHAT
    request = parse(endpoint, json.dumps(body | {"stream": stream}).encode())
    call = make_call(request, (deployment(BackendKind.VLLM),))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    call.upstream_head(200, b"text/event-stream")
    for each in events:
        call.upstream_bytes(each)
    if not ends:
        call.upstream_failed(BackendFailed("It broke."))
        call.counted(OwnCount(prompt=20, completion=1, is_prompt_exact=False, is_completion_exact=True))
    call.settled()
    assert call.ending is (Ending.FINISHED if ends else Ending.BACKEND_FAILED)
    commands = call.take()
    if any(isinstance(command, SendError) for command in commands):
        return b"error"
    return b"".join(command.data for command in commands if isinstance(command, SendBody))


CHAT = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


def events_of(data: bytes) -> list[dict[str, Any]]:
    found = []
    for block in data.decode().split("\n\n"):
        if block:
            name, _, line = block.partition("\n")
            found.append(json.loads(line.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def test_a_response_is_streamed_with_all_its_events() -> None:
    events = events_of(told(Endpoint.RESPONSES, *TURN, stream=True))
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert [each["type"].removeprefix("response.") for each in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    last = events[-1]["response"]
    assert [item["type"] for item in last["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert last["output"][1]["content"][0]["text"] == "Let me see"
    assert (last["output"][2]["call_id"], last["output"][2]["arguments"]) == ("c1", '{"city":"Bonn"}')
    assert last["output"] == [each["item"] for each in events if each["type"] == "response.output_item.done"]
    assert last["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 26,
    }


def test_a_whole_response_is_that_of_the_stream() -> None:
    whole = json.loads(told(Endpoint.RESPONSES, *TURN, stream=False))
    streamed = events_of(told(Endpoint.RESPONSES, *TURN, stream=True))[-1]["response"]
    # Each call has an id of its own.
    names = ("output", "usage", "status", "model", "tools", "text")
    ids = [item.pop("id") for response in (whole, streamed) for item in response["output"]]
    assert len(ids) == 8
    assert {name: whole[name] for name in names} == {name: streamed[name] for name in names}


def test_a_response_that_is_too_long_is_incomplete() -> None:
    events = events_of(told(Endpoint.RESPONSES, said(content="a"), said("length"), USAGE, DONE, stream=True))
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


def test_a_message_is_streamed_block_after_block() -> None:
    events = events_of(told(Endpoint.MESSAGES, *TURN, stream=True))
    assert [each["type"] for each in events] == [
        "message_start",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    starts = [each["content_block"] for each in events if each["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert starts[2] == {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"] == {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 8,
        "output_tokens": 6,
    }


def test_a_whole_message() -> None:
    message = json.loads(told(Endpoint.MESSAGES, *TURN, stream=False))
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Let me see"},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bonn"}},
        {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"


def test_a_stop_sequence_is_told_where_the_backend_tells_it() -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", "stop_reason": "END"}
    request = parse(Endpoint.MESSAGES, json.dumps(CHAT | {"stop_sequences": ["END"]}).encode())
    call = make_call(request, (deployment(BackendKind.VLLM),))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    call.upstream_head(200, b"text/event-stream")
    call.upstream_bytes(event(choices=[choice]) + USAGE + DONE)
    call.settled()
    body = next(command.data for command in call.take() if isinstance(command, SendBody))
    assert json.loads(body)["stop_reason"] == "stop_sequence"
    assert json.loads(body)["stop_sequence"] == "END"


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_a_stream_that_breaks_off_ends_with_an_error_that_sdks_raise(endpoint: Endpoint) -> None:
    events = events_of(told(endpoint, said(content="a"), stream=True, ends=False))
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["message"] == "It broke."
    assert told(endpoint, said(content="a"), stream=False, ends=False) == b"error"


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_a_backend_that_does_not_stream_will_do_for_a_whole_answer(endpoint: Endpoint) -> None:
    request = parse(
        endpoint, json.dumps(CHAT if endpoint is Endpoint.MESSAGES else {"model": "m", "input": "x"}).encode()
    )
    call = make_call(request, (deployment(BackendKind.OPENAI),))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    call.upstream_head(200, b"application/json")
    message = {"role": "assistant", "content": "yes"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    call.upstream_bytes(
        json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}).encode()
    )
    call.upstream_end()
    call.settled()
    body = json.loads(next(command.data for command in call.take() if isinstance(command, SendBody)))
    assert '"yes"' in json.dumps(body)
    assert body["usage"]["input_tokens"] == 3


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES])
def test_calls_whose_pieces_take_turns_are_whole_when_they_are_done(endpoint: Endpoint) -> None:
    began = call_of((0, "c1", "weather", ""), (1, "c2", "time", '{"zone":'))
    turn = (began, call_of((1, None, None, '"CET"}')), call_of((0, None, None, '{"city":"Bonn"}')))
    events = events_of(told(endpoint, *turn, said("tool_calls"), USAGE, DONE, stream=True))
    if endpoint is Endpoint.RESPONSES:
        done = [each["item"]["arguments"] for each in events if each["type"] == "response.output_item.done"]
        assert done == ['{"city":"Bonn"}', '{"zone":"CET"}']
    else:
        kinds = [(each["type"], each["index"]) for each in events if "index" in each]
        assert kinds == [(f"content_block_{what}", index) for index in (0, 1) for what in ("start", "delta", "stop")]


def test_a_name_that_is_told_with_each_piece_is_one_name() -> None:
    turn = (call_of((0, "c1", "weather", "{")), call_of((0, "c1", "weather", "}")))
    message = json.loads(told(Endpoint.MESSAGES, *turn, said("tool_calls"), USAGE, DONE, stream=False))
    assert [block["name"] for block in message["content"]] == ["weather"]


def test_a_message_that_calls_a_tool_stops_for_it() -> None:
    # vLLM and OpenAI end with `stop` where the client had named the tool.
    turn = (call_of((0, "c1", "weather", "{}")), said("stop"), USAGE, DONE)
    assert json.loads(told(Endpoint.MESSAGES, *turn, stream=False))["stop_reason"] == "tool_use"
