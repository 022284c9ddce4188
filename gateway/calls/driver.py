"""Drives one call over ASGI: carries out what its state machine says, and feeds it what happens."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send

from billing.journal.settles import settle_record
from gateway import telemetry
from gateway.api.errors import render
from gateway.api.ratelimits import rate_limit_headers
from gateway.calls.commands import (
    CloseUpstream,
    Command,
    Connect,
    CountPrompt,
    CountTokens,
    PlaceHold,
    Release,
    SendBody,
    SendError,
    SendHead,
    Settle,
)
from gateway.calls.counting import own_count
from gateway.calls.machine import Call, Phase
from gateway.calls.running import Running
from gateway.calls.upstream import Connection
from gateway.server import DISCONNECT
from models.call import BucketState, Charge, Hold, RefusedHold
from models.errors import BackendFailed, BackendTimedOut, TollgateError, Unavailable

HIGH_WATER_BYTES = 512 * 1024
"""Bytes that wait for a slow client before the backend is no longer read."""
SETTLE_PATIENCE_SECONDS = 2.0
"""How long a client waits for its last byte while the ledger is away; the settling itself never gives up."""

JOURNAL_PATIENCE_SECONDS = 1.0
"""How long a disk may take to write; after that Redis alone carries the charge."""

_log = structlog.get_logger("tollgate.calls")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Driver:
    """One call and its two connections."""

    def __init__(self, running: Running, call: Call, epoch: int, scope: Scope, receive: Receive, send: Send) -> None:
        self.call = call
        self._running = running
        self._epoch = epoch
        self._extension = scope.get("extensions", {}).get(DISCONNECT)
        self._receive = receive
        self._send = send
        self._commands: deque[Command] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._connection: Connection | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline = float("inf")
        self._deadline_error: TollgateError | None = None
        self._last_second = self._loop.time() + running.settings.total_timeout_seconds
        self._writing_since = 0.0
        self._waiting_bytes = 0
        self._is_stalled = False
        self._journaling: asyncio.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._started = time.perf_counter()
        self._first_byte_seconds: float | None = None
        self._status = 0
        self._attempts = 0
        self.request_id = str(call.hold_request.origin.call_id)
        self._buckets: tuple[BucketState, ...] = ()

    async def run(self) -> None:
        """The whole call. Whatever happens to the request's task, the hold is settled or released."""
        running, call = self._running, self.call
        self._task = asyncio.current_task()
        unwatch = self._watch_client()
        running.drivers.add(self)
        telemetry.CALLS.started(call.request.endpoint)
        try:
            call.begin()
            await self._live()
        except asyncio.CancelledError:
            call.client_gone()
            running.detach(self._live())
            raise
        except Exception:
            _log.exception("call_broke", call_id=self.request_id)
            await self._wind_up()
        finally:
            unwatch()
            running.ended(self)
            self._leave_backend()
            self._report()

    async def _wind_up(self) -> None:
        """After a fault of ours: charge or release what there is, since no sweeper does it while this process lives."""
        self._commands.clear()
        self.call.drain(TollgateError("Something went wrong on our side. Report the request id if it happens again."))
        try:
            await self._live()
        except Exception:
            _log.exception("call_not_ended", call_id=self.request_id)

    async def _live(self) -> None:
        """Carry out commands until the call has ended. A command counts as done only after it was."""
        while True:
            self._commands.extend(self.call.take())
            if self._commands:
                command = self._commands[0]
                try:
                    await _DOES[type(command)](self, command)
                except asyncio.CancelledError:
                    if not self._is_stalled or self._task is None:
                        raise
                    self._is_stalled = False
                    self._task.uncancel()
                self._commands.popleft()
            elif self.call.phase is Phase.ENDED:
                return
            else:
                self._wake = self._loop.create_future()
                await self._wake

    async def _count_prompt(self, command: CountPrompt) -> None:
        own = await own_count(self._running.tokenizers, command.request, command.model.tokenizer, ())
        self.call.prompt_counted(own.prompt)

    async def _count(self, command: CountTokens) -> None:
        tokenizers, tokenizer = self._running.tokenizers, command.model.tokenizer
        self.call.counted(await own_count(tokenizers, command.request, tokenizer, command.texts))

    # Ledger ----------------------------------------------------------------------------------------------------------

    async def _place_hold(self, command: PlaceHold) -> None:
        try:
            answer = await self._running.hot.hold(command.request, self._epoch)
        except TollgateError as error:
            self.call.hold_failed(error)
            return
        self._buckets = answer.buckets
        if isinstance(answer, RefusedHold):
            telemetry.CALLS.refused(answer.reason.value)
        self.call.hold_answered(answer)

    async def _settle(self, command: Settle) -> None:
        hold, charge = command.hold, command.charge
        is_journaled = await self._journal(hold, charge)
        try:
            await self._running.hot.settle(hold, charge)
        except Unavailable:
            task = self._running.detach(self._running.settle(hold, charge))
            if not is_journaled:
                await asyncio.wait({task}, timeout=SETTLE_PATIENCE_SECONDS)
        telemetry.CALLS.charged(charge)
        own = self.call.own_count
        if own is not None and own.is_completion_exact and self.call.meter.is_complete:
            telemetry.CALLS.audited(charge.model, self.call.meter.total().completion, own.completion)
        self.call.settled()

    async def _journal(self, hold: Hold, charge: Charge) -> bool:
        """Have the charge on disk; False where there is no journal or it fails, and Redis alone must take it."""
        journal = self._running.journal
        if journal is None:
            return False
        self._journaling = journal.append(settle_record(hold, charge), in_flight=len(self._running.drivers))
        self._deadline = self._loop.time() + JOURNAL_PATIENCE_SECONDS
        try:
            await self._journaling
        except Unavailable:
            return False
        finally:
            self._journaling = None
            self._deadline = float("inf")
        return True

    async def _release(self, command: Release) -> None:
        try:
            await self._running.hot.void(command.void.hold)
        except Unavailable:
            self._running.detach(self._running.release(command.void))

    # Backend ---------------------------------------------------------------------------------------------------------

    async def _connect(self, command: Connect, *, fresh: bool = False) -> None:
        settings, upstreams = self._running.settings, self._running.upstreams
        if self.call.phase is not Phase.CONNECTING:
            return
        pool = upstreams.pool(command.deployment)
        self._attempts += 1
        try:
            take = pool.connect if fresh else pool.take
            connection = await take(settings.connect_timeout_seconds)
        except BackendFailed as error:
            telemetry.CALLS.backend_error(command.deployment.backend.name, "connect")
            self.call.upstream_failed(error)
            return
        if self.call.phase is not Phase.CONNECTING:
            connection.close()
            return
        backend_id = command.deployment.backend.id
        upstreams.in_flight[backend_id] = upstreams.in_flight.get(backend_id, 0) + 1
        self._connection = connection
        self._sent = command
        connection.send(pool.address.request(command.endpoint, command.body), self)
        self._expect(settings.first_byte_timeout_seconds, "The model's backend did not answer in time.")
        self.call.upstream_sent()

    def _expect(self, seconds: float, message: str) -> None:
        self._deadline = self._loop.time() + seconds
        self._deadline_error = BackendTimedOut(message) if self._deadline_error is None else self._deadline_error

    def upstream_head(self, status: int, content_type: bytes) -> None:
        """The backend answers."""
        self.call.upstream_head(status, content_type)

    def upstream_bytes(self, data: bytes) -> None:
        """A piece of the backend's answer: goes to the machine at once, and to the client in its turn."""
        self._deadline = self._loop.time() + self._running.settings.idle_timeout_seconds
        self.call.upstream_bytes(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and self.call.request.stream and self._connection is not None:
            self._connection.pause()
        self._notify()

    def upstream_end(self) -> None:
        """The backend's answer is complete."""
        self.call.upstream_end()
        self._notify()

    def upstream_lost(self, error: TollgateError, is_stale: bool) -> None:
        """The backend's connection broke."""
        self._forget_backend()
        if is_stale and self.call.phase is Phase.CONNECTING:
            # The backend had closed an idle connection before it saw the request: nothing was done, ask again.
            self._running.detach(self._reconnect())
            return
        telemetry.CALLS.backend_error(self.call.deployment.backend.name, "closed")
        self.call.upstream_failed(error)
        self._notify()

    async def _reconnect(self) -> None:
        await self._connect(self._sent, fresh=True)
        self._notify()

    async def _close_backend(self, command: CloseUpstream) -> None:
        connection = self._connection
        self._forget_backend()
        if connection is not None:
            connection.close()

    def _leave_backend(self) -> None:
        connection = self._connection
        self._forget_backend()
        if connection is not None:
            connection.leave()

    def _forget_backend(self) -> None:
        if self._connection is not None:
            self._connection = None
            self._running.upstreams.in_flight[self._sent.deployment.backend.id] -= 1
        self._deadline = float("inf")

    # Time ------------------------------------------------------------------------------------------------------------

    def check_time(self, now: float) -> None:
        """End what has taken too long: a backend that is silent, a client that does not read, a call without end."""
        settings = self._running.settings
        if self._writing_since and now - self._writing_since > settings.write_timeout_seconds:
            self._writing_since = 0.0
            self._is_stalled = True
            self.call.client_gone()
            if self._task is not None:
                self._task.cancel()
        elif self._writing_since:
            return
        elif self._journaling is not None:
            if now > self._deadline and not self._journaling.done():
                self._journaling.set_exception(Unavailable("The journal's disk does not answer."))
        elif now > self._deadline or now > self._last_second:
            self._deadline = self._last_second = float("inf")
            telemetry.CALLS.backend_error(self.call.deployment.backend.name, "timeout")
            self.call.upstream_failed(BackendTimedOut("The model's backend did not answer in time."))
            self._notify()

    def drain(self) -> None:
        """This process stops: end the call with what it has."""
        self.call.drain(Unavailable("This server is being restarted. Send the request again."))
        self._notify()

    # Client ----------------------------------------------------------------------------------------------------------

    def _watch_client(self) -> Callable[[], object]:
        """See to it that we are told when the client leaves; gives the function that ends this."""
        if self._extension is not None:
            watch = self._extension["watch"]
            watch(self._client_gone)
            return lambda: watch(None)
        return self._loop.create_task(self._await_disconnect()).cancel

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._client_gone()

    def _client_gone(self) -> None:
        self.call.client_gone()
        self._notify()

    def _notify(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _write(self, message: Message) -> None:
        self._writing_since = self._loop.time()
        try:
            await self._send(message)
        except OSError:
            self.call.client_gone()
        finally:
            self._writing_since = 0.0

    async def _send_head(self, command: SendHead) -> None:
        length = command.length
        self._status = 200
        self._first_byte_seconds = time.perf_counter() - self._started
        telemetry.CALLS.first_byte(self.call.request.endpoint, self._first_byte_seconds)
        headers = [(b"x-request-id", self.request_id.encode()), *rate_limit_headers(self._buckets)]
        if length is None:
            headers += _STREAM_HEADERS
        else:
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
        await self._write({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send_body(self, command: SendBody) -> None:
        if self.call.is_client_gone:
            return
        await self._write({"type": "http.response.body", "body": command.data, "more_body": not command.last})
        self._waiting_bytes = 0
        if self._connection is not None:
            self._connection.resume()

    async def _send_error(self, command: SendError) -> None:
        answer = command.answer
        rendered = render(command.error, request_id=self.request_id)
        self._status = rendered.status
        headers = [*rendered.headers, *rate_limit_headers(answer.buckets if answer is not None else self._buckets)]
        await self._write({"type": "http.response.start", "status": rendered.status, "headers": headers})
        await self._write({"type": "http.response.body", "body": rendered.body})

    def _report(self) -> None:
        call, origin = self.call, self.call.hold_request.origin
        seconds = time.perf_counter() - self._started
        status = self._status or 499
        ending = call.ending.value if call.ending is not None else "refused" if call.hold is None else "void"
        telemetry.CALLS.ended(origin.endpoint, origin.model, ending, status, seconds)
        telemetry.log_call(
            call_id=origin.call_id,
            organization_id=origin.organization_id,
            project_id=origin.project_id,
            api_key_id=origin.api_key_id,
            endpoint=origin.endpoint,
            model=origin.model,
            status=status,
            ending=ending,
            duration_ms=int(seconds * 1_000),
            streamed=origin.streamed,
            first_byte_ms=None if self._first_byte_seconds is None else int(self._first_byte_seconds * 1_000),
            attempts=self._attempts,
            reason=call.error.message if call.error is not None else "",
            charge=call.charge,
        )


_DOES: dict[type[Any], Callable[[Driver, Any], Awaitable[None]]] = {
    CloseUpstream: Driver._close_backend,
    Connect: Driver._connect,
    CountPrompt: Driver._count_prompt,
    CountTokens: Driver._count,
    PlaceHold: Driver._place_hold,
    Release: Driver._release,
    SendBody: Driver._send_body,
    SendError: Driver._send_error,
    SendHead: Driver._send_head,
    Settle: Driver._settle,
}
"""How each command is carried out."""
