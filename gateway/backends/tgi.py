"""Text Generation Inference (`router/src/server.rs`): one choice only, no embeddings, errors as plain strings."""

from __future__ import annotations

from gateway.backends.dialect import NOT_SERVED, Dialect
from models.call import Endpoint

TGI = Dialect(
    name="tgi",
    max_choices=1,
    token_prompts=False,
    lacks=NOT_SERVED | {Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS},
)
