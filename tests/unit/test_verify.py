"""How a verification is cut into slices and shown."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.verify import PROMISES, Check, Finding, Report
from billing.verify.book import QUESTIONS
from billing.verify.report import SHOWN_FINDINGS, Claim, Tally
from billing.verify.snapshot import Slice, slices
from gateway.cli.audit import _print, verify

_CLAIM = Claim("prices", "P6", "Every charge is its price.", "charges")
_FINDING = Finding("call 7", "15", "14")


@given(first=st.integers(0, 10**12), length=st.integers(0, 10**9), count=st.integers(0, 50))
def test_slices_cover_everything_once(first: int, length: int, count: int) -> None:
    parts = slices(first, first + length, count)
    assert (parts[0].low, parts[-1].high) == (-(2**63), 2**63 - 1)
    assert all(left.high + 1 == right.low for left, right in pairwise(parts))
    assert all(part.low <= part.high for part in parts)
    assert len(parts) == max(1, min(count, length + 1))


def test_an_empty_book_is_one_slice() -> None:
    assert slices(0, 0, 0) == (Slice(-(2**63), 2**63 - 1),)


def test_a_tally_counts_all_and_keeps_the_first() -> None:
    tally = Tally(_CLAIM)
    for _ in range(3):
        tally.add(100, 15, [_FINDING] * 15)
    check = tally.check()
    assert (check.rows, check.wrong, len(check.findings)) == (300, 45, SHOWN_FINDINGS)


def test_help_names_the_promises_that_are_checked() -> None:
    assert verify.__doc__ is not None
    assert f"its promises, {min(PROMISES)} to {max(PROMISES)};" in verify.__doc__


def test_every_question_is_on_a_promise_and_says_so_in_one_sentence() -> None:
    claims = [question.claim for question in QUESTIONS]
    assert len({claim.name for claim in claims}) == len(claims)
    assert {claim.promise for claim in claims} <= PROMISES.keys()
    assert all(claim.sentence.endswith(".") and claim.sentence.count(". ") == 0 for claim in claims)


@pytest.mark.parametrize("wrong", [0, 2])
def test_a_report_says_the_same_to_people_and_to_machines(wrong: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report((Check(_CLAIM, 1_000, wrong, (_FINDING,) * min(wrong, 1), 1_500),), 1_000, 2_000)
    _print(report)
    shown = " ".join(capsys.readouterr().out.split())
    [check] = json.loads(json.dumps(report.as_json()))["checks"]
    assert (check["promise"], check["wrong"], check["ok"]) == ("P6", wrong, not wrong)
    assert "prices: 1,000 charges, 1.5 s" in shown
    assert ("P6 prices: 2 wrong, the first 1 call 7: expected 15, found 14" in shown) is bool(wrong)
    assert ("Every promise holds, on 1,000 charges, in 2.0 s." in shown) is (not wrong)
