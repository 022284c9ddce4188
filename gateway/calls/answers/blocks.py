"""The one choice of a chat as blocks: thoughts, text, tool calls, each made of pieces. Pure.

The APIs that know blocks tell one after another. Engines do so too, but a chat may let the pieces of parallel tool
calls take turns: then a call waits until the one before it is whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from gateway.backends.events import Choice, ToolCall, read_any


class BlockKind(Enum):
    """What a block holds."""

    REASONING = auto()
    TEXT = auto()
    REFUSAL = auto()
    TOOL = auto()


@dataclass(slots=True, eq=False)
class Block:
    """A part of an answer; of a tool call `pieces` are its arguments."""

    kind: BlockKind
    place: int
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.pieces)


@dataclass(slots=True, eq=False)
class Step:
    """What an event adds: a piece of a block, which may have begun with it."""

    block: Block
    piece: str
    is_new: bool
    logprobs: list[Any]


class Blocks:
    """Fed with what a backend's events say of the first choice."""

    def __init__(self, call_id: str) -> None:
        self._call_id = call_id
        self.all: list[Block] = []
        self._tools: dict[int, Block] = {}
        self._told: Block | None = None
        self._waiting: deque[Block] = deque()
        self.finish: str | None = None
        self.stop: str | None = None

    def add(self, choice: Choice) -> Iterator[Step]:
        """Take in a choice of an event; the steps it makes, in order."""
        if choice.index:
            return
        if choice.finish_reason is not None:
            self.finish = choice.finish_reason
        if isinstance(choice.stop_reason, str):
            self.stop = choice.stop_reason
        delta = choice.delta
        if delta is None:
            return
        for kind, piece in (
            (BlockKind.REASONING, delta.reasoning_content or delta.reasoning),
            (BlockKind.TEXT, delta.content),
            (BlockKind.REFUSAL, delta.refusal),
        ):
            if piece:
                yield from self.rest()
                yield self._said(kind, piece, choice if kind is BlockKind.TEXT else None)
        for place, call in enumerate(delta.tool_calls or ()):
            yield from self._called(call, place)
        if choice.finish_reason is not None:
            yield from self.rest()

    def rest(self) -> Iterator[Step]:
        """The calls that waited for others: nothing more comes of those."""
        while self._waiting:
            yield self._next()

    def _said(self, kind: BlockKind, piece: str, choice: Choice | None) -> Step:
        is_new = not self.all or self.all[-1].kind is not kind
        if is_new:
            self.all.append(Block(kind, len(self.all)))
        block = self.all[-1]
        block.pieces.append(piece)
        logprobs = read_any(choice.logprobs) if choice is not None and choice.logprobs else None
        tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
        told = tokens if isinstance(tokens, list) else []
        block.logprobs += told
        return Step(block, piece, is_new, told)

    def _called(self, call: ToolCall, place: int) -> Iterator[Step]:
        index = place if call.index is None else call.index
        block = self._tools.get(index)
        is_new = block is None
        if block is None:
            # Some engines leave the id out, and a client needs one to answer by.
            call_id = call.id or f"call_{self._call_id}_{index}"
            block = self._tools[index] = Block(BlockKind.TOOL, len(self.all), call_id)
            self.all.append(block)
        piece = ""
        if call.function is not None:
            # It comes once; an engine that tells it with each piece means the same one.
            block.name = block.name or call.function.name or ""
            piece = call.function.arguments or ""
            block.pieces.append(piece)
        if is_new:
            self._waiting.append(block)
        elif block is self._told:
            yield Step(block, piece, False, [])
        while self._waiting and (self._told is None or _is_whole(self._told)):
            yield self._next()

    def _next(self) -> Step:
        block = self._told = self._waiting.popleft()
        return Step(block, block.text, True, [])


def _is_whole(call: Block) -> bool:
    """Whether nothing can be missing of a call's arguments."""
    return call.text.rstrip().endswith("}") and read_any(call.text.encode()) is not None
