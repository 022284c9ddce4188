"""The meter of one call: reads the usage numbers of a backend as they pass, and says at the end what they are worth.

Reported numbers are untrusted input. They are read by the rule of the backend's dialect, bounded by what the call could
use at most, and replaced by our own count where they are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from billing.charges import Measured
from gateway.backends.dialect import Dialect
from gateway.backends.events import Chunk, read_any, read_choice, text_of
from models.call import CallRequest
from models.usage import BilledCount, TokenUsage, UsageSource
from models.values import value

BYTES_PER_TOKEN = 4
EXTRA_EVENTS = 64
"""Events without a token of their own that an answer may have: the rest of a tool call, say."""
MAX_KEPT_TEXT = 16 * 1024 * 1024
MAX_REPORTED_BYTES = 16 * 1024
"""Of the backend's own words on a receipt. llama.cpp reports some 250 bytes a choice."""
_NUL = b"\\u0000"
"""As JSON writes it. No row of Postgres can hold it, so a charge that had it would never be booked."""

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Reading:
    """What one usage report tells, already checked to be non-negative integers."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    images: int = 0
    audio_seconds: int = 0


@value
class OwnCount:
    """Our own count of a call's prompt and of the text that was generated."""

    prompt: int
    completion: int
    is_prompt_exact: bool
    is_completion_exact: bool

    @property
    def is_exact(self) -> bool:
        """Whether both numbers are what the model's own tokenizer gives."""
        return self.is_prompt_exact and self.is_completion_exact


