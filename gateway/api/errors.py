"""The one table from exceptions to HTTP answers in OpenAI's error shape, and the ids that errors are reported by."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from billing.store.constraints import refusal
from models.errors import (
    BackendFailed,
    BackendTimedOut,
    BrokenPromise,
    Conflict,
    InsufficientBalance,
    InvalidRequest,
    ModelNotFound,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RateLimited,
    SpendLimitReached,
    TollgateError,
    Unavailable,
)
from models.ids import uuid7

_log = structlog.get_logger("tollgate.errors")


class Shape(NamedTuple):
    """How one kind of error looks: HTTP status, OpenAI `type`, default `code`."""

    status: int
    type: str
    code: str | None


TABLE: Final[dict[type[TollgateError], Shape]] = {
    InvalidRequest: Shape(400, "invalid_request_error", None),
    ModelNotFound: Shape(404, "not_found", "model_not_found"),
    NotAuthenticated: Shape(401, "authentication_error", "invalid_api_key"),
    NotPermitted: Shape(403, "permission_error", "permission_denied"),
    NotFound: Shape(404, "not_found", "not_found"),
    Conflict: Shape(409, "conflict", "conflict"),
    InsufficientBalance: Shape(402, "insufficient_balance", "insufficient_balance"),
    SpendLimitReached: Shape(402, "insufficient_quota", "spend_limit_reached"),
    RateLimited: Shape(429, "rate_limit_error", "rate_limit_exceeded"),
    Unavailable: Shape(503, "api_error", "unavailable"),
    BackendFailed: Shape(502, "api_error", "backend_failed"),
    BackendTimedOut: Shape(504, "api_error", "backend_timed_out"),
    BrokenPromise: Shape(500, "api_error", "internal_error"),
    TollgateError: Shape(500, "api_error", "internal_error"),
}
"""Every exception of `models.errors`; one that is not listed has the shape of its nearest listed parent."""

_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_balance",
    403: "permission_error",
    404: "not_found",
    409: "conflict",
    429: "rate_limit_error",
}
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 415: "unsupported_media_type"}
_ROUTE_SENTENCES: Final = {
    404: "There is no such route. Check the method and the path (the base URL of OpenAI's clients ends with /v1); "
    "unknown routes are never passed on.",
    405: "This route exists, but not for this method.",
}
_NO_OBJECT: Final = "Send a body that is a JSON object, as content-type application/json."
_IS_NO_OBJECT: Final = frozenset({"missing", "model_attributes_type"})
_REASONS: Final = {
    "uuid_parsing": "must be an id, as lists and answers show it",
    "model_attributes_type": "must be an object",
    "extra_forbidden": "there is no such field here",
}
"""What is said instead of pydantic's own words, by the type of the error."""
_INTERNAL: Final = "Something went wrong on our side. Try again, and report the request id if it happens again."
_KEY: Final = re.compile(r"\btg_[a-z]+_\w+", re.ASCII)
_SECRET_NAMES: Final = re.compile(r"credential|password|secret|authorization|(^|[._])(api_key|key|token)$", re.I)
_LONGEST_MESSAGE: Final = 1_000


class Rendered(NamedTuple):
    """An answer ready to be sent: status, header lines in lower case with `content-length`, body in JSON."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _Body(msgspec.Struct):
    error: _Error


class _AnthropicError(msgspec.Struct):
    type: str
    message: str


class _AnthropicBody(msgspec.Struct):
    error: _AnthropicError
    request_id: str
    type: str = "error"


_ANTHROPIC_PATH: Final = "/v1/messages"
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_encoder = msgspec.json.Encoder()


def shape_of(error: TollgateError) -> Shape:
    """Status, type and default code of an error; `InvalidRequest` may carry a status of its own."""
    shape = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    if isinstance(error, InvalidRequest) and error.status != 400:
        return shape._replace(status=error.status, type=_type_of(error.status))
    return shape


def error_body(error: TollgateError) -> bytes:
    """The JSON body `{"error": {"message", "type", "param", "code"}}`."""
    return _encoder.encode(_Body(_told_of(error)))


def is_anthropic(path: str) -> bool:
    """Whether answers to this path have the shape of Anthropic's API instead of OpenAI's."""
    return path.startswith(_ANTHROPIC_PATH)


def _told_of(error: TollgateError) -> _Error:
    shape = shape_of(error)
    param = code = None
    if isinstance(error, InvalidRequest):
        param, code = error.param, error.code
        if isinstance(error, ModelNotFound):
            param = param or "model"
    # A 500 is a bug or a broken ledger: its message is for the log, not for strangers.
    message = _INTERNAL if shape.status == 500 else error.message
    return _told(message, shape.type, param, code or shape.code)


def render(error: TollgateError, *, request_id: str, path: str = "") -> Rendered:
    """The whole HTTP answer of an error, in the shape of the API of `path`.

    Retry delays are rounded up; 402 tells the SDKs not to try again.
    """
    shape = shape_of(error)
    extra: list[tuple[bytes, bytes]] = []
    if isinstance(error, RateLimited | Unavailable):
        milliseconds = max(1, error.retry_after_ms)
        extra.append((b"retry-after", b"%d" % -(-milliseconds // 1_000)))
        extra.append((b"retry-after-ms", b"%d" % milliseconds))
    elif shape.status == 402:
        extra.append((b"x-should-retry", b"false"))
    elif shape.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    return _rendered(shape.status, _told_of(error), request_id, path, extra)


def request_id_of(scope: Scope) -> str:
    """The id under which this request is answered and logged; made here if no middleware made one."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = str(uuid7(datetime.now(UTC)))
    return str(state["request_id"])


