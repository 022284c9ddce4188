"""The intake of the call path: from an ASGI request to an admitted call, or to an error before any money is held."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from starlette.types import Receive, Scope, Send

from billing.admission import hold_request, permit
from gateway import telemetry
from gateway.api.errors import render
from gateway.api.requests import parse
from gateway.auth import credential
from gateway.backends import DIALECTS
from gateway.calls.driver import Driver
from gateway.calls.machine import Attempt, Call
from gateway.calls.running import Running
from gateway.parts import Parts
from gateway.routing import order
from models.account import Principal
from models.call import CallOrigin, CallRequest, Endpoint
from models.catalog import Model
from models.errors import InvalidRequest, ModelNotFound, TollgateError, Unavailable
from models.ids import uuid7

ENDPOINTS: dict[str, Endpoint] = {str(endpoint): endpoint for endpoint in Endpoint}
"""The metered paths. Each is authenticated here, in `Intake.__call__`, before anything else is looked at."""

MAX_HEADERS = 100
_JSON = b"application/json"
_log = structlog.get_logger("tollgate.calls")


@dataclass(slots=True)
class Intake:
    """ASGI application of the metered endpoints. `is_draining` refuses new calls while a process stops."""

    parts: Parts
    running: Running
    is_draining: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: authenticate, read, parse, admit, and hand over to the call's driver."""
        now = self.parts.clock.now()
        call_id = uuid7(now)
        try:
            driver = await self._admit(scope, receive, send, call_id, now)
        except TollgateError as error:
            await _send_error(send, error, call_id, is_last=self.is_draining)
            return
        except _ClientGone:
            return
        except Exception:
            _log.exception("call_failed", request_id=call_id)
            await _send_error(send, TollgateError("Something went wrong on our side."), call_id)
            return
        await driver.run()

    async def _admit(self, scope: Scope, receive: Receive, send: Send, call_id: UUID, now: datetime) -> Driver:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        _check_size(headers)
        parts = self.parts
        secret = credential(headers)
        principal = parts.keys.cached(secret) or await parts.keys.principal(secret)
        if self.is_draining:
            raise Unavailable("This server is being restarted. Send the request again.")
        if len(self.running.drivers) >= parts.settings.max_connections:
            raise Unavailable("Too many calls at the same time. Nothing was charged; try again.")
        _check_headers(headers, parts.settings.max_body_bytes)
        body = await _read_body(receive, parts.settings.max_body_bytes)
        request = parse(ENDPOINTS[scope["path"]], body)
        call = await self._call(request, principal, call_id, now)
        epoch = parts.catalog.epochs.get(principal.shard)
        if epoch is None:
            raise Unavailable("The ledger is being rebuilt. Nothing was charged; try again.")
        return Driver(self.running, call, epoch, scope, receive, send)

    async def _call(self, request: CallRequest, principal: Principal, call_id: UUID, now: datetime) -> Call:
        model = await self._model(request, principal)
        catalog = self.parts.catalog.current
        telemetry.CALLS.know(catalog)
        rates = catalog.rates(principal.price_book, principal.currency, model.id, now)
        if rates is None:
            raise _no_model(request.model)
        attempts = self._attempts(request, model)
        origin = CallOrigin(
            call_id=call_id,
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            api_key_id=principal.api_key_id,
            shard=principal.shard,
            currency=principal.currency,
            endpoint=request.endpoint,
            model=model.id,
            streamed=request.stream,
            created_at=now,
            end_user=request.end_user,
        )
        hold = hold_request(request, origin, principal, model, rates)
        # The last bytes of a UUIDv7 are random.
        is_audited = call_id.int % 10_000 < self.parts.settings.audit_share * 10_000
        return Call(request, hold, model, attempts, self.parts.clock.now, is_audited=is_audited)

    async def _model(self, request: CallRequest, principal: Principal) -> Model:
        catalog = self.parts.catalog
        model = catalog.current.models.get(request.model)
        if model is None:
            # Another process may have just added it.
            await catalog.refresh()
            model = catalog.current.models.get(request.model)
        if model is None:
            raise _no_model(request.model)
        permit(principal, model.id)
        return model

    def _attempts(self, request: CallRequest, model: Model) -> list[Attempt]:
        """Deployments that can serve the request, with its body for each, in the order in which they are tried."""
        attempts, refusal = [], None
        deployments = order(model.deployments, self.running.upstreams.in_flight)
        for deployment in deployments:
            try:
                dialect = DIALECTS[deployment.backend.kind]
                dialect.check(request)
                attempts.append(Attempt(deployment, dialect.body(request, model, deployment)))
            except InvalidRequest as error:
                refusal = error
        if not attempts:
            raise refusal or Unavailable(
                "All backends of this model are busy or disabled. Nothing was charged; try again."
            )
        return attempts


class _ClientGone(Exception):
    """The client left before its request was complete: there is nobody to answer."""


def _no_model(name: str) -> ModelNotFound:
    shown = name if len(name) <= 64 and name.isprintable() else "of this name"
    return ModelNotFound(f"The model {shown} does not exist, or is not sold to you.", param="model")


def _check_size(headers: list[tuple[bytes, bytes]]) -> None:
    # Their bytes are bounded by the server.
    if len(headers) > MAX_HEADERS:
        raise InvalidRequest("There are too many headers.", status=431)


def _check_headers(headers: list[tuple[bytes, bytes]], max_body_bytes: int) -> None:
    """Refuse by what the headers say alone: too large, compressed, or not JSON."""
    content_type = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise InvalidRequest("Compressed bodies are not taken; send plain JSON.", status=415)
        elif name == b"content-length" and (not value.isdigit() or int(value[:20]) > max_body_bytes):
            raise _too_large(max_body_bytes)
    if content_type and content_type != _JSON:
        raise InvalidRequest("Send the body as content-type application/json.", status=415)


def _too_large(max_body_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"The body is larger than {max_body_bytes} bytes.", status=413)


async def _read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. The server bounds the time it takes; this bounds its size."""
    message = await receive()
    body: bytes = message.get("body", b"")
    pieces, size = [body], len(body)
    while size <= limit:
        if message["type"] == "http.disconnect":
            raise _ClientGone
        if not message.get("more_body", False):
            return b"".join(pieces) if len(pieces) > 1 else body
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
    raise _too_large(limit)


async def _send_error(send: Send, error: TollgateError, call_id: UUID, *, is_last: bool = False) -> None:
    rendered = render(error, request_id=str(call_id))
    # While a process drains, a client that kept its connection would be refused on it again and again.
    headers = [*rendered.headers, (b"connection", b"close")] if is_last else rendered.headers
    # After 413 the server goes on reading and throws away: closing at once would reset the connection before a client
    # that is still sending has read why.
    await send({"type": "http.response.start", "status": rendered.status, "headers": headers})
    await send({"type": "http.response.body", "body": rendered.body})
