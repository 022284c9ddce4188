"""Finding out what a model server is by its URL alone: its engine, its models with their contexts, and its counters."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gateway.backends.counters import COUNTING, parse_counters
from models.catalog import BackendKind

DEFAULT_CONTEXT_LENGTH: Final = 4096
"""What Ollama allots, which cuts a prompt to that; and what an engine of our own is given that does not tell."""

UNTOLD_CONTEXT_LENGTH: Final = 131_072
"""Where another server does not tell. Nothing beyond a model's context is charged: one that is too short gives tokens
away, and one that is too long makes the holds of calls without `max_tokens` larger."""

MOST_MODELS: Final = 1_000
"""Of a listing: providers that resell others have hundreds."""

_KINDS: Final = {"vllm": BackendKind.VLLM, "sglang": BackendKind.SGLANG, "llamacpp": BackendKind.LLAMACPP}
_LARGEST_ANSWER_BYTES: Final = 4_000_000
_LONGEST_ID: Final = 500
_CONTEXTS: Final = ("max_model_len", "context_length", "context_window", "max_context_length")
"""vLLM and SGLang; OpenRouter and Tollgate; Groq; Mistral."""
_MODALITIES: Final = {"image": "vision", "audio": "audio"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server lists it. `tokenizer` is a file that the server says it has, on its own disk.

    `parent` is the model whose adapter (LoRA) this is, where the server says so.
    """

    id: str
    context_length: int
    capabilities: tuple[str, ...] = ()
    tokenizer: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class FoundBackend:
    """A model server that answered. `url` is its root, without `/v1`; `has_counters`: it can be reconciled."""

    name: str
    kind: BackendKind
    url: str
    models: tuple[ServedModel, ...]
    has_counters: bool = False


def probe(
    root: str, timeout_seconds: float, *, credential: str | None = None, path_prefix: str | None = None
) -> FoundBackend | None:
    """What answers `GET /v1/models` at `root`, or None where nothing of the kind does.

    `path_prefix` is in the place of `/v1`. No redirect is followed, and no more than a few megabytes are read.
    """
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    # trust_env off: a proxy of the environment must not answer for a local port.
    with httpx.Client(base_url=root, timeout=timeout_seconds, trust_env=False, headers=headers) as client:
        listing = _object(client, f"{path_prefix or '/v1'}/models")
        if listing is None or not isinstance(listing.get("data"), list):
            return None
        entries = [entry for entry in listing["data"][:MOST_MODELS] if _has_id(entry)]
        kind = _kind(entries)
        more: dict[str, Any] = {}
        if kind is BackendKind.OPENAI and path_prefix is None:
            kind, more = _other_kind(client)
        elif kind is BackendKind.LLAMACPP:
            more = _object(client, "/props") or {}
        elif kind is BackendKind.SGLANG:
            more = _object(client, "/get_model_info") or {}
        has_counters = kind in COUNTING and _counts(client, kind)
    address = f"{kind.value}-{urlsplit(root).hostname}-{urlsplit(root).port or urlsplit(root).scheme}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", address)[:64]
    return FoundBackend(name, kind, root, tuple(_served(entry, more, kind) for entry in entries), has_counters)


def _other_kind(client: httpx.Client) -> tuple[BackendKind, dict[str, Any]]:
    """The engines whose listing does not say what they are."""
    if "version" in (_object(client, "/api/version") or {}):
        return BackendKind.OLLAMA, {}
    info = _object(client, "/info") or {}
    return (BackendKind.TGI, info) if "max_input_tokens" in info else (BackendKind.OPENAI, {})


def _object(client: httpx.Client, path: str) -> dict[str, Any] | None:
    content = _get(client, path)
    try:
        answer = None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _get(client: httpx.Client, path: str) -> bytes | None:
    content = b""
    # Each read has its time, but a server that sends byte by byte would never be done.
    ends_at = time.monotonic() + 2 * (client.timeout.read or 0)
    try:
        with client.stream("GET", path) as response:
            if not response.is_success:
                return None
            for piece in response.iter_bytes():
                content += piece
                if len(content) > _LARGEST_ANSWER_BYTES or time.monotonic() > ends_at:
                    return None
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    return content


def _counts(client: httpx.Client, kind: BackendKind) -> bool:
    content = _get(client, "/metrics")
    if content is None:
        return False
    try:
        parse_counters(kind, content.decode("utf-8", "replace"))
    except ValueError:
        # vLLM and SGLang show a counter only once it has counted.
        return b"vllm:" in content or b"sglang:" in content
    return True


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), str) and 0 < len(entry["id"]) <= _LONGEST_ID


def _kind(entries: Iterable[Mapping[str, Any]]) -> BackendKind:
    owners = (str(entry.get("owned_by")) for entry in entries)
    return next((_KINDS[owner] for owner in owners if owner in _KINDS), BackendKind.OPENAI)


def _served(entry: Mapping[str, Any], more: Mapping[str, Any], kind: BackendKind) -> ServedModel:
    parent = entry.get("parent")
    return ServedModel(
        id=entry["id"],
        context_length=_context(entry, more, kind),
        capabilities=_capabilities(entry, more),
        tokenizer=_tokenizer(entry, more),
        parent=parent if isinstance(parent, str) and parent else None,
    )


def _context(entry: Mapping[str, Any], more: Mapping[str, Any], kind: BackendKind) -> int:
    """What the entry says, or llama.cpp in `meta.n_ctx` (of one slot), or TGI of its only model."""
    meta = entry.get("meta")
    told = [entry.get(name) for name in _CONTEXTS]
    told += [meta.get("n_ctx") if isinstance(meta, dict) else None, more.get("max_total_tokens")]
    lengths = [each for each in told if type(each) is int and 0 < each <= 100_000_000]
    if lengths:
        return lengths[0]
    return UNTOLD_CONTEXT_LENGTH if kind is BackendKind.OPENAI else DEFAULT_CONTEXT_LENGTH


def _capabilities(entry: Mapping[str, Any], more: Mapping[str, Any]) -> tuple[str, ...]:
    """What a server tells: llama.cpp its modalities, OpenRouter the kinds of input; embeddings by their name."""
    architecture = entry.get("architecture")
    inputs = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    found = {_MODALITIES[each] for each in inputs or () if each in _MODALITIES} if isinstance(inputs, list) else set()
    modalities = more.get("modalities")
    if isinstance(modalities, dict):
        found |= {name for name in ("vision", "audio") if modalities.get(name) is True}
    if "embed" in entry["id"].lower():
        found.add("embeddings")
    return tuple(sorted(found))


def _tokenizer(entry: Mapping[str, Any], more: Mapping[str, Any]) -> str | None:
    """SGLang says where its tokenizer is; vLLM has it in the directory of the model."""
    told = more.get("tokenizer_path") or entry.get("root")
    if not isinstance(told, str) or not told.startswith("/") or len(told) > _LONGEST_ID:
        return None
    return told if told.endswith(".json") else f"{told.rstrip('/')}/tokenizer.json"
