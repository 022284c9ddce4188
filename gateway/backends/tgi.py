"""Text Generation Inference (`router/src/server.rs`): one choice only, no embeddings, errors as plain strings."""

from __future__ import annotations

from gateway.backends.dialect import Dialect

TGI = Dialect(name="tgi", max_choices=1, token_prompts=False)
