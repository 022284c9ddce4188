"""Drives one call: carries out what its state machine says, and feeds it what happens. No task, no await.

All that happens to a call comes from callbacks of its two connections, of the hot store and of the journal. Each feeds
the machine and then lets `_advance` carry out what it says, in order, until a command has to be waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Final

import structlog

from billing.failpoints import failpoint
from billing.journal.open_calls import NOWHERE
from gateway import telemetry
from gateway.api.errors import render
from gateway.api.ratelimits import rate_limit_headers
from gateway.backends import DIALECTS
from gateway.calls.capacity import Place
from gateway.calls.choice import Leg
from gateway.calls.commands import (
    CloseUpstream,
    Connect,
    CountPrompt,
    CountTokens,
    KeepResponse,
    PlaceHold,
    Release,
    SendBody,
    SendError,
    SendHead,
    Settle,
)
from gateway.calls.counting import own_count
from gateway.calls.machine import Attempt, Call, Phase
from gateway.calls.running import Running
from gateway.calls.settling import Settling
from gateway.calls.upstream import Connection, Pool
from gateway.exchange import Exchange
from models.call import BucketState, CallRequest, Endpoint, Hold, HoldRequest, RefusedHold
from models.catalog import Deployment, Model
from models.errors import BackendFailed, BackendTimedOut, InvalidRequest, TollgateError, Unavailable
from models.money import amount_text
from models.usage import Ending

HIGH_WATER_BYTES: Final = 512 * 1024
"""Bytes that wait for a slow client before the backend is no longer read."""

_NEVER: Final = float("inf")
_AT_BACKEND: Final = frozenset({Phase.CONNECTING, Phase.ANSWERING})
_WELL: Final = frozenset({Ending.FINISHED, Ending.HOLD_SPENT})
"""Endings of which the backend is no cause."""
_TO_CLIENT: Final = frozenset({SendHead, SendBody, SendError})
_STREAM_LINES: Final = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
_OUR_FAULT: Final = "Something went wrong on our side. Report the request id if it happens again."
_JSON_LINES: Final = b"content-type: application/json\r\n"
_LINES: Final = dict.fromkeys(("text", "srt", "vtt"), b"content-type: text/plain; charset=utf-8\r\n")
_log = structlog.get_logger("tollgate.calls")


class Driver:
    """One call and its two connections."""

    __slots__ = (
        "_attempts",
        "_buckets",
        "_connection",
        "_deadline",
        "_epoch",
        "_exchange",
        "_first",
        "_first_byte_seconds",
        "_has_ended",
        "_has_time",
        "_heard_at",
        "_id",
        "_is_at_work",
        "_is_broken",
        "_is_waiting",
        "_last_second",
        "_legs",
        "_loop",
        "_now",
        "_on_end",
        "_place",
        "_running",
        "_sent",
        "_settling",
        "_slow_since",
        "_started",
        "_status",
        "_waiting_bytes",
        "call",
        "request_id",
        "slot",
    )

    def __init__(
        self,
        running: Running,
        request: CallRequest,
        hold: HoldRequest,
        model: Model,
        place: Place,
        exchange: Exchange,
        *,
        epoch: int,
        now: Callable[[], datetime],
        is_audited: bool,
        on_end: Callable[[Call], None] | None = None,
        legs: Mapping[str, Leg] | None = None,
    ) -> None:
        self._now = now
        self.call = Call(request, hold, model, self._next_attempt, now, is_audited=is_audited)
        self.request_id = str(hold.origin.call_id)
        self._id = self.request_id.encode()
        self._running = running
        self._place = place
        self._legs = legs
        self._first: Attempt | None = None
        self._on_end = on_end
        self._epoch = epoch
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._is_at_work = False
        self._is_waiting = False
        self._is_broken = False
        self._has_ended = False
        self._has_time = True
        self._connection: Connection | None = None
        self._sent: Connect
        self._settling: Settling | None = None
        self._deadline = _NEVER
        self._heard_at = 0.0
        self._last_second = self._loop.time() + running.settings.total_timeout_seconds
        self._slow_since = 0.0
        self._waiting_bytes = 0
        self._started = time.perf_counter()
        self._first_byte_seconds: float | None = None
        self._status = 0
        self._attempts = 0
        self._buckets: tuple[BucketState, ...] = ()
        self.slot = NOWHERE

    def begin(self) -> None:
        """Let the call live. From here on its hold is settled or released, whatever happens."""
        self._running.drivers.add(self)
        telemetry.CALLS.started(self.call.request.endpoint)
        self._exchange.watch(self)
        self._is_waiting = True
        try:
            self._place.enter(self._entered)
        except Exception:
            self._is_waiting = False
            self._broke()
            self._advance()

    def _entered(self, error: TollgateError | None) -> None:
        """There is room for the call at a backend, or there is none."""
        if error is None:
            try:
                self._first = first = self._attempt(self._place.deployment)
                if first.leg is not None:
                    # Before the hold: it pins the rates of the model that is going to serve.
                    self.call.hold_request = first.leg.charged(self.call.hold_request)
            except InvalidRequest as reason:
                error = reason
            except Exception:
                _log.exception("call_broke", call_id=self.request_id)
                error = TollgateError(_OUR_FAULT)
        if error is None:
            self._go_on(self.call.begin)
        else:
            self._go_on(self.call.turned_away, error)

    def _next_attempt(self) -> Attempt | None:
        """Where the machine's next attempt goes: the first to the place it has, others where there is room at once."""
        first, self._first = self._first, None
        if first is not None:
            return first
        deployment = self._place.retry() if self._has_time else None
        attempt = None if deployment is None else self._attempt(deployment)
        if attempt is not None and attempt.leg is not None and not attempt.leg.is_covered(self.call.hold_request):
            return None
        return attempt

    def _attempt(self, deployment: Deployment) -> Attempt:
        call, dialect = self.call, DIALECTS[deployment.backend.kind]
        leg = None if self._legs is None else self._legs[deployment.model]
        model = call.model if leg is None else leg.model
        return Attempt(deployment, dialect.body(call.request, model, deployment), leg)

    def _feed(self, event: Callable[..., None], *values: Any) -> None:
        """Tell the machine what happened, and do what it says."""
        try:
            event(*values)
        except Exception:
            self._broke()
        self._advance()

    def _go_on(self, event: Callable[..., None], *values: Any) -> None:
        """What was waited for has come."""
        self._is_waiting = False
        self._feed(event, *values)

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on in a task of its own, which feeds what comes of it."""
        self._is_waiting = True
        self._running.detach(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # Or the call would wait for it for ever, with its hold and its slot.
            self._is_waiting = False
            self._broke()
            self._advance()

    def _advance(self) -> None:
        """Carry out commands in order, until one has to be waited for or none is left."""
        if self._is_at_work:
            # What is carried out now has led here; the loop below goes on with what that has added.
            return
        self._is_at_work = True
        commands = self.call.commands
        while commands and not self._is_waiting:
            kind = type(commands[0])
            if self._slow_since and kind in _TO_CLIENT:
                break
            try:
                _DOES[kind](self, commands.popleft())
            except Exception:
                self._is_waiting = False
                if kind in _TO_CLIENT:
                    # What was said so far may be half of something.
                    self._exchange.abort()
                    self.call.is_client_gone = True
                self._broke()
        self._is_at_work = False
        if self._exchange.has_written:
            self._exchange.flush()
            if self._exchange.is_slow and not self._slow_since:
                self._slow_since = self._loop.time()
        if not commands and not self._is_waiting and self.call.phase is Phase.ENDED:
            self._end()

    def _broke(self) -> None:
        """A fault of ours: charge or release what there is, since no sweeper does it while this process lives."""
        if self._is_broken:
            _log.exception("call_not_ended", call_id=self.request_id)
            self.call.phase = Phase.ENDED
            self.call.commands.clear()
            self._exchange.abort()
            return
        self._is_broken = True
        _log.exception("call_broke", call_id=self.request_id)
        try:
            self.call.broke(TollgateError(_OUR_FAULT))
        except Exception:
            self._broke()

    def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._exchange.watch(None)
        if not self._exchange.response_complete:
            # Nobody is left who would answer.
            self._exchange.abort()
        self._running.ended(self)
        connection = self._connection
        self._forget_backend()
        if connection is not None:
            connection.leave()
        self._place.leave()
        # Or call and driver would know each other, and be garbage to look for instead of gone.
        self.call.next_attempt = _nowhere
        if self._on_end is not None:
            self._on_end(self.call)
        self._report()

    # Counting --------------------------------------------------------------------------------------------------------

    def _count_prompt(self, command: CountPrompt) -> None:
        self._wait_for(self._prompt_counted(command))

    async def _prompt_counted(self, command: CountPrompt) -> None:
        own = await own_count(self._running.tokenizers, command.request, command.model.tokenizer, ())
        self._go_on(self.call.prompt_counted, own.prompt)

    def _count(self, command: CountTokens) -> None:
        self._wait_for(self._counted(command))

    async def _counted(self, command: CountTokens) -> None:
        tokenizers, tokenizer = self._running.tokenizers, command.model.tokenizer
        self._go_on(self.call.counted, await own_count(tokenizers, command.request, tokenizer, command.texts))

    # Ledger ----------------------------------------------------------------------------------------------------------

    def _place_hold(self, command: PlaceHold) -> None:
        failpoint("before_hold")
        self._is_waiting = True
        self._running.hot.start_hold(command.request, self._epoch, self._hold_answered)

    def _hold_answered(self, answer: Hold | RefusedHold | TollgateError) -> None:
        if isinstance(answer, TollgateError):
            self._go_on(self.call.hold_failed, answer)
            return
        failpoint("after_hold")
        self._buckets = answer.buckets
        if isinstance(answer, RefusedHold):
            telemetry.CALLS.refused(answer.reason.value)
        self._go_on(self.call.hold_answered, answer)

    def _settle(self, command: Settle) -> None:
        # The backend is done with the call: a slow ledger must not keep others from it.
        if command.charge.ending in _WELL:
            self._place.succeeded()
        self._place.leave()
        self._is_waiting = True
        self._settling = Settling(self._running, command.hold, command.charge, self._settled)
        if self._exchange.has_written:
            # In the next turn of the loop: what the client is about to get goes before a thread is woken.
            self._loop.call_soon(self._begin_settling, self._settling)
        else:
            self._settling.begin()

    def _begin_settling(self, settling: Settling) -> None:
        try:
            settling.begin()
        except Exception:
            self._is_waiting = False
            self._broke()
            self._advance()

    def _settled(self) -> None:
        settling, self._settling = self._settling, None
        if settling is not None and settling.underway is not None and not settling.is_durable:
            # Neither disk nor Redis has the charge: what was noted of the call stays until one of them does.
            slot, self.slot = self.slot, NOWHERE
            settling.underway.add_done_callback(lambda _: self._running.forget(slot))
        call = self.call
        assert call.charge is not None, "only a charge is settled"
        telemetry.CALLS.charged(call.charge)
        own = call.own_count
        if own is not None and own.is_completion_exact and call.meter.is_complete:
            telemetry.CALLS.audited(call.charge.model, call.meter.total().completion, own.completion)
        self._go_on(call.settled)

    def _keep(self, command: KeepResponse) -> None:
        self._wait_for(self._kept(command))

    async def _kept(self, command: KeepResponse) -> None:
        memory = self._running.memory
        # What is kept says that it is.
        response = {**command.response, "store": True}
        is_kept = memory is not None and await memory.store(command.origin, response, command.input)
        self._go_on(self.call.response_kept, is_kept)

    def _release(self, command: Release) -> None:
        if isinstance(self.call.error, InvalidRequest):
            self._place.refused()
        elif self.call.has_500:
            self._place.failed()
        self._place.leave()
        self._wait_for(self._released(command))

    async def _released(self, command: Release) -> None:
        """Wait for one try: the client should find its money free when it has its answer."""
        try:
            await self._running.hot.void(command.void.hold)
        except Exception as error:
            if not isinstance(error, Unavailable):
                _log.exception("release_broke", call_id=self.request_id)
            self._running.release(command.void)
        self._is_waiting = False
        self._advance()

    # Backend ---------------------------------------------------------------------------------------------------------

    def _connect(self, command: Connect) -> None:
        if self.call.phase is not Phase.CONNECTING:
            return
        self._sent = command
        self._attempts += 1
        pool = self._running.upstreams.pool(command.deployment)
        connection = pool.idle()
        if connection is not None:
            self._ask(pool, connection)
        else:
            self._wait_for(self._open(pool))

    async def _open(self, pool: Pool) -> None:
        try:
            connection = await pool.connect(self._running.settings.connect_timeout_seconds)
            if self.call.phase is Phase.CONNECTING:
                self._ask(pool, connection)
            else:
                connection.close()
        except BackendFailed as error:
            telemetry.CALLS.backend_error(self._sent.deployment.backend.name, "connect")
            self._place.failed()
            self._go_on(self.call.upstream_failed, error)
            return
        self._is_waiting = False
        self._advance()

    def _ask(self, pool: Pool, connection: Connection) -> None:
        """Send the request."""
        command = self._sent
        self._connection = connection
        connection.send(pool.address.request(command.endpoint, command.body), self)
        self._heard_at = self._loop.time()
        self._deadline = self._heard_at + self._running.settings.first_byte_timeout_seconds
        self.call.upstream_sent()
        self._running.note(self, is_sent=True)
        failpoint("after_send")

    def upstream_head(self, status: int, content_type: bytes) -> None:
        """The backend answers."""
        # A 200 alone says little: engines send it before they work. So does a 500, which llama.cpp also sends for a
        # picture that it cannot see: by its body it may be the client's fault, who could open the breaker with it.
        if status > 501:
            self._place.failed()
        elif status >= 400 and status != 500:
            self._place.refused()
        self.call.upstream_head(status, content_type)
        if status != 200:
            # The backend has not taken the call: nothing is owed for it.
            self._running.note(self)

    def upstream_bytes(self, data: bytes) -> None:
        """A piece of the backend's answer."""
        self._heard_at = self._loop.time()
        self._deadline = self._heard_at + self._running.settings.idle_timeout_seconds
        self._feed(self.call.upstream_bytes, data)
        if not self._place.is_judged and self.call.meter.chunks:
            self._place.succeeded()
        if self._slow_since and self._connection is not None:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > HIGH_WATER_BYTES:
                self._connection.pause()

    def upstream_end(self) -> None:
        """The backend's answer is complete."""
        self._feed(self.call.upstream_end)

    def upstream_lost(self, error: TollgateError, is_stale: bool) -> None:
        """The backend's connection broke."""
        if self._connection is None:
            return
        self._forget_backend()
        if is_stale and self.call.phase is Phase.CONNECTING:
            # The backend had closed an idle connection before it saw the request: nothing was done, ask again.
            self.call.upstream_unsent()
            self._wait_for(self._open(self._running.upstreams.pool(self._sent.deployment)))
            return
        telemetry.CALLS.backend_error(self.call.deployment.backend.name, "closed")
        self._place.failed()
        self._feed(self.call.upstream_failed, error)

    def _close_backend(self, command: CloseUpstream) -> None:
        connection = self._connection
        self._forget_backend()
        if connection is not None:
            connection.close()

    def _forget_backend(self) -> None:
        self._connection = None
        self._deadline = _NEVER

    # Time ------------------------------------------------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """End what has taken too long: a backend that is silent, a client that does not read, a call without end."""
        if self._settling is not None and now > self._settling.late_at:
            self._settling.journal_is_late()
        elif self._slow_since:
            if now - self._slow_since > self._running.settings.write_timeout_seconds:
                self._exchange.abort()
                self.client_gone()
        elif self.call.phase in _AT_BACKEND and (now > self._deadline or now > self._last_second):
            self._deadline = _NEVER
            self._has_time = now <= self._last_second
            telemetry.CALLS.backend_error(self.call.deployment.backend.name, "timeout")
            self._place.failed()
            self._feed(self.call.upstream_failed, BackendTimedOut("The model's backend did not answer in time."))
        elif self._deadline != _NEVER and now - self._heard_at > self._running.settings.keep_alive_seconds:
            self._heard_at = now
            self._feed(self.call.keep_alive)

    def drain(self) -> None:
        """This process stops: end the call with what it has."""
        error = Unavailable("This server is being restarted. Send the request again.")
        if self.call.phase is Phase.NEW:
            self._place.leave()
            self._go_on(self.call.turned_away, error)
        else:
            self._feed(self.call.drain, error)

    # Client ----------------------------------------------------------------------------------------------------------

    def client_gone(self) -> None:
        """The client has closed its connection, or does not read."""
        # What it was owed is dropped on the way, not waited for.
        self._slow_since = 0.0
        self._feed(self.call.client_gone)
        if self.call.phase is Phase.NEW:
            # Nothing was held for it and nobody waits for an answer.
            self._place.leave()
            self._go_on(self.call.turned_away, Unavailable("The client has left."))

    def client_ready(self) -> None:
        """The client has read what waited."""
        self._slow_since = 0.0
        waiting_bytes, self._waiting_bytes = self._waiting_bytes, 0
        if self._connection is not None and waiting_bytes > HIGH_WATER_BYTES:
            self._connection.resume()
            # The backend was not heard meanwhile, so it was not silent.
            self._deadline = self._loop.time() + self._running.settings.idle_timeout_seconds
        self._advance()

    def _send_head(self, command: SendHead) -> None:
        if self.call.is_client_gone:
            return
        self._status = 200
        self._first_byte_seconds = time.perf_counter() - self._started
        telemetry.CALLS.first_byte(self.call.request.endpoint, self._first_byte_seconds)
        kind = _STREAM_LINES if command.length is None else _LINES.get(self.call.request.audio_format, _JSON_LINES)
        limits = b"".join(b"%b: %b\r\n" % header for header in self._limits(self._buckets))
        milliseconds = int(self._first_byte_seconds * 1_000)
        lines = b"x-request-id: %b\r\nopenai-processing-ms: %d\r\n%b%b" % (self._id, milliseconds, kind, limits)
        request = self.call.request
        if request.tells_cost or request.endpoint is Endpoint.MESSAGES:
            lines += self._extra_lines()
        self._exchange.open(200, lines, command.length)

    def _limits(self, buckets: tuple[BucketState, ...]) -> list[tuple[bytes, bytes]]:
        is_message = self.call.request.endpoint is Endpoint.MESSAGES
        return rate_limit_headers(buckets, self._now() if buckets and is_message else None)

    def _extra_lines(self) -> bytes:
        """Headers that most calls do not have."""
        request, charge = self.call.request, self.call.charge
        lines = b""
        if request.endpoint is Endpoint.MESSAGES:
            lines += b"request-id: %b\r\n" % self._id
        if request.tells_cost and charge is not None and not request.stream:
            cost = f"{amount_text(charge.amount, charge.currency)} {charge.currency}"
            lines += b"x-tollgate-cost: %b\r\n" % cost.encode()
        return lines

    def _send_body(self, command: SendBody) -> None:
        if self.call.is_client_gone:
            return
        if command.last:
            self._exchange.end(command.data)
        else:
            self._exchange.write(command.data)

    def _send_error(self, command: SendError) -> None:
        if self.call.is_client_gone:
            return
        answer = command.answer
        rendered = render(command.error, request_id=self.request_id, path=self.call.request.endpoint)
        self._status = rendered.status
        headers = [*rendered.headers, *self._limits(answer.buckets if answer is not None else self._buckets)]
        self._exchange.answer(rendered.status, headers, rendered.body)

    def _report(self) -> None:
        call, origin = self.call, self.call.hold_request.origin
        seconds = time.perf_counter() - self._started
        status = self._status or 499
        ending = call.ending if call.ending is not None else "refused" if call.hold is None else "void"
        telemetry.CALLS.ended(origin.endpoint, origin.model, ending, status, seconds)
        telemetry.log_call(
            origin,
            status=status,
            ending=ending,
            duration_ms=int(seconds * 1_000),
            first_byte_ms=None if self._first_byte_seconds is None else int(self._first_byte_seconds * 1_000),
            attempts=self._attempts,
            reason=call.error.message if call.error is not None else "",
            charge=call.charge,
        )


def _nowhere() -> Attempt | None:
    """Where a call goes that has ended."""
    return None


_DOES: dict[type[Any], Callable[[Driver, Any], None]] = {
    CloseUpstream: Driver._close_backend,
    Connect: Driver._connect,
    CountPrompt: Driver._count_prompt,
    CountTokens: Driver._count,
    KeepResponse: Driver._keep,
    PlaceHold: Driver._place_hold,
    Release: Driver._release,
    SendBody: Driver._send_body,
    SendError: Driver._send_error,
    SendHead: Driver._send_head,
    Settle: Driver._settle,
}
"""How each command is carried out."""
