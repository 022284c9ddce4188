"""What a call owes, worked out a second time: from facts beside the bytes, with arithmetic of its own.

Nothing here is imported from `billing` or `gateway`: an error there must not be repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from models.catalog import BackendKind, Meter
from models.usage import BilledCount
from tests.simulation.backends import EXTRA_EVENTS, Fact, Finish, Piece, Report

BYTES_PER_TOKEN: Final = 4
TEMPLATE_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Sold:
    """One price version as the operator published it, in milli-units, in force between two moments (µs)."""

    model: str
    meter: Meter
    price: int
    since_us: int
    until_us: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Terms:
    """What was fixed for a call before it began: the most it can use, and its prices by meter."""

    input_bound: int
    output_bound: int
    prices: Mapping[Meter, int]

    @property
    def ceiling(self) -> int:
        """The most that it can cost, rounded up."""
        inputs = [self._price(meter) for meter in (Meter.INPUT, Meter.CACHED_INPUT)]
        outputs = [self._price(meter) for meter in (Meter.OUTPUT, Meter.REASONING)]
        milli = self.input_bound * max(inputs) + self.output_bound * max(outputs) + self._price(Meter.REQUEST)
        return -(-milli // 1_000)

    def cost(self, used: Report) -> int:
        """The price of these tokens, as far as they are within the bounds; rounded half-even, once."""
        prompt, completion = min(used.prompt, self.input_bound), min(used.completion, self.output_bound)
        cached, reasoning = min(used.cached, prompt), min(used.reasoning, completion)
        milli = (
            (prompt - cached) * self._price(Meter.INPUT)
            + cached * self._price(Meter.CACHED_INPUT)
            + (completion - reasoning) * self._price(Meter.OUTPUT)
            + reasoning * self._price(Meter.REASONING)
            + self._price(Meter.REQUEST)
        )
        whole, rest = divmod(milli, 1_000)
        return whole + (rest > 500 or (rest == 500 and whole % 2 == 1))

    def _price(self, meter: Meter) -> int:
        if meter in self.prices:
            return self.prices[meter]
        stands_in = {Meter.CACHED_INPUT: Meter.INPUT, Meter.REASONING: Meter.OUTPUT}.get(meter)
        return 0 if stands_in is None else self.prices[stands_in]


def prices_of(versions: Mapping[UUID, Sold], pinned: tuple[UUID, ...]) -> dict[Meter, int]:
    """The prices that a call's pinned versions make."""
    return {versions[name].meter: versions[name].price for name in pinned}


@dataclass(frozen=True, slots=True)
class OwnCount:
    """Our own count of a call, in words, and whether it may stand against the backend's numbers."""

    prompt: int
    words: int
    is_prompt_exact: bool
    is_completion_exact: bool


@dataclass(eq=False, slots=True)
class Tally:
    """What one backend has told and made of one call so far."""

    kind: BackendKind
    running: dict[int, Report] = field(default_factory=dict)
    final: list[Report] = field(default_factory=list)
    pieces: int = 0
    words: int = 0
    reads: int = 0
    """How often there was something to see."""
    is_spent: bool = False
    """It surely made more than the hold covers: nothing after that is read, or owed."""

    def see(self, events: tuple[tuple[Fact, ...], ...], output_bound: int) -> None:
        """Believe what a reader of these events may believe, up to the one that shows that the hold is spent."""
        self.reads += 1
        for facts in events:
            if self.is_spent:
                return
            self._see(facts)
            self.is_spent = self._is_beyond(output_bound)

    def _is_beyond(self, output_bound: int) -> bool:
        if self.running:
            return sum(one.completion for one in self.running.values()) > output_bound
        # An API that is not of an engine may send its text in any pieces.
        return self.kind is not BackendKind.OPENAI and self.pieces > output_bound + EXTRA_EVENTS

    def _see(self, facts: tuple[Fact, ...]) -> None:
        for fact in facts:
            if isinstance(fact, Piece):
                self.pieces += 1
                self.words += fact.words
            elif isinstance(fact, Finish):
                continue
            elif fact.is_final:
                self.final.append(fact)
            else:
                before = self.running.get(fact.choice)
                if before is None or fact.completion >= before.completion:
                    self.running[fact.choice] = fact

    @property
    def has_output(self) -> bool:
        """Whether anything was generated, by the text or by the numbers."""
        return self.pieces > 0 or any(one.completion for one in (*self.running.values(), *self.final))

    def told(self) -> Report | None:
        """The backend's numbers for the whole call; None where it told none."""
        if self.kind is BackendKind.LLAMACPP and (self.final or self.running):
            # A report a choice: the prompt is spent once, what was made adds up.
            return _sum({**self.running, **{one.choice: one for one in self.final}})
        if self.final:
            return self.final[-1]
        return _sum(self.running) if self.running else None

    def owed(self, own: OwnCount | None, billed: BilledCount) -> Report:
        """The tokens to charge, before bounds."""
        told = self.told()
        if told is None:
            return Report(own.prompt, own.words) if own is not None else Report(0, 0)
        if own is None or billed is BilledCount.BACKEND:
            return told
        prompt = own.prompt if own.is_prompt_exact else told.prompt
        completion = own.words if own.is_completion_exact else told.completion
        if billed is BilledCount.LOWER:
            prompt, completion = min(prompt, told.prompt), min(completion, told.completion)
        return replace(told, prompt=prompt, completion=completion)

    def so_far(self, text_bytes: int | None) -> Report:
        """What a checkpoint may say: the backend's numbers, else an estimate that is not above the truth."""
        told = self.told()
        if told is not None:
            return told
        return Report(0 if text_bytes is None else text_bytes // BYTES_PER_TOKEN, self.pieces)


def _sum(by_choice: Mapping[int, Report]) -> Report:
    first = by_choice[min(by_choice)]
    return Report(
        first.prompt,
        sum(one.completion for one in by_choice.values()),
        first.cached,
        sum(one.reasoning for one in by_choice.values()),
    )
