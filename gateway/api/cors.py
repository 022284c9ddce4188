"""Cross-origin calls, from the web pages that the operator names; keys in web pages are their owners' to protect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_EXPOSED: Final = (
    "x-request-id",
    "request-id",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-tollgate-cost",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
_EXPOSED_LINE: Final = b"access-control-expose-headers: %b\r\n" % ", ".join(_EXPOSED).encode()


def install(api: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins call the control routes, and ask beforehand whether they may call at all."""
    api.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE", "PATCH"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=600,
    )


def cors_lines(headers: Sequence[tuple[bytes, bytes]], origins: Sequence[str]) -> bytes:
    """The headers of an answer to a call that a page made; none for a page that is not named."""
    origin = next((value for name, value in headers if name == b"origin"), b"").decode("latin-1")
    if origin not in origins and "*" not in origins:
        return b"vary: origin\r\n"
    allowed = "*" if "*" in origins else origin
    return b"access-control-allow-origin: %b\r\nvary: origin\r\n" % allowed.encode("latin-1") + _EXPOSED_LINE
