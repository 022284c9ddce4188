"""The bound on bodies of control routes: an ASGI middleware, since they are read before any route is asked."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.errors import render, request_id_of
from models.errors import InvalidRequest

CONTROL_BODY_LIMIT_BYTES = 1024 * 1024


class _TooLarge(Exception):
    """More bytes came than may come."""


class BodyLimit:
    """Answers 413 for a body above the limit, announced or not, without keeping it."""

    def __init__(
        self,
        app: ASGIApp,
        limit_bytes: int = CONTROL_BODY_LIMIT_BYTES,
        larger: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        """`larger` are the limits of those routes, by method and path, that read their body piece by piece."""
        self._app = app
        self._limit_bytes = limit_bytes
        self._larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        received, is_answered = 0, False
        limit_bytes = self._larger.get((scope["method"], scope["path"]), self._limit_bytes)

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit_bytes:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            if not announced.isdigit() or int(announced[:20]) > limit_bytes:
                raise _TooLarge
            await self._app(scope, bounded, watched)
        except _TooLarge:
            if not is_answered:
                error = InvalidRequest(f"The body is larger than {limit_bytes} bytes.", status=413)
                rendered = render(error, request_id=request_id_of(scope), path=scope["path"])
                await send({"type": "http.response.start", "status": rendered.status, "headers": rendered.headers})
                await send({"type": "http.response.body", "body": rendered.body})
