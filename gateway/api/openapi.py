"""The metered endpoints on the OpenAPI page: they do not pass through FastAPI, so it does not know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.api import images, messages, moderations, parameters, reranks, responses, transcripts
from gateway.api.errors import is_anthropic
from models.call import Endpoint

_MESSAGES: Final = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
_SOUND: Final = {"file": "@speech.wav", "model": "whisper"}
_ENDPOINTS: Final[Mapping[Endpoint, tuple[str, Mapping[str, parameters.Check], str, Mapping[str, Any]]]] = {
    Endpoint.CHAT_COMPLETIONS: ("Answer a conversation", parameters.CHAT, "messages", _MESSAGES),
    Endpoint.COMPLETIONS: (
        "Continue a text",
        parameters.COMPLETIONS,
        "prompt",
        {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 64},
    ),
    Endpoint.EMBEDDINGS: ("Embed texts", parameters.EMBEDDINGS, "input", {"model": "tiny", "input": ["one", "two"]}),
    Endpoint.RESPONSES: (
        "Answer with the Responses API",
        responses.RESPONSES,
        "input",
        {"model": "tiny", "input": "Hello", "max_output_tokens": 64},
    ),
    Endpoint.MESSAGES: ("Answer with the Messages API of Anthropic", messages.MESSAGES, "messages", _MESSAGES),
    Endpoint.RERANK: (
        "Order documents by their relevance to a query",
        reranks.RERANK,
        "documents",
        {"model": "ranker", "query": "a cat", "documents": ["a dog", "a kitten"], "top_n": 1},
    ),
    Endpoint.MODERATIONS: (
        "Judge whether a text is harmful",
        moderations.MODERATIONS,
        "input",
        {"model": "judge", "input": "Hello"},
    ),
    Endpoint.IMAGES: ("Make images", images.IMAGES, "prompt", {"model": "painter", "prompt": "a cat", "n": 1}),
    Endpoint.TRANSCRIPTIONS: ("Write down what is said", transcripts.TRANSCRIPTIONS, transcripts.FILE, _SOUND),
    Endpoint.TRANSLATIONS: ("Write down in English what is said", transcripts.TRANSLATIONS, transcripts.FILE, _SOUND),
}
_TYPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "model": {"type": "string"},
    "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    "max_tokens": {"type": "integer", "minimum": 1},
    "max_completion_tokens": {"type": "integer", "minimum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": parameters.MAX_CHOICES},
    "query": {"type": "string", "minLength": 1},
    "documents": {"type": "array", "minItems": 1, "maxItems": reranks.MAX_DOCUMENTS},
    "top_n": {"type": "integer", "minimum": 1},
    "stream": {"type": "boolean"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
}
_ERRORS: Final = {
    400: "A parameter is wrong; `error.param` names it",
    401: "No valid key",
    402: "The balance does not cover the highest price the call can have",
    403: "The key may not do this",
    404: "The model does not exist, or is not sold to you",
    413: "The body is too large",
    429: "A rate limit is reached; `retry-after` says when",
    502: "The model's backend failed; nothing was charged",
    503: "The ledger or the backend cannot take the call now; nothing was charged",
    504: "The model's backend did not answer in time; nothing was charged",
}


_EVENT: Final[dict[str, Any]] = {
    "description": "One event of the stream",
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_ANY_ERRORS: Final = {
    400: "The request cannot be served; the message says why",
    401: "No valid key",
    403: "The key is of another kind, or may not do this",
    404: "There is no such object, as far as this key may know",
    409: "The state of things, or an earlier request with the same Idempotency-Key, forbids it",
    413: "The body is too large",
    422: "A parameter is missing or has a wrong value; `error.param` names it",
    500: "A fault of ours",
    503: "A part of Tollgate is away; try again",
}
_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_ERROR_SCHEMAS: Final = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "additionalProperties": False,
                "properties": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "additionalProperties": False,
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "additionalProperties": False,
                "properties": {"type": _TEXT, "message": _TEXT},
            },
            "request_id": _TEXT,
        },
    },
}


def describe_calls(api: FastAPI) -> None:
    """Put the metered endpoints on the OpenAPI page of `api`."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            page = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
            calls = {str(endpoint): {"post": _operation(endpoint)} for endpoint in _ENDPOINTS}
            # First, because a page shows what is called in the order of its paths.
            page["paths"] = {path: calls.get(path, {}) | page["paths"].get(path, {}) for path in calls | page["paths"]}
            page["components"]["schemas"] |= _ERROR_SCHEMAS
            for path, operations in page["paths"].items():
                for operation in operations.values():
                    _tell_errors(operation, "AnthropicError" if is_anthropic(path) else "Error")
            api.openapi_schema = page
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    summary, table, subject, example = _ENDPOINTS[endpoint]
    schema: dict[str, Any] = {
        "type": "object",
        "required": ["model", subject],
        "additionalProperties": False,
        "properties": {name: dict(_TYPES.get(name, {})) for name in table},
    }
    media_type = "application/json"
    if endpoint.hears:
        media_type = "multipart/form-data"
        schema["properties"][transcripts.FILE] = {"type": "string", "format": "binary"}
    if endpoint is Endpoint.RERANK:
        schema["required"].append("query")
    return {
        "tags": ["Calls"],
        "summary": summary,
        "description": "As in the OpenAI API. The answer's `x-request-id` is the call id of its receipt.",
        "operationId": endpoint.name.lower(),
        "security": [{"ApiKey": []}],
        "requestBody": {"required": True, "content": {media_type: {"schema": schema, "example": example}}},
        "responses": {
            "200": {
                "description": "The answer, or with `stream` its events",
                "headers": {"x-request-id": {"schema": {"type": "string", "format": "uuid"}}},
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    **({"text/event-stream": {"schema": _EVENT}} if "stream" in table else {}),
                    **({"text/plain": {"schema": {"type": "string"}}} if endpoint.hears else {}),
                },
            },
            **{str(status): {"description": text} for status, text in _ERRORS.items()},
        },
    }


def _tell_errors(operation: dict[str, Any], schema: str) -> None:
    """Say of an operation in which shape it tells its errors, and which any operation may have."""
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    answers = operation["responses"]
    for status, text in _ANY_ERRORS.items():
        answers.setdefault(str(status), {"description": text})
    for status, answer in answers.items():
        if status >= "400":
            answers[status] = {"description": answer["description"], "content": body}
