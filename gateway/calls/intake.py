"""The intake of the call path: from a request on a metered path to an admitted call, or to an error before any hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import structlog

from billing.admission import hold_request, permit
from gateway import telemetry
from gateway.api import transcripts
from gateway.api.cors import cors_lines
from gateway.api.errors import render
from gateway.api.requests import decode, read
from gateway.auth import credential
from gateway.calls.capacity import Place
from gateway.calls.choice import choose
from gateway.calls.driver import Driver
from gateway.calls.machine import Call
from gateway.calls.running import Running
from gateway.exchange import Copy, Exchange
from gateway.memory import claim_of
from gateway.parts import Parts
from gateway.peers import check_endpoint, check_scope
from models.account import Principal
from models.call import CallAnswer, CallClaim, CallOrigin, CallRequest, Endpoint
from models.errors import InvalidRequest, ModelNotFound, TollgateError, Unavailable
from models.ids import uuid7

ENDPOINTS: dict[str, Endpoint] = {str(endpoint): endpoint for endpoint in Endpoint}
"""The metered paths. Each is authenticated here, in `Intake.begin`, before anything else is looked at."""

MAX_HEADERS = 100
LONGEST_IDEMPOTENCY_KEY = 255
_READ_HEADERS = frozenset(
    {b"content-type", b"content-encoding", b"content-length", b"idempotency-key", b"x-tollgate-cost"}
)
_YES = frozenset({b"1", b"true", b"yes"})
_JSON = b"application/json"
_FORM = b"multipart/form-data"
_log = structlog.get_logger("tollgate.calls")


@dataclass(slots=True)
class Intake:
    """Takes the requests on metered paths. `is_draining` refuses new calls while a process stops."""

    parts: Parts
    running: Running
    is_draining: bool = False
    ears: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """Sounds that are measured at the same time."""

    def begin(self, exchange: Exchange) -> None:
        """The head of a request is there. All that can be looked up in memory is done at once, without a task."""
        now = self.parts.clock.now()
        arrival = _Arrival(self, exchange, uuid7(now), now)
        if self.parts.settings.cors_origins:
            exchange.extra_lines = cors_lines(exchange.headers, self.parts.settings.cors_origins)
        arrival.do(arrival.authenticate)

    def begin_line(self, exchange: Exchange, principal: Principal, call_id: UUID) -> None:
        """A line of a batch: the caller is known, and so is the call's id, which was stored before."""
        arrival = _Arrival(self, exchange, call_id, self.parts.clock.now(), is_batch=True)
        arrival.do(arrival._read, principal)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client asks for in headers, beside the call itself."""

    tells_cost: bool = False
    idempotency_key: bytes | None = None


NO_WISHES: Final = Wishes()


@dataclass(slots=True)
class Kept:
    """The claim of a call, and the copy of what it is answered."""

    claim: CallClaim
    copy: Copy


@dataclass(slots=True)
class _Arrival:
    """One request on its way to becoming a call: authenticate, read, parse, admit, hand over to the call's driver.

    Each step calls the next. One that must ask Postgres goes on in a task of its own.
    """

    intake: Intake
    exchange: Exchange
    call_id: UUID
    now: datetime
    wishes: Wishes = field(default_factory=lambda: NO_WISHES)
    kept: Kept | None = None
    is_batch: bool = False

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
        if principal.scope is not None:
            exchange = self.exchange
            if self.is_batch:
                # Who made the batch was asked where from; its lines come from nowhere.
                check_endpoint(principal.scope, exchange.path)
            else:
                check_scope(principal.scope, exchange.path, exchange.peer, exchange.headers, settings.trusted_proxies)
        self._check_draining()
        if len(intake.running.drivers) >= settings.max_connections or intake.running.capacity.lag.is_shedding:
            raise Unavailable("Too many calls at the same time. Nothing was charged; try again.")
        is_form = ENDPOINTS[self.exchange.path].hears
        self.wishes = _check_headers(self.exchange.headers, settings.max_body_bytes, _FORM if is_form else _JSON)
        self.exchange.read(lambda body: self.do(self._arrived, principal, body))

    def _arrived(self, principal: Principal, body: bytes | None) -> None:
        if body is None:
            raise _too_large(self.intake.parts.settings.max_body_bytes)
        key = self.wishes.idempotency_key
        if key is None:
            self._parse(principal, body)
        else:
            claim = claim_of(principal.project_id, key, self.exchange.path, body, self.call_id)
            self._wait(self._claim(principal, body, claim))

    async def _claim(self, principal: Principal, body: bytes, claim: CallClaim) -> None:
        known = await self.intake.parts.memory.claim(claim)
        if known is None:
            self.kept = Kept(claim, self.exchange.keep_copy())
            self.do(self._parse, principal, body)
        elif not self.exchange.disconnected:
            _repeat(self.exchange, known)

    def _parse(self, principal: Principal, body: bytes) -> None:
        endpoint = ENDPOINTS[self.exchange.path]
        if endpoint.hears:
            self._wait(self._hear(principal, endpoint, body))
            return
        decoded = decode(body)
        if endpoint is Endpoint.RESPONSES and decoded.get("previous_response_id") is not None:
            self._wait(self._recall(principal, decoded, len(body)))
        else:
            hosts = self.intake.parts.settings.media_hosts
            self._go_on(principal, read(endpoint, decoded, len(body), media_hosts=hosts))

    async def _hear(self, principal: Principal, endpoint: Endpoint, body: bytes) -> None:
        """A sound is measured in a thread: the frames of a large one take a second to count."""
        kind = next((value for name, value in self.exchange.headers if name == b"content-type"), b"")
        async with self.intake.ears:
            request = await asyncio.to_thread(transcripts.read, endpoint, kind, body)
        self.do(self._go_on, principal, request)

    async def _recall(self, principal: Principal, decoded: dict[str, Any], size: int) -> None:
        response_id = decoded["previous_response_id"]
        if not isinstance(response_id, str):
            raise InvalidRequest("'previous_response_id' must be a string.", param="previous_response_id")
        history = await self.intake.parts.memory.conversation(principal.project_id, response_id)
        hosts = self.intake.parts.settings.media_hosts
        self.do(self._go_on, principal, read(Endpoint.RESPONSES, decoded, size, history, hosts))

    def _go_on(self, principal: Principal, request: CallRequest) -> None:
        if self.wishes.tells_cost:
            request = replace(request, tells_cost=True)
        if request.model in self.intake.parts.catalog.current.models:
            self._admit(principal, request)
        else:
            self.intake.running.detach(self._look_for_model(principal, request))

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a step that must ask Postgres go on in a task of its own; what it raises is the answer."""
        self.intake.running.detach(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._failed(error)

    async def _look_for_model(self, principal: Principal, request: CallRequest) -> None:
        # Another process may have just added it.
        await self.intake.parts.catalog.refresh()
        self.do(self._admit, principal, request)

    def _admit(self, principal: Principal, request: CallRequest) -> None:
        parts, running = self.intake.parts, self.intake.running
        if self.exchange.disconnected:
            self.intake.running.detach(self._release(None))
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
        rates_of = catalog.batch_rates if self.is_batch else catalog.rates
        rates = rates_of(principal.price_book, principal.currency, model.id, self.now)
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
            self.is_batch,
        )
        choice = choose(catalog, model, rates, principal, request, self.now, is_batch=self.is_batch)
        hold = choice.hold(hold_request(request, origin, principal, choice.roomiest, rates))
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
            on_end=None if self.kept is None else self._ended,
            legs=choice.legs,
        ).begin()

    def _ended(self, call: Call) -> None:
        """The call is over: keep what it was answered, or let it be made again if nothing was charged."""
        assert self.kept is not None, "only for calls whose answers are kept"
        memory, claim, copy = self.intake.parts.memory, self.kept.claim, self.kept.copy
        if call.charge is None:
            self.intake.running.detach(memory.release(claim))
        else:
            answer = CallAnswer(claim.call_id, copy.status, copy.content_type, copy.body)
            self.intake.running.detach(memory.keep(claim, answer))

    def _check_draining(self) -> None:
        if self.intake.is_draining:
            raise Unavailable("This server is being restarted. Send the request again.")

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, TollgateError):
            _log.error("call_failed", request_id=self.call_id, exc_info=error)
            error = TollgateError("Something went wrong on our side.")
        if self.kept is None:
            self._answer(error)
        else:
            self.intake.running.detach(self._release(error))

    async def _release(self, error: TollgateError | None) -> None:
        """Give the claim up before the client learns why: it may send the same again at once."""
        kept, self.kept = self.kept, None
        if kept is not None:
            await self.intake.parts.memory.release(kept.claim)
        if error is not None:
            self._answer(error)

    def _answer(self, error: TollgateError) -> None:
        exchange = self.exchange
        if exchange.disconnected or exchange.response_started:
            return
        if self.intake.is_draining:
            # A client that kept its connection would be refused on it again and again.
            exchange.keep_alive = False
        # After 413 the server goes on reading and throws away: closing at once would reset the connection before a
        # client that is still sending has read why.
        exchange.answer(*render(error, request_id=str(self.call_id), path=exchange.path))