class Meter:
    """Fed with the chunks of a stream, or with the body of an answer that does not stream."""

    __slots__ = (
        "_kept_text",
        "chunks",
        "dialect",
        "final",
        "finished",
        "flags",
        "is_answer",
        "raw",
        "request",
        "running",
        "texts",
    )

    def __init__(self, request: CallRequest, dialect: Dialect) -> None:
        self.request = request
        self.dialect = dialect
        self.final: dict[int, Reading] = {}
        self.running: dict[int, Reading] = {}
        self.finished: set[int] = set()
        self.texts: dict[int, list[str]] = {}
        self.raw: list[Any] = []
        self.flags: set[str] = set()
        self.chunks = 0
        self.is_answer = False
        self._kept_text = 0

    def see(self, chunk: Chunk) -> None:
        """Take in one chunk of a stream."""
        choices = chunk.choices
        if choices:
            for choice in choices:
                text = text_of(choice)
                if text:
                    self.chunks += 1
                    self._keep(choice.index, text)
                if choice.finish_reason is not None:
                    self.finished.add(choice.index)
        if chunk.usage:
            self._see_usage(chunk.usage, choices)
        if chunk.timings and self.dialect.sums_choices and choices:
            self._see_timings(chunk.timings, choices[0].index)

    def see_answer(self, answer: dict[str, Any]) -> None:
        """Take in an answer that did not stream: its usage, and its text, in case there is no usage to go by."""
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            read = read_choice(choice)
            if read is not None and (text := text_of(read)):
                self.chunks += 1
                self._keep(read.index, text)
        usage = answer.get("usage")
        if not self.request.endpoint.generates:
            self._see_others(answer, usage)
            return
        reading = self._reading(usage)
        if reading is not None:
            self.is_answer = True
            self.final[0] = reading
            self.raw.append(usage)

    def _see_others(self, answer: dict[str, Any], usage: Any) -> None:
        """An answer that is no text of a model: its images count, and it may well tell no tokens."""
        reading = None if usage is None else self._reading(usage)
        if reading is not None:
            self.raw.append(usage)
        if self.request.images_bound:
            reading = replace(reading or Reading(), images=len(answer["data"]))
        if isinstance(text := answer.get("text"), str):
            self.chunks += 1
            self._keep(0, text)
        if reading is not None:
            self.is_answer = True
            self.final[0] = reading

    def _keep(self, index: int, text: str) -> None:
        self._kept_text += len(text)
        if self._kept_text <= MAX_KEPT_TEXT:
            self.texts.setdefault(index, []).append(text)
        else:
            self.flags.add("text_not_kept")

    def _see_usage(self, raw: msgspec.Raw, choices: list[Any] | None) -> None:
        usage = read_any(raw)
        if usage is None:
            return
        reading = self._reading(usage)
        if reading is None or (
            reading.prompt == 0 and reading.completion == 0 and choices and not reading.audio_seconds
        ):
            # Ollama sends zeros on every chunk before the last: no answer yet.
            return
        if self.dialect.sums_choices:
            # llama.cpp: one report per choice, in the chat form without saying of which.
            index = choices[0].index if choices else min(len(self.final), self.request.choices - 1)
            if index in self.final:
                # A choice has one report: the last one counts, as with the other engines.
                self.flags.add("usage_twice")
                # The one before is shown beside it; of a backend that goes on and on, no more.
                del self.raw[self.request.choices :]
            self.final[index] = reading
            self.raw.append(usage)
        elif choices and self.dialect.continuous_stream_options:
            self._see_running(choices[0].index, reading)
        else:
            self.final[0] = reading
            self.raw = [usage]

    def _see_timings(self, raw: msgspec.Raw, index: int) -> None:
        timings = read_any(raw)
        if not isinstance(timings, dict):
            return
        cached, fresh = _count(timings.get("cache_n")), _count(timings.get("prompt_n"))
        completion = _count(timings.get("predicted_n"))
        if cached is None or fresh is None or completion is None:
            self.flags.add("usage_invalid")
            return
        self._see_running(index, Reading(prompt=cached + fresh, completion=completion, cached=cached))

    def _see_running(self, index: int, reading: Reading) -> None:
        before = self.running.get(index)
        if before is not None and reading.completion < before.completion:
            self.flags.add("usage_decreased")
            return
        self.running[index] = reading

    @property
    def all_finished(self) -> bool:
        """Whether every choice has said why it ended."""
        return len(self.finished) >= self.request.choices

    def _reading(self, usage: Any) -> Reading | None:
        """The numbers of a usage object in one form; invalid ones are flagged and not used."""
        if not isinstance(usage, dict):
            self.flags.add("usage_invalid")
            return None
        prompt, completion = _count(usage.get("prompt_tokens", 0)), _count(usage.get("completion_tokens", 0))
        if prompt is None or completion is None:
            self.flags.add("usage_invalid")
            return None
        of_prompt, of_completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        cached = self._part(of_prompt, prompt, "cached_tokens")
        cache_write = self._part(of_prompt, prompt, "cache_write_tokens", "created_cache_tokens")
        reasoning = self._part(of_completion, completion, "reasoning_tokens")
        reasoning = reasoning or self._part(usage, completion, "reasoning_tokens")
        reading = Reading(prompt, completion, cached, cache_write, reasoning)
        if "audio_seconds" in usage:
            reading.audio_seconds = _count(usage["audio_seconds"]) or 0
        return reading

    def _part(self, details: Any, whole: int, *names: str) -> int:
        if not isinstance(details, dict):
            return 0
        for name in names:
            value = details.get(name)
            if value is not None:
                tokens = _count(value)
                if tokens is None or tokens > whole:
                    self.flags.add("usage_invalid")
                    return 0
                return tokens
        return 0

    def delivered(self) -> list[str]:
        """The text generated so far, one string per choice."""
        return ["".join(pieces) for pieces in self.texts.values()]

    @property
    def is_complete(self) -> bool:
        """Whether the backend reported the usage of everything it generated."""
        return self.is_answer or len(self.final) >= (self.request.choices if self.dialect.sums_choices else 1)

    @property
    def knows_progress(self) -> bool:
        """Whether the backend reported usage at all, if only of a part."""
        return bool(self.final or self.running)

    @property
    def has_output(self) -> bool:
        """Whether anything was generated, by what passed or by what the backend says."""
        return self.chunks > 0 or any(reading.completion for reading in (*self.final.values(), *self.running.values()))

    def is_beyond(self, output_bound: int) -> bool:
        """Whether the backend has surely generated more than `output_bound` tokens.

        By its own word where it tells usage as it goes, else by the events that passed.
        """
        if self.running:
            return sum(reading.completion for reading in self.running.values()) > output_bound
        return self.dialect.events_are_tokens and self.chunks > output_bound + EXTRA_EVENTS

    def total(self) -> Reading:
        """The backend's numbers for the whole call, by its dialect's rule: final ones before running ones."""
        if self.final and (self.is_answer or not self.dialect.sums_choices):
            return self.final[0]
        by_choice = {**self.running, **self.final}
        prompts: dict[int, Reading] = {}
        for index, reading in sorted(by_choice.items()):
            # Each prompt is spent once, however many choices answer it.
            prompts.setdefault(index // self.request.n, reading)
        return Reading(
            prompt=sum(reading.prompt for reading in prompts.values()),
            cached=sum(reading.cached for reading in prompts.values()),
            cache_write=sum(reading.cache_write for reading in prompts.values()),
            completion=sum(reading.completion for reading in by_choice.values()),
            reasoning=sum(reading.reasoning for reading in by_choice.values()),
            audio_seconds=max((reading.audio_seconds for reading in by_choice.values()), default=0),
        )

    @property
    def prompt_estimate(self) -> int:
        """Tokens of the prompt by its size alone: a token of English is four bytes."""
        bound = self.request.input_bound
        return 0 if bound is None else bound // BYTES_PER_TOKEN

    def progress(self, input_bound: int, output_bound: int) -> tuple[TokenUsage, UsageSource]:
        """What has been used so far, cheaply: by the backend's word, else estimated, never above what was delivered."""
        if self.knows_progress:
            reading, source = self.total(), UsageSource.BACKEND_PARTIAL
        else:
            # A chunk of a stream is at least one token.
            reading, source = Reading(self.prompt_estimate, self.chunks), UsageSource.ESTIMATE
        return self._bounded(reading, input_bound, output_bound), source

    def wants_own_count(self, billed: BilledCount) -> bool:
        """Whether the charge needs a count of our own."""
        return billed is not BilledCount.BACKEND or not self.knows_progress

    def measure(
        self,
        own: OwnCount | None,
        *,
        billed: BilledCount,
        input_bound: int,
        output_bound: int,
        is_abandoned: bool = False,
    ) -> Measured:
        """The numbers to charge: final usage, else running usage, else our count; bounded by what the hold covers.

        `is_abandoned`: the client left. A backend goes on making the images it was asked for, so they are charged.
        """
        reading, source = self._best(own, billed)
        request = self.request
        if is_abandoned and request.images_bound:
            reading = replace(reading, images=request.images_bound)
        flags = set(self.flags)
        if (
            reading.prompt > input_bound
            or reading.completion > output_bound
            or reading.images > request.images_bound
            or reading.audio_seconds > request.audio_seconds_bound
        ):
            flags.add("above_bound")
        usage = self._bounded(reading, input_bound, output_bound)
        reported = self._reported(flags)
        counted = {"input": own.prompt, "output": own.completion, "exact": own.is_exact} if own else None
        if request.audio_seconds_bound:
            counted = {**(counted or {}), "audio_seconds": request.audio_seconds_bound}
        return Measured(usage, source, reported, counted, tuple(sorted(flags)))

    def _reported(self, flags: set[str]) -> dict[str, Any] | None:
        """The backend's own words, for the receipt; the numbers in them are charged, whatever else it says there."""
        if not self.raw:
            return None
        reported = {"usage": self.raw}
        encoded = _encode(reported)
        if len(encoded) <= MAX_REPORTED_BYTES and _NUL not in encoded:
            return reported
        flags.add("reported_not_kept")
        return None

    def _bounded(self, reading: Reading, input_bound: int, output_bound: int) -> TokenUsage:
        """The numbers, none above what the hold covers, the parts none above their whole."""
        prompt, completion = min(reading.prompt, input_bound), min(reading.completion, output_bound)
        cached = min(reading.cached, prompt)
        cache_write, reasoning = min(reading.cache_write, prompt - cached), min(reading.reasoning, completion)
        request = self.request
        if not (request.images_bound or request.audio_seconds_bound):
            return TokenUsage(prompt, completion, cached, cache_write, reasoning)
        # The sound is spent once a backend has it, like a prompt; what its backend does not tell is what we measured.
        seconds = min(reading.audio_seconds or request.audio_seconds_bound, request.audio_seconds_bound)
        images = min(reading.images, request.images_bound)
        return TokenUsage(prompt, completion, cached, cache_write, reasoning, images, seconds)

    def _best(self, own: OwnCount | None, billed: BilledCount) -> tuple[Reading, UsageSource]:
        if not self.knows_progress:
            counted = Reading(prompt=own.prompt, completion=own.completion) if own else Reading()
            return counted, UsageSource.TIKTOKEN if own and own.is_exact else UsageSource.ESTIMATE
        backend = self.total()
        source = UsageSource.BACKEND if self.is_complete else UsageSource.BACKEND_PARTIAL
        if own is None or billed is BilledCount.BACKEND:
            return backend, source
        # What we cannot count exactly (a prompt inside a chat template we do not render) stays the backend's number.
        prompt = own.prompt if own.is_prompt_exact else backend.prompt
        completion = own.completion if own.is_completion_exact else backend.completion
        if billed is BilledCount.LOWER:
            prompt, completion = min(prompt, backend.prompt), min(completion, backend.completion)
        if (prompt, completion) == (backend.prompt, backend.completion):
            return backend, source
        return replace(backend, prompt=prompt, completion=completion), UsageSource.TIKTOKEN


def _count(value: Any) -> int | None:
    """A token number as it must be: a non-negative integer. A whole float is none: no backend sends one."""
    return value if type(value) is int and 0 <= value < 2**31 else None


def client_usage(reading: Reading) -> dict[str, Any]:
    """The usage object of the OpenAI API for corrected numbers."""
    return {
        "prompt_tokens": reading.prompt,
        "completion_tokens": reading.completion,
        "total_tokens": reading.prompt + reading.completion,
        "prompt_tokens_details": {"cached_tokens": reading.cached},
        "completion_tokens_details": {"reasoning_tokens": reading.reasoning},
    }
