"""The bound on bodies of control routes: an ASGI middleware, since they are read before any route is asked."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.counting import COUNTING_PATHS
from gateway.api.errors import render, request_id_of
from models.errors import InvalidRequest

CONTROL_BODY_LIMIT_BYTES = 1024 * 1024


class _TooLarge(Exception):
    """More bytes came than may come."""


class BodyLimit:
    """Answers 413 for a body above the limit, announced or not, without keeping it."""

    def __init__(self, app: ASGIApp, limit_bytes: int = CONTROL_BODY_LIMIT_BYTES) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._limit_bytes
        if scope["path"] in COUNTING_PATHS:
            # Read by the route itself, once its caller is known.
            limit_bytes = max(limit_bytes, scope["app"].state.parts.settings.max_body_bytes)
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        received, is_answered = 0, False

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
