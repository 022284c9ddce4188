"""Model servers for `tollgate up`: those it is given, or those on the usual ports of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from gateway.discovery import FoundBackend, probe
from gateway.embedded.errors import CannotStart
from gateway.embedded.ports import LOOPBACK

USUAL_PORTS = {"Ollama": 11434, "vLLM": 8000, "SGLang": 30000, "llama.cpp": 8080, "LM Studio": 1234}

_PROBE_SECONDS = 0.3
_GIVEN_SECONDS = 5.0


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
