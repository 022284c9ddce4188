"""How an engine is asked to count tokens, to tell them, and to make text of them. Pure.

The paths are these and no others: on the same port engines have paths that stop them (facts on backends, section 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from models.catalog import BackendKind
from models.values import value


@value
class Question:
    """A request to a backend: a path of the list below, and its body."""

    path: str
    body: dict[str, Any]


class Tokenizing:
    """An engine without counters; the others are below. What it cannot be asked is None."""

    paths: frozenset[str] = frozenset()

    def chat_count(self, model: str, chat: Mapping[str, Any]) -> Question | None:
        """Ask how many tokens a chat is, in the template of the model; `read_count` reads the answer."""
        return None

    def chat_text(self, model: str, chat: Mapping[str, Any]) -> Question | None:
        """Ask for a chat as the text that its template makes of it; the answer is `prompt`."""
        return None

    def tokens(self, model: str, text: str, *, adds_special: bool) -> Question | None:
        """Ask for the tokens of a text; `read_tokens` reads the answer."""
        return None

    def text(self, model: str, tokens: list[int]) -> Question | None:
        """Ask for the text of tokens; `read_text` reads the answer."""
        return None


class _LlamaCpp(Tokenizing):
    """Measured: `input_tokens` is what the call is charged for (14 = 14, 119 with a tool)."""

    paths = frozenset({"/v1/chat/completions/input_tokens", "/apply-template", "/tokenize", "/detokenize"})

    def chat_count(self, model: str, chat: Mapping[str, Any]) -> Question | None:
        return Question("/v1/chat/completions/input_tokens", {**chat, "model": model})

    def chat_text(self, model: str, chat: Mapping[str, Any]) -> Question | None:
        return Question("/apply-template", {**chat, "model": model})

    def tokens(self, model: str, text: str, *, adds_special: bool) -> Question | None:
        return Question("/tokenize", {"content": text, "add_special": adds_special, "parse_special": True})

    def text(self, model: str, tokens: list[int]) -> Question | None:
        return Question("/detokenize", {"tokens": tokens})


class _VLLM(Tokenizing):
    """`entrypoints/serve/tokenize`: one path for texts and chats; other fields of a chat change nothing."""

    paths = frozenset({"/tokenize", "/detokenize"})

    def chat_count(self, model: str, chat: Mapping[str, Any]) -> Question | None:
        kept = {name: chat[name] for name in ("messages", "tools") if name in chat}
        return Question("/tokenize", {**kept, "model": model, "add_generation_prompt": True})

    def tokens(self, model: str, text: str, *, adds_special: bool) -> Question | None:
        return Question("/tokenize", {"model": model, "prompt": text, "add_special_tokens": adds_special})

    def text(self, model: str, tokens: list[int]) -> Question | None:
        return Question("/detokenize", {"model": model, "tokens": tokens})


class _SGLang(Tokenizing):
    """`srt/entrypoints/openai/serving_tokenize.py`: texts, no chats."""

    paths = frozenset({"/v1/tokenize", "/v1/detokenize"})

    def tokens(self, model: str, text: str, *, adds_special: bool) -> Question | None:
        return Question("/v1/tokenize", {"model": model, "prompt": text, "add_special_tokens": adds_special})

    def text(self, model: str, tokens: list[int]) -> Question | None:
        return Question("/v1/detokenize", {"model": model, "tokens": tokens, "skip_special_tokens": False})


class _TGI(Tokenizing):
    """`router/src/server.rs`: special tokens are always added."""

    paths = frozenset({"/chat_tokenize", "/tokenize"})

    def chat_count(self, model: str, chat: Mapping[str, Any]) -> Question | None:
        kept = {name: chat[name] for name in ("messages", "tools") if name in chat}
        return Question("/chat_tokenize", {**kept, "model": model})

    def tokens(self, model: str, text: str, *, adds_special: bool) -> Question | None:
        return Question("/tokenize", {"inputs": text}) if adds_special else None


TOKENIZING: Final[Mapping[BackendKind, Tokenizing]] = {
    BackendKind.LLAMACPP: _LlamaCpp(),
    BackendKind.VLLM: _VLLM(),
    BackendKind.SGLANG: _SGLang(),
    BackendKind.TGI: _TGI(),
    BackendKind.OLLAMA: Tokenizing(),
    BackendKind.OPENAI: Tokenizing(),
}


def read_count(answer: Any) -> int | None:
    """The number of tokens in an engine's answer; None where it has none that makes sense."""
    if isinstance(answer, dict):
        for name in ("input_tokens", "count"):
            number = answer.get(name)
            if type(number) is int and 0 <= number < 2**31:
                return number
    tokens = read_tokens(answer)
    return None if tokens is None else len(tokens)


def read_tokens(answer: Any) -> list[int] | None:
    """The tokens in an engine's answer: their numbers, or objects that have these as `id` (TGI)."""
    if isinstance(answer, dict):
        answer = answer.get("tokens", answer.get("tokenize_response"))
    if not isinstance(answer, list):
        return None
    tokens: list[Any] = [item.get("id") if isinstance(item, dict) else item for item in answer]
    return tokens if all(type(token) is int and 0 <= token < 2**31 for token in tokens) else None


def read_text(answer: Any) -> str | None:
    """The text in an engine's answer: `prompt` (vLLM, a rendered chat), `content` (llama.cpp) or `text` (SGLang)."""
    if isinstance(answer, dict):
        for name in ("prompt", "content", "text"):
            if isinstance(answer.get(name), str):
                return str(answer[name])
    return None
