"""Ollama (`openai/openai.go`): one choice only, and zeros for usage until the last event, which are no answer."""

from __future__ import annotations

from gateway.backends.dialect import NOT_SERVED, Dialect
from models.call import Endpoint

OLLAMA = Dialect(
    name="ollama",
    max_choices=1,
    token_prompts=False,
    lacks=NOT_SERVED | {Endpoint.RERANK, Endpoint.TRANSLATIONS},
    times_audio=False,
    refuses={
        "logprobs": "it is ignored",
        "top_logprobs": "it is ignored",
        "logit_bias": "it is ignored",
        "tool_choice": "all but auto is ignored",
        "dimensions": "it is ignored",
    },
)
