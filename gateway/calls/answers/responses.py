"""Answers in the Responses API of OpenAI, whole or in a stream, complete also where no backend's own would be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.backends.events import Choice
from gateway.calls.answers.answer import End, encode, with_cost
from gateway.calls.answers.blocks import Block, BlockKind, Step
from gateway.calls.answers.conversation import Conversation, sse
from gateway.calls.refusals import error_object
from models.call import CallOrigin, CallRequest
from models.catalog import Deployment
from models.errors import TollgateError
from models.ids import RESPONSE_PREFIX
from models.usage import Ending

_PART_TEXT = {BlockKind.REASONING: "reasoning_text", BlockKind.TEXT: "output_text", BlockKind.REFUSAL: "refusal"}


class WholeResponse(Conversation):
    """One response object."""

    def end(self, end: End) -> bytes:
        """The response."""
        return encode(self.response(end))

    def broke(self, error: TollgateError) -> bytes:
        """Nothing of an object was sent."""
        return b""

    def response(self, end: End) -> dict[str, Any]:
        """The whole response as it is answered, and kept where it is to be."""
        is_cut = end.ending is Ending.HOLD_SPENT or self.blocks.finish == "length"
        is_filtered = self.blocks.finish == "content_filter"
        status = "incomplete" if is_cut or is_filtered else "completed"
        reason = {"reason": "max_output_tokens" if is_cut else "content_filter"} if status == "incomplete" else None
        last = self.blocks.all[-1] if self.blocks.all else None
        output = [self._item(block, status if block is last else "completed") for block in self.blocks.all]
        response = {**self._head(status), "incomplete_details": reason, "output": output, "usage": _usage(end)}
        response["store"] = end.is_kept
        if status == "completed":
            response["completed_at"] = int(end.ended_at.timestamp())
        return response

    def _head(self, status: str) -> dict[str, Any]:
        return {
            "id": RESPONSE_PREFIX + self.origin.call_id.hex,
            "object": "response",
            "created_at": int(self.origin.created_at.timestamp()),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.request.model,
            "output": [],
            "usage": None,
            **(self.request.echo or {}),
        }

    def _item_id(self, block: Block) -> str:
        prefix = {BlockKind.REASONING: "rs", BlockKind.TOOL: "fc"}.get(block.kind, "msg")
        return f"{prefix}_{self.origin.call_id.hex}_{block.place}"

    def _item(self, block: Block, status: str, *, is_empty: bool = False) -> dict[str, Any]:
        """A block as an item of the output; `is_empty`: as it is when it begins."""
        parts = [] if is_empty or block.kind is BlockKind.TOOL else [_part(block)]
        match block.kind:
            case BlockKind.REASONING:
                item: dict[str, Any] = {"type": "reasoning", "summary": [], "content": parts}
            case BlockKind.TOOL:
                text = "" if is_empty else block.text
                item = {"type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": text}
            case _:
                item = {"type": "message", "role": "assistant", "content": parts}
        return {"id": self._item_id(block), **item, "status": status}


class ResponseStream(WholeResponse):
    """The events of a response, each with its number."""

    def __init__(self, request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Any) -> None:
        super().__init__(request, origin, deployment, meter)
        self._number = 0
        self._open: Block | None = None

    def said(self, choice: Choice) -> Iterator[bytes]:
        """What a choice of an event adds."""
        if not self._number:
            yield self._begin()
        for step in self.blocks.add(choice):
            yield from self._tell(step)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse(event)

    def _begin(self) -> bytes:
        head = self._head("in_progress")
        return self._event("response.created", response=head) + self._event("response.in_progress", response=head)

    def _tell(self, step: Step) -> Iterator[bytes]:
        block = step.block
        if step.is_new:
            yield self._close("completed")
            self._open = block
            item = self._item(block, "in_progress", is_empty=True)
            yield self._event("response.output_item.added", output_index=block.place, item=item)
            if block.kind is not BlockKind.TOOL:
                part = _part(block, "")
                yield self._event("response.content_part.added", **self._where(block), part=part)
        if not step.piece:
            return
        match block.kind:
            case BlockKind.TOOL:
                where = {"item_id": self._item_id(block), "output_index": block.place}
                yield self._event("response.function_call_arguments.delta", **where, delta=step.piece)
            case BlockKind.TEXT:
                fields = {"delta": step.piece, "logprobs": step.logprobs}
                yield self._event("response.output_text.delta", **self._where(block), **fields)
            case _:
                yield self._event(f"response.{_PART_TEXT[block.kind]}.delta", **self._where(block), delta=step.piece)

    def _where(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._item_id(block), "output_index": block.place, "content_index": 0}

    def _close(self, status: str) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        match block.kind:
            case BlockKind.TOOL:
                where = {"item_id": self._item_id(block), "output_index": block.place, "name": block.name}
                told = self._event("response.function_call_arguments.done", **where, arguments=block.text)
            case BlockKind.TEXT:
                fields = {"text": block.text, "logprobs": block.logprobs}
                told = self._event("response.output_text.done", **self._where(block), **fields)
            case BlockKind.REASONING:
                told = self._event("response.reasoning_text.done", **self._where(block), text=block.text)
            case BlockKind.REFUSAL:
                told = self._event("response.refusal.done", **self._where(block), refusal=block.text)
        if block.kind is not BlockKind.TOOL:
            told += self._event("response.content_part.done", **self._where(block), part=_part(block))
        item = self._item(block, status)
        return told + self._event("response.output_item.done", output_index=block.place, item=item)

    def end(self, end: End) -> bytes:
        """The end of the last item and of the response, with the usage."""
        begin = b"" if self._number else self._begin()
        begin += b"".join(piece for step in self.blocks.rest() for piece in self._tell(step))
        response = self.response(end)
        last = self._close(response["status"])
        return begin + last + self._event(f"response.{response['status']}", response=response)

    def broke(self, error: TollgateError) -> bytes:
        """The error, as the API has it and, under `error`, as the SDKs raise it."""
        told = error_object(error)
        flat = {"code": told["code"], "message": told["message"], "param": None}
        event = {"type": "error", "sequence_number": self._number, **flat, "error": told}
        return sse(event)


def _part(block: Block, text: str | None = None) -> dict[str, Any]:
    is_empty = text is not None
    text = block.text if text is None else text
    kind = _PART_TEXT[block.kind]
    match block.kind:
        case BlockKind.TEXT:
            return {"type": kind, "text": text, "annotations": [], "logprobs": [] if is_empty else block.logprobs}
        case BlockKind.REFUSAL:
            return {"type": kind, "refusal": text}
        case _:
            return {"type": kind, "text": text}


def _usage(end: End) -> dict[str, Any]:
    reading = end.usage()
    usage = {
        "input_tokens": reading.prompt,
        "input_tokens_details": {"cached_tokens": reading.cached, "cache_write_tokens": reading.cache_write},
        "output_tokens": reading.completion,
        "output_tokens_details": {"reasoning_tokens": reading.reasoning},
        "total_tokens": reading.prompt + reading.completion,
    }
    return with_cost(usage, end)
