"""The life of a call, in every order of events: what is promised about money and bytes holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.hot.entries import decode_charge, encode_charge
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
from gateway.calls.machine import Call, Phase
from gateway.calls.metering import OwnCount
from models.call import CallRequest, Endpoint, Hold, HoldRefusal, RefusedHold
from models.catalog import BackendKind, Deployment
from models.errors import (
    BackendFailed,
    BackendTimedOut,
    InsufficientBalance,
    InvalidRequest,
    TollgateError,
    Unavailable,
)
from models.money import Units
from models.usage import BilledCount, Ending, UsageSource
from tests.unit.samples import chat_request, deployment, make_call

SSE = b"text/event-stream"
LLAMA, VLLM, OLLAMA = BackendKind.LLAMACPP, BackendKind.VLLM, BackendKind.OLLAMA


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    return event(choices=[{"index": index, "delta": {"content": text}, "finish_reason": finish}], id="c1", **more)


def usage(prompt: Any, completion: Any, cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


DONE = b"data: [DONE]\n\n"


class Play:
    """Plays a backend and the stores for one call, and keeps what the machine said."""

    def __init__(self, request: CallRequest, *deployments: Deployment, **options: Any) -> None:
        self.call: Call = make_call(request, deployments, **options)
        self.said: list[Command] = []
        self.call.begin()
        self.take()

    def take(self) -> list[Command]:
        new = self.call.take()
        self.said += new
        return new

    def hold(self) -> Play:
        self.call.hold_answered(Hold(self.call.hold_request))
        self.take()
        return self

    def open(self, status: int = 200, content_type: bytes = SSE) -> Play:
        self.hold()
        return self.answer(status, content_type)

    def answer(self, status: int = 200, content_type: bytes = SSE) -> Play:
        self.call.upstream_sent()
        self.call.upstream_head(status, content_type)
        self.take()
        return self

    def say(self, *pieces: bytes) -> Play:
        for piece in pieces:
            self.call.upstream_bytes(piece)
        self.take()
        return self

    def settle(self) -> Play:
        if any(isinstance(command, CountTokens) for command in self.said) and self.call.phase is Phase.COUNTING:
            self.call.counted(OwnCount(7, 5, True, True))
            self.take()
        self.call.settled()
        self.take()
        return self

    def of(self, kind: type[Any]) -> list[Any]:
        return [command for command in self.said if isinstance(command, kind)]

    @property
    def body(self) -> bytes:
        return b"".join(command.data for command in self.of(SendBody))

    @property
    def charge(self) -> Any:
        (settle,) = self.of(Settle)
        return settle.charge


# The plain life ------------------------------------------------------------------------------------------------------


def test_a_stream_is_passed_byte_for_byte_less_what_was_not_asked_for() -> None:
    timings = {"cache_n": 1, "prompt_n": 9, "predicted_n": 1}
    play = Play(chat_request(stream=True)).open()
    play.say(delta("He", timings=timings), b": ping\n\n", delta("y", finish="stop"))
    play.say(event(choices=[], usage=usage(10, 2, 1), timings=timings), DONE)
    assert play.body == delta("He") + b": ping\n\n" + delta("y", finish="stop")
    assert not play.of(SendBody)[-1].last
    play.settle()
    assert play.body.endswith(DONE)
    assert play.of(SendBody)[-1].last
    charge = play.charge
    assert (charge.input_tokens, charge.cached_tokens, charge.output_tokens) == (10, 1, 2)
    assert (charge.ending, charge.usage_source) == (Ending.FINISHED, UsageSource.BACKEND)
    # 9 fresh at 0.15, 1 cached at 0.075, 2 out at 0.60 dollars per million, in units of 10^-9 dollar.
    assert charge.amount == 9 * 150 + 75 + 2 * 600


def test_usage_is_passed_when_asked_for() -> None:
    play = Play(chat_request(stream=True, include_usage=True)).open()
    last = event(choices=[], usage=usage(10, 2))
    play.say(delta("x", finish="stop"), last, DONE).settle()
    assert play.body == delta("x", finish="stop") + last + DONE


def test_continuous_usage_is_hidden() -> None:
    play = Play(chat_request(stream=True, include_usage=True), deployment(VLLM)).open()
    play.say(delta("x", usage=usage(10, 1)), delta("", finish="stop", usage=usage(10, 1)))
    assert play.body == delta("x", usage=None) + delta("", finish="stop", usage=None)
    silent = Play(chat_request(stream=True), deployment(VLLM)).open()
    silent.say(delta("x", usage=usage(10, 1)))
    assert silent.body == delta("x")


def test_spaces_in_the_backends_json_do_not_hide_its_usage() -> None:
    spaced = b'data: {"choices": [], "usage" : {"prompt_tokens": 4, "completion_tokens": 2}, "id": "c"}\n\n'
    play = Play(chat_request(stream=True)).open().say(delta("x", finish="stop"), spaced, DONE).settle()
    assert (play.charge.input_tokens, play.charge.output_tokens) == (4, 2)
    assert b"usage" not in play.body


def test_an_aggregated_answer() -> None:
    play = Play(chat_request()).open()
    tool = {"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ":1}"}}
    play.say(
        event(id="c1", model="m", choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}]),
        delta("He"),
        event(choices=[{"index": 0, "delta": {"tool_calls": [tool]}}]),
        event(choices=[{"index": 0, "delta": {"tool_calls": [more]}}]),
        delta("y", finish="tool_calls"),
        event(choices=[], usage=usage(10, 9)),
        DONE,
    )
    assert not play.of(SendHead)
    play.settle()
    answer = json.loads(play.body)
    message = answer["choices"][0]["message"]
    assert (answer["object"], answer["id"], message["content"]) == ("chat.completion", "c1", "Hey")
    assert message["tool_calls"] == [
        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens"] == 9
    assert play.of(SendHead)[0].length == len(play.body)


def test_llamacpp_counts_each_choice_and_each_prompt_once() -> None:
    play = Play(chat_request(stream=True, include_usage=True, n=3)).open()
    play.say(*(delta("x", index=index, finish="length") for index in range(3)))
    play.say(*(event(choices=[], usage=usage(31, 10, 4)) for _ in range(3)), DONE).settle()
    assert (play.charge.input_tokens, play.charge.cached_tokens, play.charge.output_tokens) == (31, 4, 30)
    (told,) = [json.loads(line[6:]) for line in play.body.split(b"\n\n") if b'"usage":{' in line]
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (31, 30)


@pytest.mark.parametrize("n", [1, 3])
def test_llamacpp_that_tells_its_last_usage_twice_is_paid_once(n: int) -> None:
    play = Play(chat_request(stream=True, include_usage=True, n=n)).open()
    play.say(*(delta("x", index=index, finish="stop") for index in range(n)))
    play.say(*(event(choices=[], usage=usage(31, 10)) for _ in range(n + 1)), DONE).settle()
    assert (play.charge.input_tokens, play.charge.output_tokens) == (31, 10 * n)


def test_the_usage_that_we_make_has_the_name_that_the_model_is_sold_under() -> None:
    play = Play(chat_request(stream=True, include_usage=True, n=2), deployment(known_as="internal/x")).open()
    play.say(*(delta("x", index=index, finish="stop", model="internal/x") for index in range(2)))
    play.say(*(event(id="c1", model="internal/x", choices=[], usage=usage(31, 10)) for _ in range(2)), DONE).settle()
    assert b'"usage":{' in play.body
    assert b"internal" not in play.body


def test_llamacpp_reports_twice_and_is_believed_once() -> None:
    play = Play(chat_request(stream=True)).open()
    play.say(
        delta("x", finish="stop"), *(event(choices=[], usage=usage(31, tokens)) for tokens in (9, 10)), DONE
    ).settle()
    assert (play.charge.input_tokens, play.charge.output_tokens) == (31, 10)
    assert play.charge.flags == ("usage_twice",)


def test_llamacpp_that_reports_without_end_does_not_fill_the_receipt() -> None:
    play = Play(chat_request(stream=True)).open()
    reports = (event(choices=[], usage=usage(31, number // 20)) for number in range(1_000))
    play.say(delta("x", finish="stop"), *reports, DONE).settle()
    assert (play.charge.output_tokens, play.charge.flags) == (49, ("usage_twice",))
    assert play.charge.reported is not None
    assert [report["completion_tokens"] for report in play.charge.reported["usage"]] == [0, 49]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("more", ["a\0b", "x" * 20_000, {"a\0b": 1}], ids=["nul", "long", "nul in a name"])
def test_what_a_backend_says_beside_its_numbers_never_keeps_a_charge_from_the_book(stream: bool, more: Any) -> None:
    said = {**usage(31, 10), "note": more}
    if stream:
        play = Play(chat_request(stream=True)).open()
        play.say(delta("x", finish="stop"), event(choices=[], usage=said), DONE)
    else:
        play = Play(chat_request()).open(content_type=b"application/json")
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        answer = {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": said}
        play.say(json.dumps(answer).encode()).call.upstream_end()
        play.take()
    play.settle()
    assert (play.charge.input_tokens, play.charge.output_tokens) == (31, 10)
    assert (play.charge.reported, play.charge.flags) == (None, ("reported_not_kept",))
    assert decode_charge(encode_charge(play.charge)) == play.charge


def test_llamacpp_prompt_lists_are_summed_by_prompt() -> None:
    request = CallRequest(
        endpoint=Endpoint.COMPLETIONS, model="m", body={"prompt": ["a", "b"]}, n=2, prompts=2,
        max_output_tokens=10, input_bound=60,
    )  # fmt: skip
    play = Play(request).open()
    for index, prompt in ((1, 5), (3, 1), (0, 5), (2, 1)):
        play.say(event(choices=[{"index": index, "text": "x", "finish_reason": "length"}], usage=usage(prompt, 10)))
    play.say(DONE).settle()
    assert (play.charge.input_tokens, play.charge.output_tokens) == (6, 40)
    assert [choice["index"] for choice in json.loads(play.body)["choices"]] == [0, 1, 2, 3]


def test_embeddings_pass_as_they_are() -> None:
    request = CallRequest(endpoint=Endpoint.EMBEDDINGS, model="m", body={"input": "x"}, input_bound=60)
    body = b'{"object":"list","data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}'
    play = Play(request).open(200, b"application/json").say(body)
    play.call.upstream_end()
    play.take()
    assert play.settle().body == body
    assert (play.charge.input_tokens, play.charge.output_tokens) == (7, 0)


def test_an_answer_without_stream_and_usage_is_counted_by_us() -> None:
    message = {"role": "assistant", "content": "Hey", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    body = json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}).encode()
    play = Play(chat_request(), deployment(BackendKind.OPENAI)).open(200, b"application/json").say(body)
    play.call.upstream_end()
    play.take()
    assert play.of(CountTokens)[0].texts == ("Heyf{}",)
    assert play.settle().body == body
    assert (play.charge.output_tokens, play.charge.usage_source) == (5, UsageSource.TIKTOKEN)


def test_a_model_sold_under_another_name_keeps_it() -> None:
    play = Play(chat_request(stream=True), deployment(known_as="internal/x")).open()
    play.say(delta("x", model="internal/x"))
    assert play.body == delta("x", model="m")
    assert json.loads(play.of(Connect)[0].body)["model"] == "internal/x"


# Endings -------------------------------------------------------------------------------------------------------------


def test_the_client_leaves_before_the_hold_is_there() -> None:
    play = Play(chat_request(stream=True))
    play.call.client_gone()
    play.hold()
    assert play.of(Release)
    assert not play.of(Connect)


def test_the_client_leaves_in_prefill_and_pays_the_prompt() -> None:
    play = Play(chat_request(stream=True)).hold()
    play.call.upstream_sent()
    play.call.client_gone()
    play.take()
    assert play.of(CloseUpstream)
    play.settle()
    assert (play.charge.ending, play.charge.input_tokens) == (Ending.CLIENT_GONE, 7)


@pytest.mark.parametrize(
    ("kind", "piece", "source", "tokens"),
    [
        pytest.param(
            LLAMA,
            delta("x", timings={"cache_n": 2, "prompt_n": 8, "predicted_n": 4}),
            UsageSource.BACKEND_PARTIAL,
            (10, 4),
            id="llama.cpp tells its progress",
        ),
        pytest.param(VLLM, delta("x", usage=usage(10, 4)), UsageSource.BACKEND_PARTIAL, (10, 4), id="vLLM too"),
        pytest.param(OLLAMA, delta("x"), UsageSource.TIKTOKEN, (7, 5), id="Ollama does not: recounted"),
        pytest.param(OLLAMA, delta("x", usage=usage(0, 0)), UsageSource.TIKTOKEN, (7, 5), id="zeros are no answer"),
    ],
)
def test_the_client_leaves_in_mid_stream(
    kind: BackendKind, piece: bytes, source: UsageSource, tokens: tuple[int, int]
) -> None:
    play = Play(chat_request(stream=True), deployment(kind)).open().say(piece)
    play.call.client_gone()
    play.take()
    play.settle()
    assert (play.charge.ending, play.charge.usage_source) == (Ending.CLIENT_GONE, source)
    assert (play.charge.input_tokens, play.charge.output_tokens) == tokens


def test_a_truncated_stream_ends_with_an_error_and_without_done() -> None:
    play = Play(chat_request(stream=True)).open()
    play.say(delta("x", timings={"cache_n": 0, "prompt_n": 8, "predicted_n": 1}))
    play.call.upstream_end()
    play.take()
    play.settle()
    assert play.charge.ending is Ending.BACKEND_FAILED
    assert b"event: error" in play.body
    assert b"[DONE]" not in play.body


def test_a_stream_without_done_that_finished_gets_it() -> None:
    play = Play(chat_request(stream=True)).open().say(delta("x", finish="stop"), event(choices=[], usage=usage(9, 1)))
    play.call.upstream_end()
    play.take()
    assert play.settle().body.endswith(DONE)
    assert play.charge.ending is Ending.FINISHED


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(event(error={"message": "CUDA error at http://backend-1:8000", "code": 500}), id="nested"),
        pytest.param(event(object="error", message="out of memory", code=500), id="flat, as SGLang sends it"),
        pytest.param(b'data:{"error":"Request failed","error_type":"x"}\n\n', id="a string, as TGI sends it"),
    ],
)
def test_an_error_in_mid_stream_is_told_and_what_was_delivered_is_charged(error: bytes) -> None:
    play = Play(chat_request(stream=True)).open()
    play.say(delta("x", timings={"cache_n": 0, "prompt_n": 8, "predicted_n": 1}), error).settle()
    assert play.charge.ending is Ending.BACKEND_FAILED
    told = play.body.split(b"event: error\ndata: ")[1]
    assert set(json.loads(told)["error"]) == {"message", "type", "param", "code"}
    assert b"backend-1" not in told


def test_a_failing_backend_is_replaced_before_the_first_byte() -> None:
    play = Play(chat_request(stream=True), deployment(number=1), deployment(number=2)).hold()
    play.call.upstream_failed(BackendFailed("no connection"))
    play.take()
    assert [connect.deployment.backend.name for connect in play.of(Connect)] == ["b1", "b2"]
    play.answer().say(delta("x", finish="stop"), event(choices=[], usage=usage(9, 1)), DONE).settle()
    assert play.charge.deployment == "b2"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(500, b"{}", BackendFailed, id="500"),
        pytest.param(503, b'{"error":{"message":"Loading model"}}', Unavailable, id="503"),
        pytest.param(400, b'{"error":{"message":"bad n","code":400}}', InvalidRequest, id="nested 400"),
        pytest.param(400, b'{"object":"error","message":"bad n","code":400}', InvalidRequest, id="flat 400"),
        pytest.param(401, b'{"error":{"message":"wrong key s3cr3t"}}', BackendFailed, id="our credential is wrong"),
        pytest.param(200, b"{}", BackendFailed, id="no stream though one was asked for"),
    ],
)
def test_a_refusing_backend_costs_nothing(status: int, body: bytes, kind: type[TollgateError]) -> None:
    play = Play(chat_request(stream=True)).open(status, b"application/json").say(body)
    play.call.upstream_end()
    play.take()
    assert play.of(Release)
    assert not play.of(Settle)
    (said,) = play.of(SendError)
    assert isinstance(said.error, kind)
    assert "s3cr3t" not in said.error.message


def test_a_refused_hold_reaches_no_backend() -> None:
    play = Play(chat_request())
    play.call.hold_answered(RefusedHold(HoldRefusal.BALANCE, available=Units(5)))
    play.take()
    assert isinstance(play.of(SendError)[0].error, InsufficientBalance)
    assert not play.of(Connect)
    assert not play.of(Release)


def test_a_prompt_is_counted_when_money_is_short() -> None:
    play = Play(chat_request(input_bound=100_000), tokenizer="/some/tokenizer.json")
    first = play.call.hold_request
    play.call.hold_answered(RefusedHold(HoldRefusal.BALANCE, available=Units(5)))
    play.take()
    assert play.of(CountPrompt)
    play.call.prompt_counted(40)
    play.take()
    again = play.of(PlaceHold)[-1].request
    assert again.origin == first.origin
    assert again.input_bound < first.input_bound
    assert again.amount < first.amount
    play.call.hold_answered(RefusedHold(HoldRefusal.BALANCE, available=Units(5)))
    play.take()
    assert isinstance(play.of(SendError)[0].error, InsufficientBalance)
    assert len(play.of(CountPrompt)) == 1


def test_an_audited_call_is_counted_and_charged_by_the_backend() -> None:
    play = Play(chat_request(stream=True), tokenizer="/some/tokenizer.json", is_audited=True).open()
    play.say(delta("x", finish="stop"), event(choices=[], usage=usage(10, 9)), DONE).settle()
    assert (play.charge.output_tokens, play.charge.usage_source) == (9, UsageSource.BACKEND)
    assert play.charge.counted == {"input": 7, "output": 5, "exact": True}


def test_a_hold_without_an_answer_is_given_back() -> None:
    play = Play(chat_request())
    play.call.hold_failed(Unavailable("Redis does not answer."))
    play.take()
    assert play.of(Release)
    assert isinstance(play.of(SendError)[0].error, Unavailable)


def test_drained_in_mid_stream() -> None:
    play = Play(chat_request(stream=True)).open()
    play.say(delta("x", timings={"cache_n": 0, "prompt_n": 8, "predicted_n": 1}))
    play.call.drain(Unavailable("restart"))
    play.take()
    play.settle()
    assert play.charge.ending is Ending.DRAINED
    assert b"[DONE]" not in play.body


# Faults, ours and others' ---------------------------------------------------------------------------------------------


def test_a_call_that_is_turned_away_holds_nothing() -> None:
    call = make_call(chat_request())
    call.turned_away(Unavailable("busy"))
    [said] = call.take()
    assert isinstance(said, SendError)
    assert said.answer is None
    assert call.phase is Phase.ENDED
    assert call.checkpoint() is None


def test_a_call_that_is_turned_away_when_its_client_has_left_says_nothing() -> None:
    call = make_call(chat_request())
    call.client_gone()
    call.turned_away(Unavailable("busy"))
    assert call.take() == []
    assert call.phase is Phase.ENDED


def test_a_call_that_has_begun_is_not_turned_away() -> None:
    for play in (Play(chat_request()), Play(chat_request()).hold(), Play(chat_request()).open()):
        before, phase = len(play.said), play.call.phase
        play.call.turned_away(Unavailable("busy"))
        play.take()
        assert (len(play.said), play.call.phase) == (before, phase)


def test_no_backend_has_room_any_more_when_the_hold_is_there() -> None:
    play = Play(chat_request(), attempts=0).hold()
    assert [type(command) for command in play.said] == [PlaceHold, Release, SendError]
    assert isinstance(play.of(SendError)[0].error, Unavailable)


def test_no_backend_is_left_for_another_attempt() -> None:
    play = Play(chat_request(), deployment(), deployment(number=2), attempts=1).hold()
    play.call.upstream_failed(BackendTimedOut("slow"))
    play.take()
    assert [type(command) for command in play.said] == [PlaceHold, Connect, CloseUpstream, Release, SendError]
    assert isinstance(play.of(SendError)[0].error, BackendTimedOut)


def new(**options: Any) -> Play:
    play = Play.__new__(Play)
    play.call, play.said = make_call(chat_request(**options)), []
    return play


def holding(**options: Any) -> Play:
    return Play(chat_request(**options))


def connecting(**options: Any) -> Play:
    return holding(**options).hold()


def sent(**options: Any) -> Play:
    play = connecting(**options)
    play.call.upstream_sent()
    return play


def answering(**options: Any) -> Play:
    return sent(**options).answer().say(delta("x", timings={"cache_n": 0, "prompt_n": 8, "predicted_n": 1}))


def refused(**options: Any) -> Play:
    return connecting(**options).answer(500, b"application/json")


def counting(**options: Any) -> Play:
    play = Play(chat_request(**options), deployment(OLLAMA)).open().say(delta("x", finish="stop"), DONE)
    assert play.call.phase is Phase.COUNTING
    return play


def settling(**options: Any) -> Play:
    play = answering(**options).say(delta("y", finish="stop"), DONE)
    assert play.call.phase is Phase.SETTLING
    return play


def ended(**options: Any) -> Play:
    return settling(**options).settle()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("phase", "money"),
    [
        pytest.param(new, [], id="new"),
        pytest.param(holding, [Release], id="holding"),
        pytest.param(connecting, [Release], id="connecting"),
        pytest.param(sent, [Settle], id="sent"),
        pytest.param(refused, [Release], id="refused by the backend"),
        pytest.param(answering, [Settle], id="answering"),
        pytest.param(counting, [Settle], id="counting"),
        pytest.param(settling, [Settle], id="settling"),
        pytest.param(ended, [Settle], id="ended"),
    ],
)
def test_a_fault_of_ours_in_each_phase(phase: Any, money: list[type[Command]], is_stream: bool) -> None:
    play: Play = phase(stream=is_stream)
    was_over = play.call.phase is Phase.ENDED
    play.call.broke(TollgateError("a bug"))
    play.take()
    # What was under way comes late.
    play.call.hold_answered(Hold(play.call.hold_request))
    play.call.upstream_head(200, SSE)
    play.call.upstream_bytes(delta("late") + DONE)
    play.call.upstream_end()
    play.take()
    play.settle()
    assert play.call.phase is Phase.ENDED
    assert [type(command) for command in play.said if isinstance(command, Settle | Release)] == money
    ends = [command for command in play.said if isinstance(command, SendError | SendBody) and is_last(command)]
    assert len(ends) == 1, "the client is told once"
    if not was_over:
        said = ends[0].error.message.encode() if isinstance(ends[0], SendError) else ends[0].data
        assert b"a bug" in said
        assert b"[DONE]" not in play.body
    if phase in (connecting, sent, refused, answering):
        assert play.of(CloseUpstream)


def is_last(command: SendError | SendBody) -> bool:
    return isinstance(command, SendError) or command.last


def test_a_fault_in_the_last_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    play = settling()
    monkeypatch.setattr("gateway.calls.answers.aggregate.Aggregate.answer", broken)
    with pytest.raises(RuntimeError):
        play.call.settled()
    play.call.broke(TollgateError("a bug"))
    play.take()
    assert play.call.phase is Phase.ENDED
    assert len(play.of(Settle)) == 1
    assert len(play.of(SendError)) == 1


def test_a_call_that_is_drained_while_its_hold_is_placed_is_not_sent() -> None:
    play = holding()
    play.call.drain(Unavailable("restart"))
    play.take()
    play.hold()
    assert [type(command) for command in play.said] == [PlaceHold, Release, SendError]
    assert play.of(SendError)[0].error.message == "restart"


def test_a_request_that_no_backend_saw_costs_nothing() -> None:
    play = sent()
    # The idle connection had been given up by the backend; while a new one is opened, the client leaves.
    play.call.upstream_unsent()
    checkpoint = play.call.checkpoint()
    assert checkpoint is not None
    assert not checkpoint.accepted
    play.call.client_gone()
    play.take()
    assert play.of(Release)
    assert not play.of(Settle)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(event(error={"message": "bad n", "code": 400, "type": "BadRequestError"}), id="nested"),
        pytest.param(event(object="error", message="bad n", code=400), id="flat"),
        pytest.param(event(error={"message": "bad n", "code": 422}), id="422"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_refusal_that_comes_as_an_event_is_the_clients_own(error: bytes, is_stream: bool) -> None:
    # SGLang answers 200 before it looks at the request.
    play = Play(chat_request(stream=is_stream), deployment(), deployment(number=2)).open().say(error)
    assert len(play.of(Connect)) == 1, "another backend would refuse it, too"
    assert play.of(Release)
    [said] = play.of(SendError)
    assert isinstance(said.error, InvalidRequest)
    assert said.error.message == "bad n"


# Numbers that a backend should not send ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reported", "flag"),
    [
        pytest.param(usage(-5, 2), "usage_invalid", id="negative"),
        pytest.param(usage("ten", 2), "usage_invalid", id="text"),
        pytest.param(usage(1.5, 2), "usage_invalid", id="a fraction"),
        pytest.param("none", "usage_invalid", id="no object"),
        pytest.param(usage(10, 10**8), "above_bound", id="absurd"),
        pytest.param(usage(10**12, 1), "usage_invalid", id="more than an integer column holds"),
        pytest.param(usage(10, 2, 50), "usage_invalid", id="more cached than there is"),
    ],
)
def test_wrong_usage_is_bounded_and_flagged(reported: Any, flag: str) -> None:
    play = Play(chat_request(stream=True), deployment(VLLM)).open()
    play.say(delta("x", finish="stop"), event(choices=[], usage=reported), DONE).settle()
    assert flag in play.charge.flags
    assert 0 <= play.charge.amount <= play.charge.hold


def test_the_lower_of_two_counts() -> None:
    play = Play(chat_request(stream=True), billed_count=BilledCount.LOWER).open()
    play.say(delta("x", finish="stop"), event(choices=[], usage=usage(10, 9)), DONE).settle()
    assert (play.charge.input_tokens, play.charge.output_tokens) == (7, 5)
    assert play.charge.usage_source is UsageSource.TIKTOKEN
    assert play.charge.counted == {"input": 7, "output": 5, "exact": True}


# Every order of events -----------------------------------------------------------------------------------------------

HAPPENINGS = {
    "begin": lambda call: call.begin(),
    "turn away": lambda call: call.turned_away(Unavailable("busy")),
    "broke": lambda call: call.broke(TollgateError("a bug")),
    "unsent": lambda call: call.upstream_unsent(),
    "hold": lambda call: call.hold_answered(Hold(call.hold_request)),
    "refuse": lambda call: call.hold_answered(RefusedHold(HoldRefusal.RATE, "key:x:requests", 10)),
    "lost": lambda call: call.hold_failed(Unavailable("away")),
    "sent": lambda call: call.upstream_sent(),
    "head": lambda call: call.upstream_head(200, SSE),
    "bad head": lambda call: call.upstream_head(500, b"application/json"),
    "text": lambda call: call.upstream_bytes(delta("x")),
    "finish": lambda call: call.upstream_bytes(delta("x", finish="stop") + event(choices=[], usage=usage(9, 2))),
    "half": lambda call: call.upstream_bytes(b'data: {"choi'),
    "error": lambda call: call.upstream_bytes(event(error={"message": "no"})),
    "done": lambda call: call.upstream_bytes(DONE),
    "end": lambda call: call.upstream_end(),
    "broken": lambda call: call.upstream_failed(BackendTimedOut("slow")),
    "gone": lambda call: call.client_gone(),
    "drain": lambda call: call.drain(Unavailable("restart")),
    "counted": lambda call: call.counted(OwnCount(7, 5, True, True)),
    "settled": lambda call: call.settled(),
}  # fmt: skip
UPSTREAM = ["sent", "head", "bad head", "text", "finish", "half", "error", "done", "end", "broken"]


@settings(max_examples=800)
@given(
    stream=st.booleans(),
    attempts=st.integers(0, 3),
    first=st.sampled_from(["hold", "hold", "hold", "refuse", "lost", "turn away"]),
    early=st.sampled_from([None, None, None, "gone", "drain", "broke"]),
    happenings=st.lists(st.sampled_from([*UPSTREAM, "gone", "drain", "broke", "turn away", "unsent"]), max_size=12),
    last=st.sampled_from(["gone", "drain", "broke"]),
)
def test_promises_hold_in_every_order(
    stream: bool, attempts: int, first: str, early: str | None, happenings: list[str], last: str
) -> None:
    deployments = tuple(deployment(number=number) for number in (1, 2, 3))
    call = make_call(chat_request(stream=stream), deployments, attempts=attempts)
    said: list[Command] = []

    def do(name: str) -> None:
        HAPPENINGS[name](call)
        said.extend(call.take())

    if first != "turn away":
        do("begin")
    if early is not None:
        do(early)
    for name in (first, *happenings, last):
        do(name)
    if call.phase is Phase.COUNTING:
        do("counted")
    if call.phase is Phase.SETTLING:
        assert not any(isinstance(command, SendBody) and command.last for command in said), "last byte before settle"
        do("settled")
    assert call.phase is Phase.ENDED
    check(said, "lost" if early == "broke" and first != "turn away" else first)
    told = sum(isinstance(command, SendError | SendBody) and is_last(command) for command in said)
    assert told == 1 or (told == 0 and call.is_client_gone), "who is there is told how it ended, once"
    for name in (*HAPPENINGS,):
        if name not in ("begin", "counted"):
            do(name)
    check(said, "lost" if early == "broke" and first != "turn away" else first)


def check(said: list[Command], first: str) -> None:
    kinds = [type(command) for command in said]
    if first == "turn away":
        assert PlaceHold not in kinds
    else:
        assert kinds[0] is PlaceHold
    ends = kinds.count(Settle) + kinds.count(Release)
    assert ends == (0 if first in ("refuse", "turn away") else 1), "a hold ends exactly once"
    if first != "hold":
        assert Connect not in kinds, "no byte to a backend without a hold"
    assert kinds.count(SendHead) + kinds.count(SendError) <= 1
    lasts = [command for command in said if isinstance(command, SendBody) and command.last]
    assert len(lasts) <= 1
    for settle in (command for command in said if isinstance(command, Settle)):
        assert 0 <= settle.charge.amount <= settle.charge.hold


def test_the_error_of_a_waiting_call_comes_after_its_release() -> None:
    play = Play(chat_request()).hold()
    play.call.upstream_failed(BackendFailed("no connection"))
    play.take()
    kinds = [type(command) for command in play.said]
    assert kinds.index(Release) < kinds.index(SendError)


def test_a_stream_of_embeddings_is_no_answer() -> None:
    request = CallRequest(Endpoint.EMBEDDINGS, "m", {"input": "x"}, input_bound=20)
    play = Play(request, deployment(VLLM)).open()
    play.call.upstream_bytes(delta("x") + DONE)
    play.call.upstream_end()
    said = play.take()
    assert any(isinstance(command, Release) for command in said)
    assert isinstance(said[-1], SendError)
    assert isinstance(said[-1].error, BackendFailed)
