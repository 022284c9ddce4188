"""The errors of every engine, as their sources write them, become ours: for each endpoint, in each client's API."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest

from gateway.api.errors import render, shape_of
from gateway.api.requests import parse
from gateway.backends.failures import failure
from gateway.calls.commands import Command, Release, SendBody, SendError
from gateway.calls.machine import Call
from models.call import CallRequest, Endpoint, Hold, Upload
from models.catalog import BackendKind
from models.errors import BackendFailed, InvalidRequest, TollgateError
from tests.unit.samples import deployment, make_call

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT_COMPLETIONS: {"messages": MESSAGES},
    Endpoint.COMPLETIONS: {"prompt": "hi"},
    Endpoint.EMBEDDINGS: {"input": "hi"},
    Endpoint.RESPONSES: {"input": "hi"},
    Endpoint.MESSAGES: {"messages": MESSAGES, "max_tokens": 5},
    Endpoint.RERANK: {"query": "hi", "documents": ["hi"]},
    Endpoint.MODERATIONS: {"input": "hi"},
    Endpoint.IMAGES: {"prompt": "hi"},
}
HEARING: dict[str, Any] = {"upload": Upload("wav", b"RIFF"), "audio_seconds_bound": 3, "audio_format": "json"}


def asked(endpoint: Endpoint, *, stream: bool = False) -> CallRequest:
    if endpoint.hears:
        return CallRequest(endpoint, "m", {"response_format": "json"}, stream, **HEARING)
    more = {"stream": True} if stream else {}
    return parse(endpoint, json.dumps({"model": "m", **BODIES[endpoint], **more}).encode())


def begun(request: CallRequest, kind: BackendKind = BackendKind.OPENAI) -> Call:
    call = make_call(request, (deployment(kind, known_as="/models/secret-name"),))
    call.begin()
    call.hold_answered(Hold(call.hold_request))
    call.upstream_sent()
    return call


def error_of(commands: list[Command]) -> TollgateError:
    """The error that the client gets as a whole answer; nothing is charged for it."""
    (sent,) = [command for command in commands if isinstance(command, SendError)]
    assert [command for command in commands if isinstance(command, Release)]
    return sent.error


VLLM = {
    "error": {"message": "max_tokens is too large: 9", "type": "BadRequestError", "param": "max_tokens", "code": 400}
}
SGLANG = {"object": "error", "message": "max_tokens is too large: 9", "type": "BadRequest", "param": None, "code": 400}
ANTHROPIC = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens is too large: 9"}}
TGI = {"error": "max_tokens is too large: 9", "error_type": "validation"}
OLLAMA = {
    "error": {"message": "max_tokens is too large: 9", "type": "invalid_request_error", "param": None, "code": None}
}
LLAMACPP = {"error": {"code": 400, "message": "max_tokens is too large: 9", "type": "invalid_request_error"}}
FASTAPI = {"detail": [{"loc": ["body", "x"], "msg": "max_tokens is too large: 9", "type": "value_error"}]}
STARLETTE = {"detail": "max_tokens is too large: 9"}
SHAPES = [
    pytest.param(400, VLLM, id="vLLM, nested with a number as code"),
    pytest.param(400, SGLANG, id="SGLang, flat"),
    pytest.param(400, ANTHROPIC, id="SGLang, on messages"),
    pytest.param(422, TGI, id="TGI, a string"),
    pytest.param(400, OLLAMA, id="Ollama"),
    pytest.param(400, LLAMACPP, id="llama.cpp"),
    pytest.param(422, FASTAPI, id="FastAPI, a list"),
    pytest.param(415, STARLETTE, id="Starlette"),
]


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize(("status", "body"), SHAPES)
def test_what_the_client_did_wrong_is_told(endpoint: Endpoint, status: int, body: Any) -> None:
    call = begun(asked(endpoint))
    call.upstream_head(status, b"application/json")
    call.upstream_bytes(json.dumps(body).encode())
    call.upstream_end()
    error = error_of(call.take())
    assert isinstance(error, InvalidRequest)
    assert error.message == "max_tokens is too large: 9"
    told = json.loads(render(error, request_id="r", path=endpoint).body)
    if endpoint is Endpoint.MESSAGES:
        assert told == {
            "type": "error", "error": {"type": "invalid_request_error", "message": error.message}, "request_id": "r",
        }  # fmt: skip
    else:
        assert told["error"] == {
            "message": error.message, "type": "invalid_request_error", "param": None, "code": None,
        }  # fmt: skip


HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx/1.25 at http://10.0.0.7</body></html>"
UNSEEN = {"error": {"code": 500, "message": "image input is not supported - hint: mmproj", "type": "server_error"}}
LONG = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 5_000,
        "n_ctx": 4_096,
    }
}
NO_MODEL = {
    "error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
}
NO_PATH = {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
NO_TASK = {"error": {"code": 501, "message": "Start it with `--reranking`", "type": "not_supported_error"}}
BAD_KEY = {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}


def both(status: int, code: str | None) -> dict[Endpoint, tuple[int, str | None]]:
    return dict.fromkeys(Endpoint, (status, code))


def optional(status: int, code: str | None, *, else_: tuple[int, str | None]) -> dict[Endpoint, tuple[int, str | None]]:
    return {endpoint: else_ if endpoint.generates else (status, code) for endpoint in Endpoint}


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(400, LONG, both(400, "context_length_exceeded"), id="llama.cpp, a prompt that is too long"),
        pytest.param(500, UNSEEN, both(400, "unsupported_content"), id="llama.cpp, a picture that it cannot see"),
        pytest.param(501, NO_TASK, both(400, "unsupported_endpoint"), id="501"),
        pytest.param(
            404, NO_PATH, optional(400, "unsupported_endpoint", else_=(502, "backend_failed")), id="llama.cpp, no path"
        ),
        pytest.param(
            404, NO_MODEL, optional(400, "unsupported_endpoint", else_=(502, "backend_failed")), id="vLLM, no model"
        ),
        pytest.param(401, BAD_KEY, both(502, "backend_failed"), id="our key is wrong"),
        pytest.param(403, BAD_KEY, both(502, "backend_failed"), id="our key may not"),
        pytest.param(429, VLLM, both(503, "unavailable"), id="busy"),
        pytest.param(503, HTML, both(503, "unavailable"), id="HTML, busy"),
        pytest.param(502, HTML, both(502, "backend_failed"), id="HTML of a proxy"),
        pytest.param(400, HTML, both(400, None), id="HTML with a 400"),
        pytest.param(500, b"", both(502, "backend_failed"), id="nothing"),
        pytest.param(500, b"\xff\xfe{", both(502, "backend_failed"), id="no text"),
        pytest.param(500, [1], both(502, "backend_failed"), id="a list"),
        pytest.param(500, {"error": {"message": {"a": 1}}}, both(502, "backend_failed"), id="a message that is none"),
        pytest.param(302, b"", both(502, "backend_failed"), id="a redirect"),
        pytest.param(
            200, {"error": {"message": "no", "code": 500}}, both(502, "backend_failed"), id="200 with an error"
        ),
        pytest.param(200, HTML, both(502, "backend_failed"), id="200 with HTML"),
        pytest.param(200, b"", both(502, "backend_failed"), id="200 with nothing"),
    ],
)
def test_each_error_has_one_meaning(
    endpoint: Endpoint, status: int, body: Any, expected: dict[Endpoint, tuple[int, str | None]]
) -> None:
    call = begun(asked(endpoint))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    # Nobody is asked again here: there is one deployment.
    call.upstream_head(status, b"application/json")
    call.upstream_bytes(content)
    call.upstream_end()
    error = error_of(call.take())
    rendered = render(error, request_id="r", path=endpoint)
    told = json.loads(rendered.body)
    assert (rendered.status, getattr(error, "code", None) or shape_of(error).code) == expected[endpoint]
    for secret in ("10.0.0.7", "nginx", "secret-name", "--reranking", "mmproj", "Invalid API Key", "File Not"):
        assert secret not in rendered.body.decode()
    if endpoint is Endpoint.MESSAGES:
        assert set(told) == {"type", "error", "request_id"}
    else:
        assert set(told["error"]) == {"message", "type", "param", "code"}


STREAMED = [endpoint for endpoint in Endpoint if endpoint.generates or endpoint is Endpoint.TRANSCRIPTIONS]
FIRST = {
    Endpoint.COMPLETIONS: {"choices": [{"index": 0, "text": "hi", "finish_reason": None}]},
    Endpoint.TRANSCRIPTIONS: {"type": "transcript.text.delta", "delta": "hi"},
}
CHAT_CHUNK = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": None}]}
IN_STREAM = [
    pytest.param(VLLM, id="vLLM"),
    pytest.param({**SGLANG, "code": 500}, id="SGLang, flat"),
    pytest.param(TGI, id="TGI, a string"),
    pytest.param({"type": "error", **LLAMACPP}, id="with a type"),
]


@pytest.mark.parametrize("endpoint", STREAMED)
@pytest.mark.parametrize("body", IN_STREAM)
def test_an_error_in_mid_stream_ends_it_as_sdks_expect(endpoint: Endpoint, body: Any) -> None:
    call = begun(asked(endpoint, stream=True))
    call.upstream_head(200, b"text/event-stream")
    events = deque([FIRST.get(endpoint, CHAT_CHUNK), body])
    call.upstream_bytes(b"".join(b"data:" + json.dumps(event).encode() + b"\n\n" for event in events))
    # None of them has told its usage.
    call.counted(None)
    call.settled()
    told = b"".join(command.data for command in call.take() if isinstance(command, SendBody)).decode()
    last = told.strip().rpartition("\n\n")[2]
    assert "hi" in told
    assert "[DONE]" not in told
    assert call.charge is not None
    assert call.charge.ending == "backend_failed"
    data = json.loads(last.partition("data:")[2])
    match endpoint:
        case Endpoint.MESSAGES:
            assert (data["type"], set(data["error"])) == ("error", {"type", "message"})
        case Endpoint.RESPONSES:
            assert data["type"] in ("response.failed", "error")
        case _:
            assert set(data["error"]) == {"message", "type", "param", "code"}
            assert data["error"]["message"] == "max_tokens is too large: 9"


def test_a_secret_is_in_no_error() -> None:
    one = deployment()
    for text in (
        f"cannot reach {one.backend.url}",
        "bad key s3cr3t",
        "at 10.1.2.3",
        "Traceback (most recent call last)",
    ):
        for body in ({"error": {"message": text}}, {"error": text}, {"detail": [{"msg": text}]}, {"message": text}):
            error = failure(400, json.dumps(body).encode(), one, Endpoint.CHAT_COMPLETIONS)
            assert error.message == "The model's backend refused the request."
    assert isinstance(failure(500, b"{}", one, Endpoint.CHAT_COMPLETIONS), BackendFailed)
