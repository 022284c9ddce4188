"""The text of a request that is counted."""

from __future__ import annotations

from typing import Any

import pytest

from billing.tokens import prompt_text

NESTED: dict[str, Any] = {"content": "end"}
for _ in range(5_000):
    NESTED = {"content": [NESTED]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param({"prompt": "once"}, "once", id="a prompt"),
        pytest.param({"prompt": ["one", "two"], "suffix": "end"}, "one\ntwo\nend", id="a list of prompts"),
        pytest.param({"prompt": [1, 2, 3]}, "", id="token ids are no text"),
        pytest.param({"input": ["a", "b"]}, "a\nb", id="texts to embed"),
        pytest.param({"messages": [{"role": "user", "content": "hi"}]}, "hi", id="a message"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
            "a",
            id="only the text of content parts",
        ),
        pytest.param(
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x":1}'}}]},
                    {"role": "tool", "name": "f", "content": "2"},
                ]
            },
            'f\n{"x":1}\nf\n2',
            id="tool calls and their results",
        ),
        pytest.param({"tools": [{"type": "function"}]}, '{"type":"function"}', id="tools as compact JSON"),
        pytest.param(
            {"system": "be brief", "messages": [{"content": [{"type": "tool_use", "input": {"a": "é"}}]}]},
            'be brief\n{"a":"é"}',
            id="an Anthropic request",
        ),
        pytest.param({"messages": None, "prompt": 7, "tools": "x", "input": {"a": 1}}, "", id="shapes of no API"),
        pytest.param({"messages": ["x", {"content": None}]}, "", id="messages of no API"),
        pytest.param({"messages": [NESTED]}, "", id="parts without end"),
    ],
)
def test_prompt_text(body: dict[str, Any], text: str) -> None:
    assert prompt_text(body) == text
