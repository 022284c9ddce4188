"""Which engine answers at a URL, told from what it says; real llama.cpp, and the listings of the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.discovery import DEFAULT_CONTEXT_LENGTH, UNTOLD_CONTEXT_LENGTH, FoundBackend, ServedModel, probe
from gateway.embedded.errors import CannotStart
from gateway.embedded.llamacpp import LlamaCpp
from gateway.embedded.local import look_at
from gateway.embedded.ports import free_port
from models.catalog import BackendKind


@contextmanager
def serving(answers: dict[str, Any]) -> Iterator[str]:
    """A server that answers these paths; its root URL."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def listing(**entry: Any) -> dict[str, Any]:
    return {"/v1/models": {"object": "list", "data": [{"id": "m", "object": "model", **entry}]}}


@pytest.mark.parametrize(
    ("answers", "kind", "context_length"),
    [
        pytest.param(listing(owned_by="vllm", max_model_len=32768), BackendKind.VLLM, 32768, id="vLLM"),
        pytest.param(listing(owned_by="sglang", max_model_len=8192), BackendKind.SGLANG, 8192, id="SGLang"),
        pytest.param(
            listing(owned_by="library") | {"/api/version": {"version": "0.9"}},
            BackendKind.OLLAMA,
            DEFAULT_CONTEXT_LENGTH,
            id="Ollama, which does not tell its context",
        ),
        pytest.param(
            listing(owned_by="tgi") | {"/info": {"max_input_tokens": 1024}},
            BackendKind.TGI,
            DEFAULT_CONTEXT_LENGTH,
            id="TGI",
        ),
        pytest.param(listing(owned_by="organization_owner"), BackendKind.OPENAI, UNTOLD_CONTEXT_LENGTH, id="LM Studio"),
    ],
)
def test_engine_is_recognised(answers: dict[str, Any], kind: BackendKind, context_length: int) -> None:
    with serving(answers) as root:
        found = probe(root, 5)
    assert found is not None
    assert found.kind is kind
    assert found.models == (ServedModel("m", context_length),)


def test_llamacpp_is_recognised(llamacpp: LlamaCpp) -> None:
    assert look_at([f"{llamacpp.url}/v1/"]) == [
        FoundBackend(
            f"llamacpp-127.0.0.1-{llamacpp.port}",
            BackendKind.LLAMACPP,
            llamacpp.url,
            (ServedModel("tiny", 4096),),
            has_counters=True,
        )
    ]


@pytest.mark.parametrize("answer", [None, [], {"data": None}, {"data": [{"name": "no id"}, 7]}, "text"])
def test_other_programs_are_no_backends(answer: Any) -> None:
    with serving({"/v1/models": answer}) as root:
        found = probe(root, 5)
    assert found is None or found.models == ()


def test_nothing_there_is_no_backend() -> None:
    assert probe(f"http://127.0.0.1:{free_port()}", 0.3) is None


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "not a url"])
def test_given_url_must_be_one(url: str) -> None:
    with pytest.raises(CannotStart, match="is no URL"):
        look_at([url])
