"""What a backend's error means to our client: normalised to one shape, without the backend's address or secret."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from models.call import Endpoint
from models.catalog import Deployment
from models.errors import BackendFailed, InvalidRequest, TollgateError, Unavailable

_GENERIC = "The model's backend failed. Nothing was charged; try again."
_ADDRESS = re.compile(r"https?://|\b\d{1,3}(?:\.\d{1,3}){3}\b|\btraceback\b", re.IGNORECASE)
_LONGEST_MESSAGE = 500
_UNSERVED = "This model does not serve this endpoint."
_UNSEEN = re.compile(r"\b(image|audio|video) input is not supported\b", re.IGNORECASE)
_OPTIONAL = frozenset(endpoint for endpoint in Endpoint if not endpoint.generates)
"""Endpoints that not every engine has, or only where it was started for them."""


def failure(status: int, body: bytes, deployment: Deployment, endpoint: Endpoint) -> TollgateError:
    """The error for a backend's answer other than 200, given before anything was generated.

    What the client did wrong is told to the client; what is between us and the backend is not.
    """
    message, code = _message(body)
    if status == 500 and message and _UNSEEN.search(message):
        # llama.cpp without a projector.
        return InvalidRequest(
            "This model reads text only; it takes no pictures or sounds.", param="messages", code="unsupported_content"
        )
    if status in (404, 405) and endpoint in _OPTIONAL:
        # The model is one that the backend has, by its deployment: it is the path that it has not.
        return InvalidRequest(_UNSERVED, param="model", code="unsupported_endpoint")
    if status == 400 or status in (413, 415, 422):
        if code == "exceed_context_size_error" or (message and "context" in message.lower()):
            return InvalidRequest(
                _scrubbed(message, deployment) or "The prompt is longer than the model's context.",
                code="context_length_exceeded",
            )
        return InvalidRequest(_scrubbed(message, deployment) or "The model's backend refused the request.")
    if status == 501:
        return InvalidRequest(_UNSERVED, param="model", code="unsupported_endpoint")
    if status in (429, 503):
        return Unavailable("The model's backend is busy. Nothing was charged; try again.")
    return BackendFailed(_GENERIC)


def stream_failure(error: Any, deployment: Deployment) -> BackendFailed:
    """The error for an error object in the middle of a stream."""
    message = error.get("message") if isinstance(error, dict) else error if isinstance(error, str) else None
    return BackendFailed(_scrubbed(message, deployment) or "The model's backend failed in the middle of the answer.")


def _message(body: bytes) -> tuple[str | None, str | None]:
    """Message and type of the error shapes of vLLM (nested), SGLang (flat), TGI (a string) and FastAPI (`detail`)."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None, None
    if not isinstance(decoded, dict):
        return None, None
    error = decoded.get("error", decoded)
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return None, None
    message, kind = error.get("message") or error.get("detail"), error.get("type")
    if isinstance(message, list) and message and isinstance(message[0], dict):
        # FastAPI: one entry for each thing that is wrong.
        message = message[0].get("msg")
    return (message if isinstance(message, str) else None), (kind if isinstance(kind, str) else None)


def _scrubbed(message: Any, deployment: Deployment) -> str | None:
    if not isinstance(message, str) or not message:
        return None
    backend = deployment.backend
    address = urlsplit(backend.url)
    secrets = [backend.credential, address.hostname, address.netloc]
    if any(secret and secret in message for secret in secrets) or _ADDRESS.search(message):
        return None
    return str(message.replace(deployment.backend_model, deployment.model))[:_LONGEST_MESSAGE]
