"""The intake of the call path: from a request on a metered path to an admitted call, or to an error before any hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from billing.admission import hold_request, permit
from gateway import telemetry
from gateway.api.errors import render
from gateway.api.requests import parse
from gateway.auth import credential
from gateway.calls.capacity import Place
from gateway.calls.choice import choose
from gateway.calls.driver import Driver
from gateway.calls.running import Running
from gateway.exchange import Exchange
from gateway.parts import Parts
from models.account import Principal
from models.call import CallOrigin, CallRequest, Endpoint
from models.errors import InvalidRequest, ModelNotFound, TollgateError, Unavailable
from models.ids import uuid7

ENDPOINTS: dict[str, Endpoint] = {str(endpoint): endpoint for endpoint in Endpoint}
"""The metered paths. Each is authenticated here, in `Intake.begin`, before anything else is looked at."""

MAX_HEADERS = 100
_JSON = b"application/json"
_log = structlog.get_logger("tollgate.calls")


@dataclass(slots=True)
class Intake:
    """Takes the requests on metered paths. `is_draining` refuses new calls while a process stops."""

    parts: Parts
    running: Running
    is_draining: bool = False

    def begin(self, exchange: Exchange) -> None:
        """The head of a request is there. All that can be looked up in memory is done at once, without a task."""
        now = self.parts.clock.now()
        arrival = _Arrival(self, exchange, uuid7(now), now)
        arrival.do(arrival.authenticate)


@dataclass(slots=True)
class _Arrival:
    """One request on its way to becoming a call: authenticate, read, parse, admit, hand over to the call's driver.

    Each step calls the next. One that must ask Postgres goes on in a task of its own.
    """

    intake: Intake
    exchange: Exchange
    call_id: UUID
    now: datetime

    def do(self, step: Callable[..., None], *values: Any) -> None:
        """Take a step; what it raises is the answer."""
        try:
            step(*values)
        except Exception as error:
            self._failed(error)

    def authenticate(self) -> None:
        """Who is calling?"""
        headers = self.exchange.headers
        _check_size(headers)
        secret = credential(headers)
        principal = self.intake.parts.keys.cached(secret)
        if principal is None:
            self.intake.running.detach(self._look_up(secret))
        else:
            self._read(principal)

    async def _look_up(self, secret: str) -> None:
        try:
            principal = await self.intake.parts.keys.principal(secret)
        except Exception as error:
            self._failed(error)
        else:
            self.do(self._read, principal)

    def _read(self, principal: Principal) -> None:
        intake, settings = self.intake, self.intake.parts.settings
        self._check_draining()
        if len(intake.running.drivers) >= settings.max_connections or intake.running.capacity.lag.is_shedding:
            raise Unavailable("Too many calls at the same time. Nothing was charged; try again.")
        _check_headers(self.exchange.headers, settings.max_body_bytes)
        self.exchange.read(lambda body: self.do(self._parse, principal, body))

    def _parse(self, principal: Principal, body: bytes | None) -> None:
        if body is None:
            raise _too_large(self.intake.parts.settings.max_body_bytes)
        request = parse(ENDPOINTS[self.exchange.path], body)
        if request.model in self.intake.parts.catalog.current.models:
            self._admit(principal, request)
        else:
            self.intake.running.detach(self._look_for_model(principal, request))

    async def _look_for_model(self, principal: Principal, request: CallRequest) -> None:
        # Another process may have just added it.
        await self.intake.parts.catalog.refresh()
        self.do(self._admit, principal, request)

    def _admit(self, principal: Principal, request: CallRequest) -> None:
        parts, running = self.intake.parts, self.intake.running
        if self.exchange.disconnected:
            return
        # Again: the drain may have begun, and even ended, while the body was on its way.
        self._check_draining()
        catalog = parts.catalog.current
        telemetry.CALLS.know(catalog)
        running.capacity.know(catalog)
        model = catalog.models.get(request.model)
        if model is None:
            raise _no_model(request.model)
        permit(principal, model.id)
        rates = catalog.rates(principal.price_book, principal.currency, model.id, self.now)
        if rates is None:
            raise _no_model(request.model)
        origin = CallOrigin(
            self.call_id,
            principal.organization_id,
            principal.project_id,
            principal.api_key_id,
            principal.shard,
            principal.currency,
            request.endpoint,
            model.id,
            request.stream,
            self.now,
            request.end_user,
        )
        choice = choose(catalog, model, rates, principal, request, self.now)
        hold = choice.hold(hold_request(request, origin, principal, choice.model, rates))
        epoch = parts.catalog.epochs.get(principal.shard)
        if epoch is None:
            raise Unavailable("The ledger is being rebuilt. Nothing was charged; try again.")
        # The last bytes of a UUIDv7 are random.
        chance = self.call_id.int % 10_000 / 10_000
        tokens = hold.input_bound + hold.output_bound
        place = Place(running.capacity, choice, principal.organization_id, tokens, jitter=chance)
        Driver(
            running,
            request,
            hold,
            choice.model,
            place,
            self.exchange,
            epoch=epoch,
            now=parts.clock.now,
            is_audited=chance < parts.settings.audit_share,
            legs=choice.legs,
        ).begin()

    def _check_draining(self) -> None:
        if self.intake.is_draining:
            raise Unavailable("This server is being restarted. Send the request again.")

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, TollgateError):
            _log.error("call_failed", request_id=self.call_id, exc_info=error)
            error = TollgateError("Something went wrong on our side.")
        exchange = self.exchange
        if exchange.disconnected or exchange.response_started:
            return
        if self.intake.is_draining:
            # A client that kept its connection would be refused on it again and again.
            exchange.keep_alive = False
        # After 413 the server goes on reading and throws away: closing at once would reset the connection before a
        # client that is still sending has read why.
        exchange.answer(*render(error, request_id=str(self.call_id)))


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
        if not name.startswith(b"content-"):
            continue
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
