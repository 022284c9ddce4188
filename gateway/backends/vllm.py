"""vLLM 0.33 (`entrypoints/serve/engine/protocol.py`): usage is right, also for several choices and prompts.

Continuous usage comes per choice; the last event, without choices, has the sum. A `max_tokens` above what the context
leaves is an error, and none means what the context leaves, so none is sent unless the client did.
"""

from __future__ import annotations

from gateway.backends.dialect import NOT_SERVED, Dialect

VLLM = Dialect(
    name="vllm",
    continuous_stream_options={"continuous_usage_stats": True},
    needs_max_tokens=False,
    rename={"repeat_penalty": "repetition_penalty"},
    lacks=NOT_SERVED,
    audio_stream={"stream": True, "stream_include_usage": True},
)
