"""Finding model servers: which engine answers at a URL, and which models it serves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import LOOPBACK
from models.catalog import BackendKind

USUAL_PORTS = {"Ollama": 11434, "vLLM": 8000, "SGLang": 30000, "llama.cpp": 8080, "LM Studio": 1234}
DEFAULT_CONTEXT_LENGTH = 4096
"""Where a server does not tell: what Ollama allots, and small enough that no hold is too low."""

_PROBE_SECONDS = 0.3
_GIVEN_SECONDS = 5.0
_KINDS = {"vllm": BackendKind.VLLM, "sglang": BackendKind.SGLANG, "llamacpp": BackendKind.LLAMACPP}
_LARGEST_ANSWER_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server lists it."""

    id: str
    context_length: int


@dataclass(frozen=True, slots=True)
class FoundBackend:
    """A model server that answered. `url` is its root, without `/v1`."""

    name: str
    kind: BackendKind
    url: str
    models: tuple[ServedModel, ...]


def look_around(own_port: int) -> list[FoundBackend]:
    """The servers on the usual local ports, but for our own."""
    urls = [f"http://{LOOPBACK}:{port}" for port in USUAL_PORTS.values() if port != own_port]
    return [found for url in urls if (found := probe(url, _PROBE_SECONDS)) is not None and found.models]


def look_at(urls: Iterable[str]) -> list[FoundBackend]:
    """The servers at the given URLs. Raises `CannotStart` for the first that does not answer with models."""
    found = []
    for url in urls:
        root = url.rstrip("/").removesuffix("/v1")
        if urlsplit(root).scheme not in ("http", "https") or not urlsplit(root).hostname:
            raise CannotStart(f"--backend {url} is no URL; write it as http://HOST:PORT.")
        backend = probe(root, _GIVEN_SECONDS)
        if backend is None:
            raise CannotStart(f"No model server answers GET {root}/v1/models; start it, or correct --backend.")
        if not backend.models:
            raise CannotStart(f"The model server at {root} serves no model yet; load one, then start again.")
        found.append(backend)
    return found


def probe(root: str, timeout_seconds: float) -> FoundBackend | None:
    """What answers `GET /v1/models` at `root`, or None where nothing of the kind does."""
    # trust_env off: a proxy of the environment must not answer for a local port.
    with httpx.Client(base_url=root, timeout=timeout_seconds, trust_env=False) as client:
        listing = _get(client, "/v1/models")
        if listing is None or not isinstance(listing.get("data"), list):
            return None
        entries = [entry for entry in listing["data"] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        kind = _kind(entries)
        if kind is BackendKind.OPENAI and "version" in (_get(client, "/api/version") or {}):
            kind = BackendKind.OLLAMA
        elif kind is BackendKind.OPENAI and "max_input_tokens" in (_get(client, "/info") or {}):
            kind = BackendKind.TGI
    address = f"{kind.value}-{urlsplit(root).hostname}-{urlsplit(root).port or urlsplit(root).scheme}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", address)[:64]
    return FoundBackend(name, kind, root, tuple(ServedModel(entry["id"], _context(entry)) for entry in entries))


def _get(client: httpx.Client, path: str) -> dict[str, Any] | None:
    try:
        response = client.get(path)
        if not response.is_success or len(response.content) > _LARGEST_ANSWER_BYTES:
            return None
        answer = response.json()
    except (httpx.HTTPError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _kind(entries: Iterable[Mapping[str, Any]]) -> BackendKind:
    owners = (str(entry.get("owned_by")) for entry in entries)
    return next((_KINDS[owner] for owner in owners if owner in _KINDS), BackendKind.OPENAI)


def _context(entry: Mapping[str, Any]) -> int:
    """vLLM and SGLang say `max_model_len`, llama.cpp `meta.n_ctx` (of one slot)."""
    meta = entry.get("meta")
    told = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return told if isinstance(told, int) and told > 0 else DEFAULT_CONTEXT_LENGTH
