"""Any other server of the OpenAI API, taken by its word: usage in the last event, summed by the server."""

from __future__ import annotations

from gateway.backends.dialect import Dialect

OPENAI = Dialect(name="openai", needs_max_tokens=False, events_are_tokens=False, audio_stream={"stream": True})
