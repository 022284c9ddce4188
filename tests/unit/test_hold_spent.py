"""A backend that goes on beyond what the hold covers: the answer ends as at a limit of length, and costs the hold's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.calls.commands import CloseUpstream, Connect, SendBody, SendError, SendHead, Settle
from gateway.calls.machine import Phase
from gateway.calls.metering import EXTRA_EVENTS, OwnCount
from models.call import CallRequest, Endpoint
from models.catalog import BackendKind
from models.usage import Ending, UsageSource
from tests.unit.samples import chat_request, deployment
from tests.unit.test_machine import DONE, Play, delta, event, usage

VLLM, SGLANG, LLAMA = BackendKind.VLLM, BackendKind.SGLANG, BackendKind.LLAMACPP
OLLAMA, TGI, OPENAI = BackendKind.OLLAMA, BackendKind.TGI, BackendKind.OPENAI
BOUND = 100
"""Output tokens that the hold of `chat_request` covers."""


def progress(kind: BackendKind, tokens: int, index: int = 0, text: str = "x", finish: str | None = None) -> bytes:
    """An event that tells how many tokens a choice has, in the way of an engine that tells it."""
    if kind is LLAMA:
        return delta(text, index, finish, timings={"cache_n": 0, "prompt_n": 9, "predicted_n": tokens})
    return delta(text, index, finish, usage=usage(9, tokens))


def begun(kind: BackendKind, **changes: Any) -> Play:
    return Play(chat_request(**changes), deployment(kind, known_as="internal/x")).open()


def spoken(play: Play) -> list[dict[str, Any]]:
    """The events that the client got, [DONE] apart."""
    return [json.loads(line[6:]) for line in play.body.split(b"\n\n") if line[:6] == b"data: " and line != DONE.strip()]


def finishes(play: Play) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for each in spoken(play):
        for choice in each["choices"]:
            if choice["finish_reason"] is not None:
                found.setdefault(choice["index"], []).append(choice["finish_reason"])
    return found


def spent(play: Play, output_tokens: int = BOUND) -> None:
    """The call has ended so: the backend closed, the bound charged, nothing above the hold."""
    assert isinstance(play.said[-1], CloseUpstream | Settle) or play.call.phase is Phase.COUNTING
    assert len(play.of(CloseUpstream)) == 1
    assert play.call.ending is Ending.HOLD_SPENT
    said = len(play.of(SendBody))
    play.say(delta("more"), DONE)
    play.call.upstream_end()
    assert play.take() == []
    assert len(play.of(SendBody)) == said, "what comes after the bound reaches nobody"
    assert not any(body.last for body in play.of(SendBody))
    play.settle()
    assert play.call.phase is Phase.ENDED
    assert play.charge.ending is Ending.HOLD_SPENT
    assert play.charge.output_tokens == output_tokens
    assert "above_bound" in play.charge.flags
    assert play.charge.amount == play.charge.input_tokens * 150 + output_tokens * 600 <= play.charge.hold


@pytest.mark.parametrize("kind", [VLLM, SGLANG, LLAMA])
@pytest.mark.parametrize("pieces", ["one by one", "all at once"])
def test_a_stream_ends_at_the_bound_by_the_backends_own_word(kind: BackendKind, pieces: str) -> None:
    play = begun(kind, stream=True)
    events = [progress(kind, number) for number in range(1, BOUND + 2)]
    play.say(*(events if pieces == "one by one" else [b"".join(events)]))
    spent(play)
    assert play.body.endswith(DONE)
    *texts, last = spoken(play)
    assert sum(len(each["choices"][0]["delta"]["content"]) for each in texts) == BOUND
    assert last["choices"] == [{"index": 0, "finish_reason": "length", "logprobs": None, "delta": {}}]
    assert (last["id"], last["model"]) == ("c1", "m")
    assert play.of(SendBody)[-1].last
    assert play.charge.usage_source is UsageSource.BACKEND_PARTIAL


@pytest.mark.parametrize("kind", [VLLM, SGLANG, LLAMA])
def test_the_bound_itself_is_not_beyond_it(kind: BackendKind) -> None:
    play = begun(kind, stream=True).say(progress(kind, BOUND), progress(kind, BOUND, text="", finish="length"))
    play.say(event(choices=[], usage=usage(9, BOUND)), DONE).settle()
    assert play.charge.ending is Ending.FINISHED
    assert play.charge.output_tokens == BOUND
    assert not play.of(CloseUpstream)


@pytest.mark.parametrize("kind", [OLLAMA, TGI])
def test_events_bound_the_tokens_of_an_engine_that_tells_none(kind: BackendKind) -> None:
    play = begun(kind, stream=True).say(*[delta("x")] * (BOUND + EXTRA_EVENTS))
    assert play.call.phase is Phase.ANSWERING
    # Events without text may be many, and are not counted.
    play.say(*[delta("")] * BOUND, b": ping\n\n" * BOUND)
    assert play.call.phase is Phase.ANSWERING
    play.say(delta("x"))
    # Ours is the only count there is, and it is bounded as any other.
    play.call.counted(OwnCount(7, BOUND + EXTRA_EVENTS, True, True))
    play.take()
    spent(play)
    assert finishes(play) == {0: ["length"]}
    assert play.body.endswith(DONE)


@pytest.mark.parametrize("kind", [OLLAMA, TGI])
def test_a_client_is_told_our_count_where_there_is_no_other(kind: BackendKind) -> None:
    for is_stream in (False, True):
        play = begun(kind, stream=is_stream, include_usage=is_stream).say(*[delta("x")] * (BOUND + EXTRA_EVENTS + 1))
        play.call.counted(OwnCount(7, 80, True, True))
        play.take()
        play.settle()
        told = spoken(play)[-1] if is_stream else json.loads(play.body)
        assert told["usage"]["completion_tokens"] == play.charge.output_tokens == 80
        assert told["usage"]["prompt_tokens"] == play.charge.input_tokens == 7


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_openai_backend_is_taken_by_its_word(is_stream: bool) -> None:
    play = begun(OPENAI, stream=is_stream).say(*[delta("x")] * (10 * (BOUND + EXTRA_EVENTS)))
    play.say(delta("x", usage=usage(9, 5 * BOUND)))
    assert play.call.phase is Phase.ANSWERING
    play.say(delta("", finish="stop"), event(choices=[], usage=usage(9, 12)), DONE).settle()
    assert play.charge.ending is Ending.FINISHED
    assert play.charge.output_tokens == 12


@pytest.mark.parametrize("kind", [VLLM, SGLANG, LLAMA])
def test_an_answer_without_stream_ends_at_the_bound(kind: BackendKind) -> None:
    play = begun(kind).say(*(progress(kind, number) for number in range(1, BOUND + 2)))
    spent(play)
    answer = json.loads(play.body)
    assert answer["choices"][0]["message"]["content"] == "x" * BOUND
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == "m"
    assert answer["usage"]["completion_tokens"] == play.charge.output_tokens, "the client is told what it pays"
    assert len(play.of(SendHead)) == 1
    assert not play.of(SendError)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("kind", [VLLM, LLAMA])
def test_choices_that_had_finished_stay_as_they_were(kind: BackendKind, is_stream: bool) -> None:
    play = begun(kind, stream=is_stream, n=3)
    play.say(progress(kind, 10, 0), progress(kind, 11, 0, "", "stop"), progress(kind, 150, 1))
    play.say(progress(kind, 139, 2), progress(kind, 140, 2))
    spent(play, 3 * BOUND)
    reasons = {0: ["stop"], 1: ["length"], 2: ["length"]}
    if is_stream:
        assert finishes(play) == reasons
        return
    choices = json.loads(play.body)["choices"]
    assert {choice["index"]: [choice["finish_reason"]] for choice in choices} == reasons


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("kind", [VLLM, LLAMA])
def test_an_event_beyond_the_bound_may_be_the_last_of_its_choice(kind: BackendKind, is_stream: bool) -> None:
    # Its text is not passed on, so the end that the client is told of must be ours.
    play = begun(kind, stream=is_stream).say(progress(kind, 40), progress(kind, BOUND + 1, 0, "beyond", "stop"))
    spent(play)
    assert b"beyond" not in play.body
    if is_stream:
        assert finishes(play) == {0: ["length"]}
    else:
        assert json.loads(play.body)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("kind", [VLLM, SGLANG, LLAMA])
def test_usage_is_told_after_the_end_of_the_choices(kind: BackendKind) -> None:
    play = begun(kind, stream=True, include_usage=True).say(progress(kind, 40), progress(kind, BOUND + 20))
    spent(play)
    *_, end, told = spoken(play)
    assert end["choices"][0]["finish_reason"] == "length"
    assert told["choices"] == []
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (9, BOUND)
    assert (told["id"], told["model"]) == ("c1", "m")
    assert play.body.endswith(DONE)


def test_usage_is_not_told_to_who_did_not_ask() -> None:
    play = begun(VLLM, stream=True).say(progress(VLLM, 40), progress(VLLM, BOUND + 1))
    spent(play)
    assert b'"usage"' not in play.body


def test_a_completion_ends_with_text() -> None:
    request = CallRequest(
        endpoint=Endpoint.COMPLETIONS, model="m", body={"prompt": ["a", "b"]}, prompts=2, max_output_tokens=10,
        input_bound=60, stream=True,
    )  # fmt: skip
    play = Play(request, deployment(VLLM)).open()
    for index in (0, 1):
        play.say(event(id="c1", choices=[{"index": index, "text": "x", "finish_reason": None}], usage=usage(9, 5)))
    play.say(event(id="c1", choices=[{"index": 1, "text": "x", "finish_reason": None}], usage=usage(9, 16)))
    spent(play, 20)
    assert spoken(play)[-1]["choices"] == [
        {"index": index, "finish_reason": "length", "logprobs": None, "text": ""} for index in (0, 1)
    ]


def test_the_first_event_may_be_beyond_the_bound() -> None:
    for is_stream in (False, True):
        play = begun(VLLM, stream=is_stream).say(progress(VLLM, BOUND + 1))
        spent(play)
        assert not play.of(SendError)
        assert len(play.of(SendHead)) == 1
        assert len(play.of(Connect)) == 1, "it is no failure: nobody is asked again"


def test_a_client_that_has_left_is_told_nothing() -> None:
    play = begun(VLLM, stream=True).say(progress(VLLM, 40), progress(VLLM, BOUND + 1))
    said = len(play.of(SendBody))
    play.call.client_gone()
    play.take()
    play.settle()
    assert len(play.of(SendBody)) == said
    assert (play.charge.ending, play.charge.output_tokens) == (Ending.HOLD_SPENT, BOUND)


def test_a_smaller_hold_is_spent_sooner() -> None:
    play = begun(VLLM, stream=True, max_output_tokens=3).say(*(progress(VLLM, number) for number in range(1, 9)))
    spent(play, 3)


def test_numbers_that_go_back_do_not_hide_the_bound() -> None:
    play = begun(VLLM, stream=True).say(progress(VLLM, 90), progress(VLLM, 5), progress(VLLM, BOUND + 1))
    spent(play)
    assert "usage_decreased" in play.charge.flags
