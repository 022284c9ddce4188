"""The verdict on a backend's counters, and what the engines' own text says they are."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from billing.reconcile import compare
from gateway.backends.counters import COUNTING, parse_counters
from models.catalog import BackendKind
from models.reconciliation import Base, Counters, LedgerSums, Verdict

_THEN = datetime(2026, 11, 1, tzinfo=UTC)
_BASE = Base(_THEN, _THEN, Counters(1_000, 100), LedgerSums(400, 40))


@pytest.mark.parametrize(
    ("base", "counters", "ledger", "verdict"),
    [
        pytest.param(None, Counters(9, 9), LedgerSums(), Verdict.BASELINE, id="the first look"),
        pytest.param(_BASE, Counters(1_000, 100), LedgerSums(400, 40), Verdict.EQUAL, id="nothing happened"),
        pytest.param(_BASE, Counters(1_007, 103), LedgerSums(407, 43), Verdict.EQUAL, id="both grew by as much"),
        pytest.param(_BASE, Counters(1_008, 103), LedgerSums(407, 43), Verdict.DIFFERS, id="input past the gateway"),
        pytest.param(_BASE, Counters(1_007, 103), LedgerSums(407, 44), Verdict.DIFFERS, id="output charged too high"),
        pytest.param(_BASE, Counters(7, 103), LedgerSums(407, 43), Verdict.RESTARTED, id="input began anew"),
        pytest.param(_BASE, Counters(1_007, 3), LedgerSums(407, 43), Verdict.RESTARTED, id="output began anew"),
        pytest.param(_BASE, Counters(1_010, 103, 5), LedgerSums(405, 43), Verdict.EQUAL, id="within the rounding"),
        pytest.param(_BASE, Counters(1_010, 103, 5), LedgerSums(404, 43), Verdict.DIFFERS, id="beyond the rounding"),
    ],
)
def test_verdict(base: Base | None, counters: Counters, ledger: LedgerSums, verdict: Verdict) -> None:
    comparison = compare(base, counters, ledger)
    assert comparison.verdict is verdict
    assert (comparison.metered is None) == (verdict not in (Verdict.EQUAL, Verdict.DIFFERS))


def test_both_sides_are_increases() -> None:
    comparison = compare(_BASE, Counters(1_008, 103), LedgerSums(407, 43, 2))
    assert comparison.metered == LedgerSums(8, 3)
    assert comparison.charged == LedgerSums(7, 3, 2)


_LLAMACPP = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {}
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total {}
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total {}
# TYPE llamacpp:tokens_predicted_seconds_total counter
llamacpp:tokens_predicted_seconds_total 0.009995
"""
_VLLM = """\
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="a"} 1.15881234e+08
vllm:prompt_tokens_total{engine="1",model_name="a"} 6.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="a"} 1.7e+09
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a"} 3.60294e+06
"""
_SGLANG = """\
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="a"} 12.0
# TYPE sglang:generation_tokens_total counter
"""


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        pytest.param(BackendKind.LLAMACPP, _LLAMACPP.format(602, 1198, 15), Counters(1_800, 15), id="llama.cpp"),
        pytest.param(
            BackendKind.LLAMACPP,
            _LLAMACPP.format("1.15881e+06", "2.5e+07", 999_999),
            Counters(26_158_810, 999_999, 55, 0),
            id="llama.cpp writes six digits",
        ),
        pytest.param(
            BackendKind.LLAMACPP, _LLAMACPP.format(1_158_812, 0, 0), Counters(1_158_812, 0), id="or one day all of them"
        ),
        pytest.param(BackendKind.VLLM, _VLLM, Counters(115_881_240, 3_602_940), id="vLLM, the sum of two engines"),
        pytest.param(BackendKind.SGLANG, _SGLANG, Counters(12, 0), id="SGLang, which has not generated yet"),
    ],
)
def test_counters(kind: BackendKind, text: str, expected: Counters) -> None:
    assert parse_counters(kind, text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        pytest.param(BackendKind.VLLM, "", "does not have vllm:prompt_tokens_total", id="nothing"),
        pytest.param(BackendKind.VLLM, "<html>", "cannot be read|does not have", id="no metrics at all"),
        pytest.param(BackendKind.LLAMACPP, _VLLM, "does not have llamacpp", id="another engine"),
        pytest.param(
            BackendKind.LLAMACPP,
            _LLAMACPP.format(1, 2, 3).replace("prompt_tokens_cached_total", "something_else"),
            "does not have llamacpp:prompt_tokens_cached_total",
            id="a build that does not count its cache",
        ),
        pytest.param(BackendKind.LLAMACPP, _LLAMACPP.format(-1, 0, 0), "cannot be read", id="negative"),
        pytest.param(BackendKind.LLAMACPP, _LLAMACPP.format("NaN", 0, 0), "cannot be read", id="not a number"),
        pytest.param(BackendKind.LLAMACPP, _LLAMACPP.format("+Inf", 0, 0), "cannot be read", id="infinite"),
        pytest.param(BackendKind.LLAMACPP, _LLAMACPP.format("1.5", 0, 0), "cannot be read", id="half a token"),
    ],
)
def test_what_is_no_counter(kind: BackendKind, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_counters(kind, text)


def test_kinds_that_count() -> None:
    assert {BackendKind.LLAMACPP, BackendKind.VLLM, BackendKind.SGLANG} == COUNTING
