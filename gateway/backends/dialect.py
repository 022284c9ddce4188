"""The dialect of an engine: how it is asked, and by which rule its usage numbers are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.backends.forms import form
from models.call import CallRequest, Endpoint
from models.catalog import Deployment, Model
from models.errors import InvalidRequest

_encode = msgspec.json.Encoder().encode

NOT_SERVED = frozenset({Endpoint.MODERATIONS, Endpoint.IMAGES})
"""Endpoints that no engine of language models has."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """Habits of one engine; the sources are in the file of each.

    `sums_choices`: its usage numbers are of one choice each, and are summed (llama.cpp).
    `continuous`: parameters that make it tell usage while it generates.
    `needs_max_tokens`: it generates without end unless told a limit.
    `refuses`: parameters that it would ignore, so that the client would get, or pay for, something else.
    `events_are_tokens`: each event with text is a token at least, so that events bound tokens from below.
    `lacks`: endpoints that it does not serve.
    `times_audio`: it can say when something was said. `audio_stream`: fields that make it stream what it hears, with
    its usage; None where it cannot.
    """

    name: str
    sums_choices: bool = False
    continuous: Mapping[str, Any] = field(default_factory=dict)
    continuous_stream_options: Mapping[str, Any] = field(default_factory=dict)
    needs_max_tokens: bool = True
    refuses: Mapping[str, str] = field(default_factory=dict)
    max_choices: int = 16
    token_prompts: bool = True
    events_are_tokens: bool = True
    rename: Mapping[str, str] = field(default_factory=dict)
    lacks: frozenset[Endpoint] = frozenset()
    times_audio: bool = True
    audio_stream: Mapping[str, Any] | None = None

    def check(self, request: CallRequest) -> None:
        """Raise `InvalidRequest` for what this engine does not do, or would silently ignore."""
        if request.endpoint in self.lacks:
            raise InvalidRequest("This model does not serve this endpoint.", param="model", code="unsupported_endpoint")
        if not self.times_audio and request.body.get("response_format") == "verbose_json" and request.upload:
            raise InvalidRequest(
                "'response_format' may be json or text with this model: its backend does not say when words are said.",
                param="response_format",
            )
        for param, why in self.refuses.items():
            # To ignore these two values is to do as they say.
            if param in request.body and request.body[param] is not False and request.body[param] != "auto":
                raise InvalidRequest(f"'{param}' is not supported by this model's backend: {why}.", param=param)
        if request.n > self.max_choices:
            raise InvalidRequest(f"'n' may be at most {self.max_choices} with this model.", param="n")
        if not self.token_prompts:
            subject = "input" if request.endpoint is Endpoint.EMBEDDINGS else "prompt"
            value = request.body.get(subject)
            if isinstance(value, list) and not isinstance(value[0], str):
                raise InvalidRequest(
                    f"'{subject}' as token ids is not supported by this model's backend.", param=subject
                )

    def body(self, request: CallRequest, model: Model, deployment: Deployment) -> bytes:
        """The body that goes upstream: always streamed where the endpoint streams, usage always asked for."""
        body = dict(request.body)
        for name in self.rename.keys() & body.keys():
            body[self.rename[name]] = body.pop(name)
        body["model"] = deployment.backend_model
        if request.upload is not None:
            return form({**body, **self.audio_stream} if request.stream and self.audio_stream else body, request.upload)
        if request.endpoint.generates:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True, **self.continuous_stream_options}
            body.update(self.continuous)
            if request.n > 1:
                body["n"] = request.n
            limit = request.max_output_tokens
            if limit is not None or self.needs_max_tokens:
                body["max_tokens"] = min(limit or model.context_length, model.context_length)
        try:
            return _encode(body)
        except (OverflowError, RecursionError, ValueError) as error:
            raise InvalidRequest(f"The body holds a value that no backend can take: {error}") from None
