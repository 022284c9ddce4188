"""llama.cpp's server, as measured on the one inside xllamacpp 2026.10.11549.

Its usage is that of one choice: a streamed call with `n=3` sends three usage events, each with the whole prompt, and a
list of prompts sends one per prompt. Summed by choice, with each prompt counted once, they equal its own `/metrics`.
"""

from __future__ import annotations

from gateway.backends.dialect import NOT_SERVED, Dialect
from models.call import Endpoint

LLAMACPP = Dialect(
    name="llamacpp",
    sums_choices=True,
    continuous={"timings_per_token": True},
    refuses={"dimensions": "it is ignored", "reasoning_effort": "it is ignored"},
    rename={"repetition_penalty": "repeat_penalty"},
    lacks=NOT_SERVED | {Endpoint.TRANSLATIONS},
    times_audio=False,
)