def _repeat(exchange: Exchange, answer: CallAnswer) -> None:
    """Answer a repeated request as the first one was."""
    body = answer.body or b""
    headers = [
        (b"content-type", answer.content_type.encode("latin-1")),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", str(answer.call_id).encode()),
        (b"idempotent-replayed", b"true"),
    ]
    if ENDPOINTS[exchange.path] is Endpoint.MESSAGES:
        headers.append((b"request-id", str(answer.call_id).encode()))
    exchange.answer(answer.status, headers, body)


def _no_model(name: str) -> ModelNotFound:
    shown = name if len(name) <= 64 and name.isprintable() else "of this name"
    return ModelNotFound(f"The model {shown} does not exist, or is not sold to you.", param="model")


def _check_size(headers: list[tuple[bytes, bytes]]) -> None:
    # Their bytes are bounded by the server.
    if len(headers) > MAX_HEADERS:
        raise InvalidRequest("There are too many headers.", status=431)


def _check_headers(headers: list[tuple[bytes, bytes]], max_body_bytes: int, expected: bytes = _JSON) -> Wishes:
    """Refuse by what the headers say alone: too large, compressed, or not as expected. Answers what they ask for."""
    content_type = b""
    cost, key = False, None
    for name, value in headers:
        if name not in _READ_HEADERS:
            continue
        if name == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding":
            if value.strip().lower() not in (b"", b"identity"):
                raise InvalidRequest("Compressed bodies are not taken; send plain JSON.", status=415)
        elif name == b"content-length":
            if not value.isdigit() or int(value[:20]) > max_body_bytes:
                raise _too_large(max_body_bytes)
        elif name == b"idempotency-key":
            if key is not None or not 0 < len(value) <= LONGEST_IDEMPOTENCY_KEY:
                raise InvalidRequest(f"Send one Idempotency-Key of 1 to {LONGEST_IDEMPOTENCY_KEY} characters.")
            key = value
        else:
            cost = value.strip().lower() in _YES
    if content_type != expected and (content_type or expected is not _JSON):
        raise InvalidRequest(f"Send the body as content-type {expected.decode()}.", status=415)
    return Wishes(cost, key) if cost or key is not None else NO_WISHES


def _too_large(max_body_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"The body is larger than {max_body_bytes} bytes.", status=413)
