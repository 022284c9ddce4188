"""Puts a streamed answer together again, for clients that did not ask for a stream."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from models.call import Endpoint

_OBJECTS = {Endpoint.CHAT_COMPLETIONS: "chat.completion", Endpoint.COMPLETIONS: "text_completion"}
# Pieces of these are the same in every event; all other text is a piece of a longer one.
_NOT_PIECES = frozenset({"role", "type", "id", "name"})
_PLAIN = frozenset({"index", "delta", "finish_reason", "logprobs"})
_INNER = frozenset({"choices", "usage", "timings", "object"})


class Aggregate:
    """Fed with the decoded events of a stream; gives the answer that a call without `stream` would have got."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._head: dict[str, Any] = {}
        self._known: Set[str] = frozenset()
        self._choices: dict[int, dict[str, Any]] = {}
        self._contents: dict[int, list[str]] = {}

    def add(self, event: Any) -> None:
        """Take in one event."""
        if not isinstance(event, dict):
            return
        # The head is the same in every event, but a later one may have more.
        if event.keys() != self._known:
            self._known = event.keys()
            for name in event.keys() - self._head.keys() - _INNER:
                self._head[name] = event[name]
        for choice in event.get("choices") or ():
            # A token, and nothing else: what almost all events are.
            delta, contents = choice.get("delta"), self._contents.get(choice.get("index", 0))
            if contents is not None and delta is not None and len(delta) == 1 and _is_plain(choice):
                content = delta.get("content")
                if isinstance(content, str):
                    contents.append(content)
                    continue
            self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        whole = self._choices.get(index)
        if whole is None:
            whole = self._choices[index] = {"index": index}
            self._contents[index] = []
        for name, value in choice.items():
            if name == "delta" and isinstance(value, dict):
                self._add_delta(whole, index, value)
            elif name == "text" and isinstance(value, str):
                self._contents[index].append(value)
            elif name == "logprobs" and isinstance(value, dict):
                _merge_logprobs(whole, value)
            elif value is not None or name not in whole:
                whole[name] = value

    def _add_delta(self, whole: dict[str, Any], index: int, delta: dict[str, Any]) -> None:
        # Thousands of pieces of content: kept as a list, joined once.
        content = delta.get("content")
        if isinstance(content, str):
            self._contents[index].append(content)
            if len(delta) == 1:
                return
        message = whole.setdefault("message", {})
        _merge(message, {name: value for name, value in delta.items() if name != "content"})

    def answer(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The whole answer; choices in the order of their index."""
        choices = []
        for index, choice in sorted(self._choices.items()):
            choice.setdefault("finish_reason", None)
            choice.setdefault("logprobs", None)
            pieces = self._contents[index]
            if self._endpoint is Endpoint.CHAT_COMPLETIONS:
                choice["message"] = {
                    "role": "assistant",
                    "refusal": None,
                    **choice.get("message", {}),
                    "content": "".join(pieces) if pieces else None,
                }
                for call in choice["message"].get("tool_calls") or ():
                    call.pop("index", None)
            else:
                choice["text"] = "".join(pieces)
            choices.append(choice)
        return {**self._head, "object": _OBJECTS[self._endpoint], "choices": choices, "usage": usage}


def _is_plain(choice: dict[str, Any]) -> bool:
    """Whether a choice says nothing beside its delta."""
    return choice.keys() <= _PLAIN and choice.get("finish_reason") is None and choice.get("logprobs") is None


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        before = whole.get(name)
        if before is None:
            whole[name] = _indexed(value) if isinstance(value, list) else value
        elif isinstance(value, str) and isinstance(before, str):
            whole[name] = value if name in _NOT_PIECES and value else before + value
        elif isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif isinstance(value, list) and isinstance(before, list):
            _merge_list(before, value)
        elif value is not None:
            whole[name] = value


def _indexed(items: list[Any]) -> list[Any]:
    merged: list[Any] = []
    _merge_list(merged, items)
    return merged


def _merge_list(whole: list[Any], pieces: list[Any]) -> None:
    """Pieces of tool calls say by `index` which call they continue; other lists grow."""
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        known = next((item for item in whole if isinstance(item, dict) and item.get("index") == index), None)
        if index is None or known is None:
            whole.append(dict(piece) if isinstance(piece, dict) else piece)
        else:
            _merge(known, piece)


def _merge_logprobs(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    before = whole.get("logprobs")
    if not isinstance(before, dict):
        whole["logprobs"] = {name: list(value) if isinstance(value, list) else value for name, value in piece.items()}
        return
    for name, value in piece.items():
        if isinstance(value, list) and isinstance(before.get(name), list):
            before[name].extend(value)
        elif value is not None:
            before[name] = value
