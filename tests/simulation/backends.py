"""Model servers that misbehave: each answer is a row of steps, and beside each what a reader of it may believe.

The facts beside the bytes are written by whoever makes up the answer, not read from the bytes, so that the auditor
never depends on the code that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Final

from models.call import CallRequest, Endpoint
from models.catalog import BackendKind

SSE: Final = b"text/event-stream; charset=utf-8"
JSON: Final = b"application/json"
DONE: Final = b"data: [DONE]\n\n"
LARGEST_COUNT: Final = 2**31 - 1
EXTRA_EVENTS: Final = 64
"""How many events without a token a gateway grants before it takes them for tokens."""


@dataclass(frozen=True, slots=True)
class Report:
    """A usage report as it stands in the bytes. `is_final` where it is for the whole answer (or choice)."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    choice: int = 0
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice, so many words long; a word is a token to our own tokenizer."""

    choice: int
    words: int


@dataclass(frozen=True, slots=True)
class Finish:
    """A choice says that it is complete."""

    choice: int


Fact = Report | Piece | Finish


class What(StrEnum):
    """Kinds of steps."""

    HEAD = "head"
    BYTES = "bytes"
    END = "end of body"
    BREAK = "connection broken"
    SILENCE = "silence until the time-out"


@dataclass(slots=True)
class Step:
    """One thing that the backend does, `seconds` after the one before."""

    what: What
    seconds: float
    data: bytes = b""
    status: int = 200
    facts: tuple[tuple[Fact, ...], ...] = field(default=())
    """What a reader may believe of each event that ends in these bytes, in their order."""
    is_unsent: bool = False
    """The connection had been given up: no server has seen the request."""


class Vice(StrEnum):
    """What a bad answer does."""

    REFUSES = "no connection"
    STALE = "an idle connection given up"
    DIES_EARLY = "broken before the head"
    SILENT_EARLY = "silent before the head"
    STATUS_500 = "status 500"
    STATUS_503 = "status 503"
    STATUS_400 = "status 400"
    NOT_A_STREAM = "an answer that is none"
    EMPTY = "nothing generated"
    ERROR_EVENT = "an error event in mid-stream"
    TRUNCATED = "body ends in mid-stream"
    BROKEN = "connection breaks in mid-stream"
    SILENT = "silent in mid-stream"
    NO_DONE = "no [DONE]"
    MALFORMED = "an event that is no JSON"
    NO_USAGE = "no final usage"
    NEGATIVE = "negative usage"
    TEXT = "usage as text"
    HUGE = "usage beyond an integer"
    ABSURD = "usage beyond the hold"
    ZERO = "a usage of zero"
    TWICE = "two usages"
    ENDLESS = "generates beyond max_tokens"
    DECREASING = "usage that decreases"
    CACHED_ABOVE = "more cached than there is"


def answer(random: Random, kind: BackendKind, request: CallRequest, vice: Vice | None, output_bound: int) -> list[Step]:
    """What a backend does with this request, from its first step to the last; it was told to stop at `output_bound`."""
    if request.endpoint is Endpoint.EMBEDDINGS:
        steps = _embedding(random, vice)
    else:
        steps = _Stream(random, kind, request, vice, output_bound).steps()
    pace = 0.01 if vice is Vice.ENDLESS else 0.3
    for step in steps:
        step.seconds = random.random() * (0.8 if step.what is What.HEAD else pace)
    if steps[-1].what is not What.SILENCE and random.random() < 0.03:
        # One that takes so long that checkpoints, sweepers and disasters fall into it.
        random.choice(steps).seconds += random.random() * 40
    return steps


def _start(random: Random, vice: Vice | None) -> Iterator[Step]:
    status = {Vice.STATUS_500: 500, Vice.STATUS_503: 503, Vice.STATUS_400: 400}.get(vice) if vice else None
    if vice is Vice.STALE:
        yield Step(What.BREAK, 0, is_unsent=True)
    elif vice is Vice.DIES_EARLY:
        yield Step(What.BREAK, 0)
    elif vice is Vice.SILENT_EARLY:
        yield Step(What.SILENCE, 0)
    elif status is not None:
        yield Step(What.HEAD, 0, JSON, status)
        yield Step(What.BYTES, 0, b'{"error":{"message":"no"}}')
        yield Step(What.END, 0)
    elif vice is Vice.NOT_A_STREAM:
        yield Step(What.HEAD, 0, JSON)
        yield Step(What.BYTES, 0, b"{}" if random.random() < 0.5 else b'{"error":{"message":"no"}}')
        yield Step(What.END, 0)


def _embedding(random: Random, vice: Vice | None) -> list[Step]:
    early = list(_start(random, vice))
    if early:
        return early
    prompt = random.randrange(1, 40)
    body = b'{"object":"list","data":[],"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (prompt, prompt)
    facts: tuple[tuple[Fact, ...], ...] = ((Report(prompt, 0),),)
    if vice is Vice.NO_USAGE:
        body, facts = b'{"object":"list","data":[]}', ()
    # A body that is no stream is read when it is complete.
    return [Step(What.HEAD, 0, JSON), Step(What.BYTES, 0, body), Step(What.END, 0, facts=facts)]


class _Stream:
    """The events of one streamed answer."""

    def __init__(
        self, random: Random, kind: BackendKind, request: CallRequest, vice: Vice | None, output_bound: int
    ) -> None:
        self.random = random
        self.kind = kind
        self.choices = request.choices
        self.vice = vice
        self.output_bound = output_bound
        self.prompt = random.randrange(1, 60)
        self.cached = random.choice((0, 0, random.randrange(self.prompt + 1)))
        self.made = [0] * self.choices
        self.events: list[tuple[bytes, tuple[Fact, ...]]] = []

    def steps(self) -> list[Step]:
        early = list(_start(self.random, self.vice))
        if early:
            return early
        last = self._speak_on() if self.vice is Vice.ENDLESS else self._speak()
        return [Step(What.HEAD, 0, SSE), *self._packed(), *last]

    def _speak_on(self) -> list[Step]:
        """Word after word, with no regard to what was asked for; whoever believes every word stops it in time."""
        for number in range(self.output_bound + EXTRA_EVENTS + 20):
            self._piece(number % self.choices, words=1)
        return [Step(What.SILENCE, 0)]

    def _speak(self) -> list[Step]:
        """All events; the steps that end the answer."""
        random, vice = self.random, self.vice
        pieces = 0 if vice is Vice.EMPTY else random.randrange(1, 6)
        cut = random.randrange(pieces + 1)
        for number in range(pieces):
            if number == cut and vice in _CUTS:
                if vice is Vice.ERROR_EVENT:
                    self.events.append((b'data: {"error":{"message":"out of memory","code":500}}\n\n', ()))
                return [Step(_CUTS[vice], 0)]
            if vice is Vice.MALFORMED and number == cut:
                self.events.append((b"data: {not json\n\n", ()))
            if random.random() < 0.1:
                self.events.append((b": ping\n\n", ()))
            for choice in range(self.choices):
                self._piece(choice, decreasing=vice is Vice.DECREASING and number == pieces - 1)
        for choice in range(self.choices):
            self.events.append((_chunk(choice, b"", finish=True), (Finish(choice),)))
        self._usage()
        if vice is not Vice.NO_DONE:
            self.events.append((DONE, ()))
        return [Step(What.END, 0)]

    def _piece(self, choice: int, *, decreasing: bool = False, words: int = 0) -> None:
        if not words:
            # It stops where it was asked to.
            left = self.output_bound // self.choices - self.made[choice]
            words = min(left, self.random.randrange(1, 12))
        if not words:
            return
        self.made[choice] += words
        told = self.made[choice] // 2 if decreasing else self.made[choice]
        facts: tuple[Fact, ...] = (Piece(choice, words),)
        more = b""
        if self.kind in (BackendKind.VLLM, BackendKind.SGLANG):
            report = Report(self.prompt, told, self.cached, choice=choice, is_final=False)
            more, facts = b',"usage":' + _usage(report), (*facts, report)
        elif self.kind is BackendKind.LLAMACPP:
            more = b',"timings":{"cache_n":%d,"prompt_n":%d,"predicted_n":%d}' % (
                self.cached, self.prompt - self.cached, told,
            )  # fmt: skip
            facts = (*facts, Report(self.prompt, told, self.cached, choice=choice, is_final=False))
        elif self.kind is BackendKind.OLLAMA:
            more = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
        self.events.append((_chunk(choice, b"word " * words, more=more), facts))

    def _usage(self) -> None:
        if self.vice is Vice.NO_USAGE:
            return
        if self.kind is BackendKind.LLAMACPP:
            # One report a choice, without saying of which: in their order, as they finished.
            for choice in range(self.choices):
                self._final(self._true(self.made[choice], choice))
            if self.vice is Vice.TWICE:
                self.events.append(self.events[-1])
            return
        if self.vice is Vice.TWICE:
            self._final(self._true(sum(self.made) // 2, 0))
        self._final(self._true(sum(self.made), 0))

    def _true(self, completion: int, choice: int) -> Report:
        reasoning = self.random.choice((0, 0, completion // 2))
        return Report(self.prompt, completion, self.cached, reasoning, choice)

    def _final(self, report: Report) -> None:
        spoiled = _SPOILED.get(self.vice) if self.vice is not None else None
        raw, facts = spoiled(report) if spoiled is not None else (_usage(report), (report,))
        self.events.append((b'data: {"id":"c","choices":[],"usage":' + raw + b"}\n\n", facts))

    def _packed(self) -> Iterator[Step]:
        """The events in packets: together, or cut in the middle; facts come with the last byte of their event."""
        random = self.random
        data, facts = b"", ()  # type: tuple[bytes, tuple[tuple[Fact, ...], ...]]
        for event, told in self.events:
            if random.random() < 0.1:
                cut = random.randrange(len(event))
                yield Step(What.BYTES, 0, data + event[:cut], facts=facts)
                data, facts = event[cut:], (told,)
            else:
                data, facts = data + event, (*facts, told)
            if random.random() < 0.6:
                yield Step(What.BYTES, 0, data, facts=facts)
                data, facts = b"", ()
        if data:
            yield Step(What.BYTES, 0, data, facts=facts)


_CUTS: Final = {
    Vice.ERROR_EVENT: What.END,
    Vice.TRUNCATED: What.END,
    Vice.BROKEN: What.BREAK,
    Vice.SILENT: What.SILENCE,
}


def _chunk(choice: int, text: bytes, *, finish: bool = False, more: bytes = b"") -> bytes:
    reason = b'"stop"' if finish else b"null"
    return b'data: {"id":"c","choices":[{"index":%d,"delta":{"content":"%s"},"finish_reason":%s}]%s}\n\n' % (
        choice, text, reason, more,
    )  # fmt: skip


def _usage(report: Report) -> bytes:
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":0,"prompt_tokens_details":{"cached_tokens":%d},'
        b'"completion_tokens_details":{"reasoning_tokens":%d}}'
        % (report.prompt, report.completion, report.cached, report.reasoning)
    )


def _negative(report: Report) -> tuple[bytes, tuple[Fact, ...]]:
    return _usage(Report(-report.prompt, report.completion)), ()


def _text(report: Report) -> tuple[bytes, tuple[Fact, ...]]:
    return b'{"prompt_tokens":"many","completion_tokens":%d}' % report.completion, ()


def _huge(_report: Report) -> tuple[bytes, tuple[Fact, ...]]:
    return _usage(Report(LARGEST_COUNT + 1, 1)), ()


def _absurd(report: Report) -> tuple[bytes, tuple[Fact, ...]]:
    absurd = Report(LARGEST_COUNT, LARGEST_COUNT, choice=report.choice)
    return _usage(absurd), (absurd,)


def _zero(report: Report) -> tuple[bytes, tuple[Fact, ...]]:
    zero = Report(0, 0, choice=report.choice)
    return _usage(zero), (zero,)


def _cached_above(report: Report) -> tuple[bytes, tuple[Fact, ...]]:
    wrong = Report(report.prompt, report.completion, report.prompt + 1, choice=report.choice)
    # What is impossible is not believed, and so the cheaper price is not given.
    return _usage(wrong), (Report(report.prompt, report.completion, choice=report.choice),)


_SPOILED: Final[dict[Vice, Callable[[Report], tuple[bytes, tuple[Fact, ...]]]]] = {
    Vice.NEGATIVE: _negative,
    Vice.TEXT: _text,
    Vice.HUGE: _huge,
    Vice.ABSURD: _absurd,
    Vice.ZERO: _zero,
    Vice.CACHED_ABOVE: _cached_above,
}
