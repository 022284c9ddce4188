"""The life of one call: a state machine that is fed events and says what to do. It never awaits and does no I/O.

Drivers own the sockets, the clock and the stores. They feed what happened (`hold_answered`, `upstream_bytes`,
`client_gone`, ...) and carry out, in order, the commands that `take` returns. The order that keeps the promises is
decided here alone: no byte to a backend before the hold is acknowledged, no last byte to the client before the charge
is settled, exactly one `Settle` or `Release` for every hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto

from billing import charges
from billing.admission import tightened
from gateway.backends import DIALECTS
from gateway.backends.events import Chunk, read, read_any
from gateway.backends.failures import failure, stream_failure
from gateway.backends.wholes import answer_in, read_transcript
from gateway.calls.answers import Answer, End, WholeResponse, answer_to
from gateway.calls.choice import FALLBACK_FLAG, MAX_ATTEMPTS, Leg
from gateway.calls.commands import (
    CloseUpstream,
    Command,
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
from gateway.calls.metering import Meter, OwnCount, Reading
from gateway.calls.refusals import refusal
from gateway.calls.sse import DONE, Event, EventSplitter, EventTooLarge
from models.call import CallRequest, Charge, Checkpoint, Hold, HoldRefusal, HoldRequest, RefusedHold, Void
from models.catalog import Deployment, Model
from models.errors import (
    BackendFailed,
    BrokenPromise,
    TollgateError,
    Unavailable,
)
from models.money import amount_text
from models.usage import Ending
from models.values import value

MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
_RETRIED_STATUS = frozenset({502, 503})
_REFUSED_STATUS = frozenset({400, 413, 422})
_DONE_EVENT = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"


@value
class Attempt:
    """A deployment that can serve the call, and the body it is asked with; `leg` where one of two models may serve."""

    deployment: Deployment
    body: bytes
    leg: Leg | None = None


class Phase(Enum):
    """Where in its life a call is."""

    NEW = auto()
    HOLDING = auto()
    CONNECTING = auto()
    ANSWERING = auto()
    COUNTING = auto()
    SETTLING = auto()
    KEEPING = auto()
    ENDED = auto()


# Looking a member up on its class costs a tenth of a microsecond, and a call does so thirty times.
_NEW, _HOLDING, _CONNECTING, _ANSWERING, _COUNTING, _SETTLING, _KEEPING, _ENDED = Phase


class Call:
    """One call from its admission to its last byte.

    `next_attempt` says where to send it, first and again after each failure before the first byte; None: nowhere.
    """

    def __init__(
        self,
        request: CallRequest,
        hold_request: HoldRequest,
        model: Model,
        next_attempt: Callable[[], Attempt | None],
        now: Callable[[], datetime],
        *,
        is_audited: bool = False,
    ) -> None:
        self.is_audited = is_audited
        self.own_count: OwnCount | None = None
        self._is_prompt_counted = False
        self.request = request
        self.hold_request = hold_request
        self.model = model
        self.phase = _NEW
        self.hold: Hold | None = None
        self.deployment: Deployment
        self.answer: Answer
        self.ending: Ending | None = None
        self.error: TollgateError | None = None
        self.charge: Charge | None = None
        self.is_client_gone = False
        self._drained: TollgateError | None = None
        self.next_attempt = next_attempt
        self._attempts = 0
        self._now = now
        self.commands: deque[Command] = deque()
        self._final = b""
        self._status = 0
        self._is_head_sent = False
        self._is_kept = False
        self._refused: RefusedHold

    def _begin_attempt(self) -> None:
        self.meter = Meter(self.request, DIALECTS[self.deployment.backend.kind])
        self._splitter = EventSplitter()
        self.answer = answer_to(self.request, self.hold_request.origin, self.deployment, self.meter)
        self._read = read_transcript if self.request.upload is not None else read
        self._status = 0
        self._is_sent = False
        self._is_event_stream = False
        self._collected: list[bytes] = []
        self._collected_bytes = 0

    def take(self) -> list[Command]:
        """The commands since the last time, to be carried out in order. Who may be interrupted takes one by one from
        `commands` instead."""
        commands = list(self.commands)
        self.commands.clear()
        return commands

    def _do(self, command: Command) -> None:
        self.commands.append(command)

    @property
    def has_500(self) -> bool:
        """Whether the backend answered with that, which may be anybody's fault."""
        return self._status == 500

    # Hold ------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The request is admitted: ask for its hold."""
        self.phase = _HOLDING
        self._do(PlaceHold(self.hold_request))

    def turned_away(self, error: TollgateError) -> None:
        """There is no room for the call at any backend: nothing was held for it."""
        if self.phase is _NEW:
            self._refuse(error)

    def hold_answered(self, answer: Hold | RefusedHold) -> None:
        """The hot store has placed the hold, or refused it."""
        if self.phase is not _HOLDING:
            return
        if isinstance(answer, RefusedHold):
            if answer.reason is HoldRefusal.BALANCE and self._may_count_prompt():
                self._is_prompt_counted = True
                self._refused = answer
                self._do(CountPrompt(self.request, self.model))
            else:
                self._refuse(refusal(answer, self.hold_request), answer)
            return
        self.hold = answer
        if self.is_client_gone:
            self._release("the client left before the call was sent")
            return
        if self._drained is not None:
            self._release("the process stopped before the call was sent")
            self._refuse(self._drained)
            return
        attempt = self.next_attempt()
        if attempt is None:
            self._release("there was no backend to send the call to")
            self._refuse(Unavailable("All backends of this model are busy. Nothing was charged; try again."))
            return
        self._connect(attempt)

    def _may_count_prompt(self) -> bool:
        return self.model.tokenizer is not None and self.request.input_bound is not None and not self._is_prompt_counted

    def prompt_counted(self, tokens: int) -> None:
        """Our own count of the prompt: ask again if that makes the hold smaller."""
        if self.phase is not _HOLDING:
            return
        smaller = tightened(self.hold_request, tokens, self.request.prompts)
        if smaller is None or self.is_client_gone:
            self._refuse(refusal(self._refused, self.hold_request), self._refused)
            return
        self.hold_request = smaller
        self._do(PlaceHold(smaller))

    def hold_failed(self, error: TollgateError) -> None:
        """The hot store did not answer: it may have placed the hold, so it is given back, and the call refused."""
        if self.phase is not _HOLDING:
            return
        self.hold = Hold(self.hold_request)
        self._release("the hold was not acknowledged")
        self._refuse(error)

    # Backend ---------------------------------------------------------------------------------------------------------

    def _connect(self, attempt: Attempt) -> None:
        self._attempts += 1
        self.deployment = attempt.deployment
        self._begin_attempt()
        if attempt.leg is not None:
            self._take(attempt.leg)
        self.phase = _CONNECTING
        self._do(Connect(attempt.deployment, self.request.endpoint.upstream, attempt.body))

    def _take(self, leg: Leg) -> None:
        """Go on with this model: by its count, and at the rates it is sold at. The hold covers either."""
        assert self.hold is not None, "nothing is sent without a hold"
        self.model = leg.model
        if leg.is_fallback:
            self.meter.flags.add(FALLBACK_FLAG)
        charged = leg.charged(self.hold_request)
        if charged is not self.hold_request:
            self.hold_request, self.hold = charged, Hold(charged, self.hold.buckets)

    def upstream_sent(self) -> None:
        """The request is on its way: from here on the backend may spend tokens on it."""
        self._is_sent = True

    def upstream_unsent(self) -> None:
        """The connection had been given up before the request came: no backend has seen it, and it is sent again."""
        if self.phase is _CONNECTING:
            self._is_sent = False

    def upstream_head(self, status: int, content_type: bytes) -> None:
        """The backend's status and content type."""
        if self.phase is not _CONNECTING:
            return
        self.phase = _ANSWERING
        self._status = status
        is_stream, endpoint = content_type.startswith(b"text/event-stream"), self.request.endpoint
        self._is_event_stream = status == 200 and is_stream and (endpoint.generates or endpoint.hears)

    def upstream_bytes(self, data: bytes) -> None:
        """A piece of the backend's body, split anywhere."""
        if self.phase is not _ANSWERING:
            return
        if not self._is_event_stream:
            self._collect(data)
            return
        try:
            events = self._splitter.feed(data)
        except EventTooLarge:
            self.upstream_failed(BackendFailed("The model's backend sent an event that is too large."))
            return
        self._see(events)

    def _collect(self, data: bytes) -> None:
        self._collected_bytes += len(data)
        if self._collected_bytes <= (MAX_ANSWER_BYTES if self._status == 200 else MAX_ERROR_BYTES):
            self._collected.append(data)
        elif self._status == 200:
            self.upstream_failed(BackendFailed("The model's backend sent an answer that is too large."))

    def _see(self, events: list[Event]) -> None:
        passed = []
        answer = self.answer
        for raw, data in events:
            if data is None:
                # A comment keeps the client's connection alive too, once there is one to keep.
                if self._is_head_sent:
                    passed.append(answer.aside(raw))
            elif data == DONE:
                self._pass(passed)
                self._finish(Ending.FINISHED, raw)
                return
            else:
                chunk = self._read(data)
                if chunk is None and data == b"null":
                    # llama.cpp sends one between the choices of a prompt list; SDKs take it for a chunk and stumble.
                    continue
                if chunk is None:
                    self.meter.flags.add("event_malformed")
                    passed.append(answer.aside(raw))
                    continue
                if (chunk.error or chunk.object == "error") and (error := _error_in(chunk, data)) is not None:
                    self._pass(passed)
                    self._told_error(error, data)
                    return
                self.meter.see(chunk)
                if self.meter.is_beyond(self.hold_request.output_bound):
                    self._pass(passed)
                    self._spend_hold(chunk, data)
                    return
                passed.append(answer.event(raw, chunk, data))
        self._pass(passed)

    def _told_error(self, error: object, data: bytes) -> None:
        """The backend says in its stream what went wrong; SGLang tells so of the client's own faults, after a 200."""
        status = error.get("code") if isinstance(error, dict) else None
        if type(status) is int and status in _REFUSED_STATUS and not self.meter.has_output and not self._is_head_sent:
            self._fail_before_first_byte(failure(status, data, self.deployment, self.request.endpoint), False)
        else:
            self._fail_in_stream(stream_failure(error, self.deployment))

    def _spend_hold(self, chunk: Chunk, data: bytes) -> None:
        """The backend goes on beyond the tokens that the hold covers: end the answer here, as at a limit of length."""
        self._do(CloseUpstream())
        # The client does not get this event, so what ends with it has not ended for the client.
        ended = self.meter.finished - {each.index for each in chunk.choices or () if each.finish_reason is not None}
        self._pass([self.answer.cut([index for index in range(self.request.choices) if index not in ended], data)])
        self._finish(Ending.HOLD_SPENT, _DONE_EVENT)

    def _pass(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        if not data or self.is_client_gone:
            return
        if not self._is_head_sent:
            self._is_head_sent = True
            self._do(SendHead(None))
        self._do(SendBody(data))

    def upstream_end(self) -> None:
        """The backend's body is complete."""
        if self.phase is not _ANSWERING:
            return
        if self._status != 200:
            self._fail_before_first_byte(
                failure(self._status, b"".join(self._collected), self.deployment, self.request.endpoint),
                self._status in _RETRIED_STATUS,
            )
        elif not self._is_event_stream:
            self._end_of_answer(b"".join(self._collected))
        else:
            self._see(self._splitter.flush())
            if self.phase is _ANSWERING:
                if self.meter.all_finished:
                    self._finish(Ending.FINISHED, _DONE_EVENT)
                else:
                    self._fail_in_stream(BackendFailed("The model's backend broke off in the middle of the answer."))

    def _end_of_answer(self, body: bytes) -> None:
        answer = answer_in(self.request, body)
        if answer is None or not self.answer.whole(answer, body):
            self._fail_before_first_byte(BackendFailed("The model's backend sent an answer that is none."), False)
            return
        self.meter.see_answer(answer)
        self._finish(Ending.FINISHED, b"")

    def upstream_failed(self, error: TollgateError) -> None:
        """No connection, a broken one, or a time limit that passed."""
        if self.phase is _CONNECTING:
            self._fail_before_first_byte(error, True)
        elif self.phase is _ANSWERING:
            self._fail_in_stream(error)

    def _fail_before_first_byte(self, error: TollgateError, may_retry: bool) -> None:
        self._do(CloseUpstream())
        if may_retry and self._attempts < MAX_ATTEMPTS and not self.is_client_gone:
            attempt = self.next_attempt()
            if attempt is not None:
                self._connect(attempt)
                return
        self._release(error.message)
        self._refuse(error)

    def _fail_in_stream(self, error: TollgateError) -> None:
        if not self.meter.has_output:
            self._fail_before_first_byte(error, not self._is_head_sent)
            return
        self.error = error
        self._do(CloseUpstream())
        self._finish(Ending.BACKEND_FAILED, b"")

    # Client ----------------------------------------------------------------------------------------------------------

    def client_gone(self) -> None:
        """The client closed its connection, or stopped reading for too long."""
        if self.is_client_gone or self.phase is _ENDED:
            return
        self.is_client_gone = True
        self._stop(Ending.CLIENT_GONE, None)

    def keep_alive(self) -> None:
        """Nothing came for a while: a comment keeps those between from taking the connection for dead."""
        if self.phase in (_CONNECTING, _ANSWERING) and self.request.stream:
            self._pass([_COMMENT])

    def drain(self, error: TollgateError) -> None:
        """This process stops, and the call did not end in the time it had."""
        if self.phase is _HOLDING:
            self._drained = error
        self._stop(Ending.DRAINED, error)

    def broke(self, error: TollgateError) -> None:
        """A fault of ours in mid-call: charge what there is, or give the hold back."""
        match self.phase:
            case Phase.NEW | Phase.SETTLING | Phase.KEEPING:
                # There is no hold yet, or its charge is on its way, or taken.
                self._refuse(error)
            case Phase.HOLDING:
                self.hold_failed(error)
            case Phase.COUNTING:
                self.error = error
                self.counted(None)
            case _:
                self._stop(Ending.DRAINED, error)

    def _stop(self, ending: Ending, error: TollgateError | None) -> None:
        if self.phase not in (_CONNECTING, _ANSWERING):
            return
        self.error = error
        self._do(CloseUpstream())
        if self._status not in (0, 200) or not self._is_sent:
            self._release("the call was stopped before a backend accepted it")
            if error is not None:
                self._refuse(error)
            return
        # A backend spends the prompt as soon as it has accepted it, also when nobody waits for the answer.
        self._finish(ending, b"")

    def checkpoint(self) -> Checkpoint | None:
        """How far the call has come, for the sweeper, should this process die; None where there is nothing to keep."""
        if self.hold is None or self.phase not in (_CONNECTING, _ANSWERING, _COUNTING, _SETTLING):
            return None
        usage, source = self.meter.progress(self.hold_request.input_bound, self.hold_request.output_bound)
        is_accepted = self._is_sent and self._status in (0, 200)
        return Checkpoint(self.hold_request.origin, usage, source, self.deployment.backend.name, is_accepted)

    # End -------------------------------------------------------------------------------------------------------------

    def _finish(self, ending: Ending, final: bytes) -> None:
        self.ending = ending
        self._final = final
        is_audit = self.is_audited and ending is Ending.FINISHED and self.model.tokenizer is not None
        if is_audit or self.meter.wants_own_count(self.model.billed_count):
            self.phase = _COUNTING
            self._do(CountTokens(self.request, self.model, tuple(self.meter.delivered())))
        else:
            self.counted(None)

    def counted(self, own: OwnCount | None) -> None:
        """Our own count, where one was asked for; the charge follows."""
        if self.hold is None or self.ending is None:
            raise BrokenPromise("a charge needs a hold and an ending")
        self.own_count = own
        measured = self.meter.measure(
            own,
            billed=self.model.billed_count,
            input_bound=self.hold_request.input_bound,
            output_bound=self.hold_request.output_bound,
            is_abandoned=self.ending is Ending.CLIENT_GONE,
        )
        self.charge = charges.charge(
            self.hold,
            measured,
            ending=self.ending,
            deployment=self.deployment.backend.name,
            ended_at=self._now(),
            version=self.deployment.backend_model,
        )
        self.phase = _SETTLING
        self._do(Settle(self.hold, self.charge))

    def settled(self) -> None:
        """The charge is durable: now the last bytes may go."""
        if self.phase is not _SETTLING:
            return
        items = self.request.stored_input
        if items is not None and self.error is None and not self.is_client_gone:
            assert isinstance(self.answer, WholeResponse), "only responses are kept"
            self.phase = _KEEPING
            self._do(KeepResponse(self.hold_request.origin, self.answer.response(self._end()), items))
            return
        self._end_call()

    def response_kept(self, is_kept: bool) -> None:
        """The response is stored, or could not be: the answer says which."""
        if self.phase is _KEEPING:
            self._is_kept = is_kept
            self._end_call()

    def _end_call(self) -> None:
        if not self.is_client_gone:
            self._end_answer()
        self.phase = _ENDED

    def _end_answer(self) -> None:
        if self.request.stream:
            if not self._is_head_sent:
                self._do(SendHead(None))
            last = self.answer.end(self._end()) if self.error is None else self.answer.broke(self.error)
            self._do(SendBody(last, last=True))
        elif self.error is not None:
            self._do(SendError(self.error, self.hold))
        else:
            body = self.answer.end(self._end())
            self._do(SendHead(len(body)))
            self._do(SendBody(body, last=True))

    def _end(self) -> End:
        if self.charge is None or self.ending is None:
            raise BrokenPromise("an answer ends when it is paid for")
        is_known = self.meter.knows_progress or self.ending is Ending.HOLD_SPENT
        cost = None
        if self.request.tells_cost:
            currency = self.charge.currency
            cost = {"amount": amount_text(self.charge.amount, currency), "currency": currency}
        return End(self.ending, self.charge.ended_at, self._final, self._usage_told, is_known, cost, self._is_kept)

    def _usage_told(self) -> Reading:
        """The usage that we tell the client."""
        charge = self.charge
        if charge is None or (self.meter.knows_progress and self.ending is not Ending.HOLD_SPENT):
            return self.meter.total()
        # What the backend made beyond the hold was neither delivered nor charged; what it did not tell is our count.
        of_charge = charge.input_tokens, charge.output_tokens, charge.cached_tokens
        return Reading(*of_charge, reasoning=charge.reasoning_tokens)

    def _release(self, reason: str) -> None:
        if self.hold is None:
            raise BrokenPromise("only a hold can be released")
        self._do(Release(Void(self.hold, reason)))
        self.phase = _ENDED

    def _refuse(self, error: TollgateError, answer: RefusedHold | None = None) -> None:
        self.phase = _ENDED
        self.error = error
        if self.is_client_gone:
            return
        if self._is_head_sent:
            self._do(SendBody(self.answer.broke(error), last=True))
        else:
            self._do(SendError(error, answer or self.hold))


def _error_in(chunk: Chunk, data: bytes) -> object | None:
    """The error object in an event: nested, as most engines send it, or flat, as SGLang does."""
    if chunk.error and bytes(chunk.error) != b"null":
        return read_any(chunk.error) or {}
    if chunk.object == "error":
        return read_any(data) or {}
    return None
