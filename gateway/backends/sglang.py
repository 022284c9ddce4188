"""SGLang 0.5.23 (`srt/entrypoints/openai/protocol.py`): usage is right; errors are flat; aborts 2 to 4 s late."""

from __future__ import annotations

from gateway.backends.dialect import NOT_SERVED, Dialect
from models.call import Endpoint

SGLANG = Dialect(
    name="sglang",
    continuous_stream_options={"continuous_usage_stats": True},
    needs_max_tokens=False,
    rename={"repeat_penalty": "repetition_penalty"},
    lacks=NOT_SERVED | {Endpoint.TRANSLATIONS},
    audio_stream={"stream": True},
)
