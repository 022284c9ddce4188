"""Answers in the OpenAI API: a stream goes on byte for byte, less what the client did not ask for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gateway.backends.events import Chunk, head_of, read_any, replace, usage_event
from gateway.calls.answers.aggregate import Aggregate
from gateway.calls.answers.answer import End, encode, with_cost
from gateway.calls.metering import Meter, client_usage
from gateway.calls.refusals import error_event
from models.call import CallOrigin, CallRequest, Endpoint
from models.catalog import Deployment
from models.errors import TollgateError


class OpenAIStream:
    """The backend's own events."""

    __slots__ = ("_deployment", "_is_usage_passed", "_like", "_makes_usage", "_meter", "_request", "_unopened")

    def __init__(self, request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Meter) -> None:
        self._request = request
        self._deployment = deployment
        self._meter = meter
        self._like: dict[str, object] = {}
        self._is_usage_passed = False
        # One usage report a choice (llama.cpp): the client gets their sum, made by us; nor does any know the cost.
        self._makes_usage = (meter.dialect.sums_choices and request.choices > 1) or request.tells_cost
        # Choices that are generated side by side begin in any order (llama.cpp), but openai-python's `stream()` takes
        # the first that it sees for number 0, and crashes or mixes them up.
        has_order = request.choices == 1 or not meter.dialect.sums_choices
        self._unopened = 0 if has_order or request.endpoint is not Endpoint.CHAT_COMPLETIONS else request.choices

    def event(self, raw: bytes, chunk: Chunk, data: bytes) -> bytes:
        """The event, byte for byte, less what the client did not ask for."""
        if chunk.timings and self._meter.dialect.sums_choices:
            raw = replace(raw, b"timings", chunk.timings, None)
        usage = chunk.usage
        if usage and bytes(usage) != b"null":
            wanted = self._request.include_usage
            if wanted and not self._like:
                self._like = read_any(data)
            if not chunk.choices:
                if not wanted or self._makes_usage:
                    return b""
                self._is_usage_passed = True
            else:
                raw = replace(raw, b"usage", usage, b"null" if wanted else None)
        if chunk.model and self._deployment.backend_model != self._request.model:
            raw = replace(raw, b"model", chunk.model, encode(self._request.model))
        if self._unopened and chunk.choices:
            raw = self._opening(data) + raw
        return raw

    def _opening(self, data: bytes) -> bytes:
        """An event in which all choices begin, in order; `data` is of the first event of the backend."""
        nothing: list[dict[str, Any]] = [
            {"index": index, "delta": {}, "finish_reason": None} for index in range(self._unopened)
        ]
        self._unopened = 0
        like = {**head_of(read_any(data)), "model": self._request.model}
        return b"data: " + encode({**like, "choices": nothing}) + b"\n\n"

    def aside(self, raw: bytes) -> bytes:
        """What is not understood is the client's to understand."""
        return raw

    def whole(self, answer: dict[str, Any], body: bytes) -> bool:
        """A client that waits for events cannot read a whole answer."""
        return False

    def cut(self, choices: Collection[int], last: bytes) -> bytes:
        """One event that ends the choices."""
        self._like = head_of(read_any(last))
        ends = cut_event(self._request, self._like, choices)
        return b"data: " + encode(ends) + b"\n\n" if choices else b""

    def end(self, end: End) -> bytes:
        """The usage, where it was asked for and has not passed, and [DONE]."""
        if self._request.include_usage and not self._is_usage_passed and end.is_usage_known:
            like = {**self._like, "model": self._request.model}
            return usage_event(like, with_cost(client_usage(end.usage()), end)) + end.done
        return end.done

    def broke(self, error: TollgateError) -> bytes:
        """The error, without [DONE]."""
        return error_event(error)


class WholeAnswer:
    """One object: the backend's own, or made of the events of its stream."""

    __slots__ = ("_add", "_aggregate", "_body", "_request")

    def __init__(self, request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Meter) -> None:
        self._request = request
        self._aggregate = Aggregate(request.endpoint)
        self._add = self._aggregate.add
        self._body: dict[str, Any] | bytes = b""

    def event(self, raw: bytes, chunk: Chunk, data: bytes) -> bytes:
        """Kept for the end."""
        self._add(read_any(data))
        return b""

    def aside(self, raw: bytes) -> bytes:
        """Of no use in an object."""
        return b""

    def whole(self, answer: dict[str, Any], body: bytes) -> bool:
        """As it is, under the name that the client knows the model by."""
        is_renamed = "model" in answer and answer["model"] != self._request.model
        if is_renamed:
            answer = {**answer, "model": self._request.model}
        self._body = answer if is_renamed or self._request.tells_cost else body
        return True

    def cut(self, choices: Collection[int], last: bytes) -> bytes:
        """The choices end in the object, too."""
        self._aggregate.add(cut_event(self._request, head_of(read_any(last)), choices))
        return b""

    def end(self, end: End) -> bytes:
        """The object."""
        body = self._body
        if isinstance(body, bytes):
            if body:
                return body
            body = self._aggregate.answer(client_usage(end.usage()))
            body["model"] = self._request.model
        if end.cost is not None:
            body["usage"] = {**(body.get("usage") or {}), "cost": end.cost}
        return encode(body)

    def broke(self, error: TollgateError) -> bytes:
        """An object does not break off: nothing of it was sent."""
        return b""


def cut_event(request: CallRequest, like: dict[str, Any], choices: Collection[int]) -> dict[str, Any]:
    """An event that ends choices as at a limit of length; `like` is what is the same in every event."""
    nothing: dict[str, object] = {"text": ""} if request.endpoint is Endpoint.COMPLETIONS else {"delta": {}}
    ends = [{"index": index, "finish_reason": "length", "logprobs": None, **nothing} for index in choices]
    return {**like, "model": request.model, "choices": ends}
