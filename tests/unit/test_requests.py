"""Every parameter is accepted or refused knowingly, with the parameter's name."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.shared_params import ReasoningEffort

from billing.admission import TEMPLATE_ALLOWANCE_TOKENS, bounds
from gateway.api.requests import parse
from models.call import Endpoint
from models.catalog import Model
from models.errors import InvalidRequest, TollgateError
from tests.unit.samples import NOW

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
MODEL = Model(id="m", context_length=1_000, created_at=NOW)


def chat(**more: Any) -> bytes:
    return json.dumps({**CHAT, **more}).encode()


def test_a_plain_chat() -> None:
    request = parse(Endpoint.CHAT_COMPLETIONS, chat(stream=True, stream_options={"include_usage": True}, user="ann"))
    assert (request.model, request.stream, request.include_usage, request.choices) == ("m", True, True, 1)
    assert request.end_user == "ann"
    assert set(request.body) == {"messages"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        pytest.param({"max_tokens": 0}, "max_tokens", id="no tokens"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="negative"),
        pytest.param({"max_tokens": 1.5}, "max_tokens", id="a fraction"),
        pytest.param({"max_tokens": True}, "max_tokens", id="a truth is no number"),
        pytest.param({"max_tokens": "10"}, "max_tokens", id="text is no number"),
        pytest.param({"n": 0}, "n", id="no choices"),
        pytest.param({"n": 100}, "n", id="too many choices"),
        pytest.param({"best_of": 5}, "best_of", id="best_of costs unseen"),
        pytest.param({"temperature": 3}, "temperature", id="too hot"),
        pytest.param({"stop": ["x"] * 10_000}, "stop", id="10,000 stops"),
        pytest.param({"logit_bias": {str(i): 1 for i in range(5_000)}}, "logit_bias", id="a huge bias"),
        pytest.param({"stream_options": {"include_usage": True}}, "stream_options", id="options without a stream"),
        pytest.param({"api_base": "http://169.254.169.254"}, "api_base", id="a destination"),
        pytest.param({"extra_headers": {"x": "y"}}, "extra_headers", id="headers"),
        pytest.param({"api_key": "sk"}, "api_key", id="another key"),
        pytest.param({"timeout": 3}, "timeout", id="a time-out"),
        pytest.param({"use_beam_search": True}, "use_beam_search", id="beam search"),
        pytest.param({"messages": []}, "messages", id="no messages"),
        pytest.param(
            {"messages": [{"role": "user", "content": 3}]}, "messages[0].content", id="content of a wrong type"
        ),
        pytest.param({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", id="an unknown role"),
        pytest.param({"messages": None}, "messages", id="null where something is needed"),
        pytest.param({"model": 3}, "model", id="a model of a wrong type"),
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "x" * 600}}}]},
            "tools",
            id="a long pattern",
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x"] * 5_000}}}},
            "response_format",
            id="a giant enum",
        ),
        *(
            pytest.param(
                {"messages": [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]},
                f"messages[0].content[0].{kind}",
                id=f"{kind} {url}",
            )
            for kind in ("image_url", "video_url", "audio_url")
            for url in ("http://169.254.169.254/latest", "http://127.0.0.1:6379/", "file:///etc/passwd", "HTTP://x")
        ),
    ],
)
def test_refused_with_the_name_of_the_parameter(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(Endpoint.CHAT_COMPLETIONS, chat(**more))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="no body"),
        pytest.param(b"[]", id="not an object"),
        pytest.param(b'{"model": NaN}', id="NaN"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param(b'{"model": "\xff"}', id="invalid UTF-8"),
        pytest.param(b'{"model": "\\ud800"}', id="a lone surrogate"),
        pytest.param(b'{"a":' + b"9" * 100_000 + b"}", id="an integer of 100,000 digits"),
        pytest.param(b"[" * 100_000, id="100,000 arrays"),
        pytest.param(b'{"model":"m","messages":[{"role":"user","content":"x"}]', id="cut off"),
    ],
)
def test_bad_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(Endpoint.CHAT_COMPLETIONS, body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["model", "messages", "prompt", "input", "n", "max_tokens", "stop", "tools", "logit_bias", "stream_options",
     "response_format", "tool_choice", "stream", "user", "metadata", "logprobs", "modalities", "text", "reasoning",
     "system", "instructions", "include", "stop_sequences", "thinking", "output_config", "previous_response_id"]
)  # fmt: skip


@pytest.mark.parametrize("effort", get_args(get_args(ReasoningEffort)[0]))
def test_every_effort_that_the_client_knows_is_taken(effort: str) -> None:
    assert parse(Endpoint.CHAT_COMPLETIONS, chat(reasoning_effort=effort)).body["reasoning_effort"] == effort
    response = json.dumps({"model": "m", "input": "hi", "reasoning": {"effort": effort}}).encode()
    assert parse(Endpoint.RESPONSES, response).body["reasoning_effort"] == effort


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        pytest.param(Endpoint.CHAT_COMPLETIONS, {"messages": HI}, id="chat"),
        pytest.param(Endpoint.COMPLETIONS, {"prompt": "hi"}, id="completions"),
        pytest.param(Endpoint.EMBEDDINGS, {"input": "hi"}, id="embeddings"),
        pytest.param(Endpoint.RESPONSES, {"input": "hi"}, id="responses"),
        pytest.param(Endpoint.MESSAGES, {"messages": HI, "max_tokens": 5}, id="messages"),
        pytest.param(Endpoint.RERANK, {"query": "hi", "documents": ["a"]}, id="rerank"),
        pytest.param(Endpoint.MODERATIONS, {"input": "hi"}, id="moderations"),
        pytest.param(Endpoint.IMAGES, {"prompt": "hi"}, id="images"),
    ],
)
def test_an_end_user_is_text_that_a_receipt_can_hold(endpoint: Endpoint, body: dict[str, Any]) -> None:
    def named(user: str) -> bytes:
        field = {"metadata": {"user_id": user}} if endpoint is Endpoint.MESSAGES else {"user": user}
        return json.dumps({"model": "m", **body, **field}).encode()

    assert parse(endpoint, named("ann")).end_user == "ann"
    with pytest.raises(InvalidRequest) as caught:
        parse(endpoint, named("a\0b"))
    assert caught.value.param in ("user", "metadata.user_id")


@given(
    st.sampled_from([endpoint for endpoint in Endpoint if not endpoint.hears]), st.dictionaries(NAMES, JSON, max_size=6)
)
def test_whatever_is_sent_is_a_call_or_a_clear_error(endpoint: Endpoint, body: dict[str, Any]) -> None:
    subject = {Endpoint.CHAT_COMPLETIONS: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.MESSAGES: "messages"}
    subject |= {Endpoint.RERANK: "query", Endpoint.IMAGES: "prompt"}
    filled = {"model": "m", "max_tokens": 5, subject.get(endpoint, "input"): "x", **body}
    try:
        request = parse(endpoint, json.dumps(filled).encode())
    except TollgateError:
        # Any other exception would fail the test: it would be a 500.
        return
    assert request.choices >= 1


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        pytest.param(Endpoint.CHAT_COMPLETIONS, {**CHAT, "max_tokens": 7, "n": 3}, (592, 21), id="three choices"),
        pytest.param(Endpoint.CHAT_COMPLETIONS, CHAT, (572, 1_000), id="no limit is the context"),
        pytest.param(
            Endpoint.CHAT_COMPLETIONS,
            {**CHAT, "max_tokens": 9, "max_completion_tokens": 5},
            (613, 5),
            id="the lower of two limits",
        ),
        pytest.param(
            Endpoint.COMPLETIONS, {"model": "m", "prompt": ["a", "b"], "max_tokens": 5, "n": 2}, (1_084, 20), id="lists"
        ),
        pytest.param(
            Endpoint.EMBEDDINGS, {"model": "m", "input": "x" * 5_000}, (1_000, 0), id="never above the context"
        ),
        pytest.param(
            Endpoint.CHAT_COMPLETIONS,
            {
                "model": "m",
                "max_tokens": 1,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
                    }
                ],
            },
            (1_000, 1),
            id="a picture may be the whole context",
        ),
    ],
)
def test_bounds(endpoint: Endpoint, body: dict[str, Any], expected: tuple[int, int]) -> None:
    encoded = json.dumps(body, separators=(",", ":")).encode()
    request = parse(endpoint, encoded)
    found = bounds(request, MODEL)
    assert found[1] == expected[1]
    assert found[0] == min(
        MODEL.context_length * request.prompts,
        MODEL.context_length * request.prompts
        if request.input_bound is None
        else len(encoded) + TEMPLATE_ALLOWANCE_TOKENS * request.prompts,
    )
