"""Answers in Anthropic's Messages API, whole or in a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.backends.events import Choice
from gateway.calls.answers.answer import End, encode, with_cost
from gateway.calls.answers.blocks import Block, BlockKind, Step
from gateway.calls.answers.conversation import Conversation, sse
from gateway.calls.metering import Reading
from gateway.calls.refusals import anthropic_error
from models.errors import TollgateError
from models.usage import Ending

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class WholeMessage(Conversation):
    """One message object."""

    def end(self, end: End) -> bytes:
        """The message."""
        content = [_content(block) for block in self.blocks.all]
        message = {**self._head(), "content": content, **self._stop(end), "usage": _usage(end)}
        return encode(message)

    def broke(self, error: TollgateError) -> bytes:
        """Nothing of an object was sent."""
        return b""

    def _head(self) -> dict[str, Any]:
        head = {"id": f"msg_{self.origin.call_id.hex}", "type": "message", "role": "assistant"}
        return {**head, "model": self.request.model}

    def _stop(self, end: End) -> dict[str, Any]:
        if end.ending is Ending.HOLD_SPENT:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if self.blocks.stop is not None and self.blocks.stop in self.request.body.get("stop", ()):
            return {"stop_reason": "stop_sequence", "stop_sequence": self.blocks.stop}
        reason = _STOPS.get(self.blocks.finish or "stop", "end_turn")
        if reason == "end_turn" and any(block.kind is BlockKind.TOOL for block in self.blocks.all):
            # A chat ends with `stop` where the client had named the tool.
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": None}


class MessageStream(WholeMessage):
    """The events of a message: one block after another."""

    _has_begun = False
    _open: Block | None = None

    def said(self, choice: Choice) -> Iterator[bytes]:
        """What a choice of an event adds."""
        if not self._has_begun:
            yield self._begin()
        for step in self.blocks.add(choice):
            yield from self._tell(step)

    def _begin(self) -> bytes:
        self._has_begun = True
        # The number that counts comes with the end; this one is what is known now.
        prompt = Reading(prompt=self.meter.prompt_estimate)
        usage = _usage_of(next(iter(self.meter.running.values()), prompt)) | {"output_tokens": 0}
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return sse({"type": "message_start", "message": {**self._head(), **nothing}})

    def _tell(self, step: Step) -> Iterator[bytes]:
        block = step.block
        if step.is_new:
            yield self._close()
            self._open = block
            yield sse({"type": "content_block_start", "index": block.place, "content_block": _content(block, "")})
        if step.piece:
            yield sse({"type": "content_block_delta", "index": block.place, "delta": _delta(block.kind, step.piece)})

    def _close(self) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        signature = b""
        if block.kind is BlockKind.REASONING:
            delta = {"type": "signature_delta", "signature": ""}
            signature = sse({"type": "content_block_delta", "index": block.place, "delta": delta})
        return signature + sse({"type": "content_block_stop", "index": block.place})

    def end(self, end: End) -> bytes:
        """The end of the last block and of the message, with the usage."""
        begin = b"" if self._has_begun else self._begin()
        begin += b"".join(piece for step in self.blocks.rest() for piece in self._tell(step))
        delta = {"type": "message_delta", "delta": self._stop(end), "usage": _usage(end)}
        return begin + self._close() + sse(delta) + sse({"type": "message_stop"})

    def broke(self, error: TollgateError) -> bytes:
        """The error; no end of the message follows it."""
        return b"event: error\ndata: " + anthropic_error(error, str(self.origin.call_id)) + b"\n\n"


def _content(block: Block, text: str | None = None) -> dict[str, Any]:
    text = block.text if text is None else text
    match block.kind:
        case BlockKind.REASONING:
            return {"type": "thinking", "thinking": text, "signature": ""}
        case BlockKind.TOOL:
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _arguments(text)}
        case _:
            return {"type": "text", "text": text}


def _delta(kind: BlockKind, piece: str) -> dict[str, Any]:
    match kind:
        case BlockKind.REASONING:
            return {"type": "thinking_delta", "thinking": piece}
        case BlockKind.TOOL:
            return {"type": "input_json_delta", "partial_json": piece}
        case _:
            return {"type": "text_delta", "text": piece}


def _arguments(text: str) -> dict[str, Any]:
    """Arguments as an object, which the API demands; what a model broke off in the middle is told as text."""
    if not text:
        return {}
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"unparsed": text}
    return decoded if isinstance(decoded, dict) else {"unparsed": text}


def _usage(end: End) -> dict[str, Any]:
    return with_cost(_usage_of(end.usage()), end)


def _usage_of(reading: Reading) -> dict[str, Any]:
    """Here cached tokens are no part of the input."""
    return {
        "input_tokens": reading.prompt - reading.cached - reading.cache_write,
        "cache_creation_input_tokens": reading.cache_write,
        "cache_read_input_tokens": reading.cached,
        "output_tokens": reading.completion,
    }
