"""Each parameter that an API documents is taken or refused knowingly, and the page says which."""

from __future__ import annotations

from types import ModuleType

import pytest
from openai.types import (
    completion_create_params,
    embedding_create_params,
    image_generate_params,
    moderation_create_params,
)
from openai.types.audio import transcription_create_params, translation_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from gateway.api.parameters import told_of
from tests.house import parameters

ANTHROPIC = {
    "model", "messages", "max_tokens", "system", "stop_sequences", "stream", "temperature", "top_p", "top_k", "tools",
    "tool_choice", "metadata", "thinking", "service_tier", "container", "cache_control", "output_config",
    "inference_geo", "speed", "diagnostics", "mcp_servers", "context_management", "output_format",
}  # fmt: skip
"""Of the Messages API, whose client is not installed here; the last three are of its beta."""


def documented(module: ModuleType) -> set[str]:
    """The parameters that the official client sends."""
    shapes = [value for name, value in vars(module).items() if name.endswith(("Base", "Params", "Streaming"))]
    return set().union(*(shape.__annotations__ for shape in shapes if isinstance(shape, type)))


@pytest.mark.parametrize(
    ("path", "module"),
    [
        pytest.param("/v1/chat/completions", chat_create_params, id="chat"),
        pytest.param("/v1/completions", completion_create_params, id="completions"),
        pytest.param("/v1/embeddings", embedding_create_params, id="embeddings"),
        pytest.param("/v1/responses", response_create_params, id="responses"),
        pytest.param("/v1/moderations", moderation_create_params, id="moderations"),
        pytest.param("/v1/images/generations", image_generate_params, id="images"),
        pytest.param("/v1/audio/transcriptions", transcription_create_params, id="transcriptions"),
        pytest.param("/v1/audio/translations", translation_create_params, id="translations"),
    ],
)
def test_what_the_client_can_send_is_known(path: str, module: ModuleType) -> None:
    names = documented(module) - {"file"}
    assert "model" in names
    assert names <= set(parameters.TABLES[path])


def test_what_anthropic_documents_is_known() -> None:
    assert set(parameters.TABLES["/v1/messages"]) >= ANTHROPIC


def test_every_parameter_says_what_it_takes() -> None:
    untold = [
        f"{path} {name}" for path, table in parameters.TABLES.items() for name in table if not told_of(table[name])
    ]
    assert not untold


def test_the_page_is_up_to_date() -> None:
    assert parameters.PAGE.read_text(encoding="utf-8") == parameters.page(), "run python -m tests.house.parameters"
