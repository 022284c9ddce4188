"""The engines' own token counters, read from the Prometheus text of their `/metrics`.

llama.cpp counts prompt tokens that its cache served apart; vLLM and SGLang count them as prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from models.catalog import BackendKind
from models.reconciliation import Counters

_EXACT_DIGITS: Final = 6
"""llama.cpp writes 1158812 as 1.15881e+06, as C++ streams do unless told otherwise."""
_LARGEST: Final = 2**53


@dataclass(frozen=True, slots=True)
class _Names:
    """Counters whose sums are the tokens of an engine. Engines in Python show a counter once it has counted."""

    input: tuple[str, ...]
    output: tuple[str, ...]
    is_rounded: bool = False


_NAMES: Final = {
    BackendKind.LLAMACPP: _Names(
        input=("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        output=("llamacpp:tokens_predicted_total",),
        is_rounded=True,
    ),
    BackendKind.VLLM: _Names(input=("vllm:prompt_tokens_total",), output=("vllm:generation_tokens_total",)),
    BackendKind.SGLANG: _Names(input=("sglang:prompt_tokens_total",), output=("sglang:generation_tokens_total",)),
}

_WANTED: Final = {name for names in _NAMES.values() for name in (*names.input, *names.output)}

COUNTING: Final = frozenset(_NAMES)
"""Kinds of backend that count tokens; the others have nothing to be compared with."""


def parse_counters(kind: BackendKind, text: str) -> Counters:
    """The token counters in the answer of `GET /metrics`, summed over models and engines of the server.

    Raises `ValueError` with a sentence where `text` does not have them, or has what no counter can be.
    """
    names = _NAMES[kind]
    samples = _samples(text)
    inputs, outputs = _values(samples, names.input), _values(samples, names.output)
    rounding = _rounding if names.is_rounded else _none
    return Counters(sum(inputs), sum(outputs), rounding(inputs), rounding(outputs))


def _samples(text: str) -> dict[str, int]:
    """Values by name, over all labels; announced counters without a value are zero."""
    found: dict[str, int] = {}
    try:
        for family in text_string_to_metric_families(text):
            if family.type == "counter":
                # The parser takes the ending off the names of counters.
                found.setdefault(f"{family.name}_total", 0)
            for sample in family.samples:
                if sample.name in _WANTED:
                    found[sample.name] = found.get(sample.name, 0) + _whole(sample.name, sample.value)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"Its /metrics cannot be read: {str(error)[:200]}") from None
    return found


def _whole(name: str, value: float) -> int:
    # Also false for NaN.
    if not 0 <= value < _LARGEST or value != int(value):
        raise ValueError(f"{name} is {value}")
    return int(value)


def _values(samples: dict[str, int], names: Iterable[str]) -> list[int]:
    missing = [name for name in names if name not in samples]
    if missing:
        raise ValueError(f"Its /metrics does not have {' and '.join(missing)}.")
    return [samples[name] for name in names]


def _rounding(values: Iterable[int]) -> int:
    """By how much the sum of rounded values can be off, in tokens."""
    off = 0
    for value in values:
        unit = 10 ** max(0, len(str(value)) - _EXACT_DIGITS)
        # A digit beyond the sixth shows a build that writes them all.
        off += unit // 2 if value % unit == 0 else 0
    return off


def _none(values: Iterable[int]) -> int:
    return 0