class RequestIds:
    """ASGI middleware: every answer carries `x-request-id`, and `request.state.request_id` is the same id.

    Anthropic's SDKs read it in `request-id`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; connections that are not HTTP pass unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Never the client's own header: an id we did not make could forge log lines or collide with a call.
        request_id = request_id_of(scope).encode()
        names = (b"x-request-id", b"request-id") if is_anthropic(scope["path"]) else (b"x-request-id",)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                present = {name for name, _ in headers}
                message["headers"] = [*headers, *((name, request_id) for name in names if name not in present)]
            await send(message)

        await self._app(scope, receive, send_with_id)


def install(app: FastAPI) -> None:
    """Answer every exception of this application in the OpenAI shape, and give every request an id."""
    app.add_middleware(RequestIds)
    app.add_exception_handler(TollgateError, _on_tollgate_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for away in (DBAPIError, PoolTimeout, OSError):
        app.add_exception_handler(away, _on_database_error)
    app.add_exception_handler(Exception, _on_anything_else)


async def _on_tollgate_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TollgateError)
    request_id = request_id_of(request.scope)
    if shape_of(error).status == 500:
        _log.error("broken_promise", request_id=request_id, exc_info=error)
    return _response(render(error, request_id=request_id, path=request.url.path))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))[:200]
    if first["type"] == "json_invalid" or (first["loc"] == ("body",) and first["type"] in _IS_NO_OBJECT):
        told = _told(_NO_OBJECT, "invalid_request_error", None, "invalid_value")
        return _response(_rendered(422, told, request_id_of(request.scope), request.url.path, []))
    if _SECRET_NAMES.search(param):
        # What pydantic says may quote the value, so a field that holds a secret gets no more than its name.
        reason = "the value is not valid"
    else:
        reason = _REASONS.get(first["type"], str(first["msg"]).removeprefix("Value error, "))
    told = _told(f"{param or 'body'}: {reason}", "invalid_request_error", param or None, "invalid_value")
    return _response(_rendered(422, told, request_id_of(request.scope), request.url.path, []))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    message = _ROUTE_SENTENCES.get(status) or (_INTERNAL if status == 500 else str(error.detail))
    extra = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    told = _told(message, _type_of(status), None, _CODES.get(status))
    return _response(_rendered(status, told, request_id_of(request.scope), request.url.path, extra))


async def _on_database_error(request: Request, error: Exception) -> Response:
    told: TollgateError | None = Unavailable("The database cannot be reached now. Try again in a moment.")
    if isinstance(error, DBAPIError):
        told = refusal(error)
    if told is None:
        return await _on_anything_else(request, error)
    request_id = request_id_of(request.scope)
    _log.warning("database_refused", request_id=request_id, exc_info=error)
    return _response(render(told, request_id=request_id, path=request.url.path))


async def _on_anything_else(request: Request, error: Exception) -> Response:
    request_id = request_id_of(request.scope)
    _log.error("unexpected_error", request_id=request_id, exc_info=error)
    told = _told(_INTERNAL, "api_error", None, "internal_error")
    return _response(_rendered(500, told, request_id, request.url.path, []))


def _type_of(status: int) -> str:
    if status >= 500:
        return "api_error"
    return _TYPES.get(status, "invalid_request_error")


def _told(message: str, kind: str, param: str | None, code: str | None) -> _Error:
    if "tg_" in message:
        # A key that was sent in the wrong place must not come back in an answer that is logged elsewhere.
        message = _KEY.sub("[key]", message)
    # Encoding with replacement: a lone surrogate from a request would make an error about an error.
    return _Error(message[:_LONGEST_MESSAGE].encode("utf-8", "replace").decode(), kind, param, code)


def _rendered(status: int, told: _Error, request_id: str, path: str, extra: list[tuple[bytes, bytes]]) -> Rendered:
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = _encoder.encode(_AnthropicBody(_AnthropicError(kind, told.message), request_id))
        extra = [*extra, (b"request-id", request_id.encode())]
    else:
        body = _encoder.encode(_Body(told))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *extra,
    ]
    return Rendered(status, headers, body)


def _response(rendered: Rendered) -> Response:
    response = Response(rendered.body, rendered.status)
    response.raw_headers = rendered.headers
    return response
