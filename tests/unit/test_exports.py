"""Cells of an export: what a spreadsheet would run is disarmed, and the rule can be undone."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.exports import plain_text
from billing.exports.cells import text_cell
from models.ledger import DEBIT_NORMAL, AccountKind


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        pytest.param("plain", '"plain"', id="plain text is quoted"),
        pytest.param("", '""', id="nothing"),
        pytest.param("=1+1", '"\'=1+1"', id="equals"),
        pytest.param("+1", '"\'+1"', id="plus"),
        pytest.param("-1", '"\'-1"', id="minus"),
        pytest.param("@SUM(A1)", '"\'@SUM(A1)"', id="at"),
        pytest.param("\t=1", '"\'\t=1"', id="tab"),
        pytest.param("\r=1", '"\'\r=1"', id="carriage return"),
        pytest.param("'=1", "\"''=1\"", id="a quote of its own, so that the rule can be undone"),
        pytest.param("a=1", '"a=1"', id="a formula character inside is harmless"),
        pytest.param('say "hi"', '"say ""hi"""', id="quotes are doubled"),
        pytest.param("a\r\nb;c,d", '"a\r\nb;c,d"', id="line breaks and delimiters stay in the cell"),
    ],
)
def test_text_cell(text: str, cell: str) -> None:
    assert text_cell(text) == cell


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_rule_can_be_undone(text: str) -> None:
    ((cell,),) = (
        csv.reader([text_cell(text)], strict=True) if "\n" not in text and "\r" not in text else ((_cell(text),),)
    )
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\0"))
    assert (cell[1:] if cell.startswith("'") else cell) == text


def _cell(text: str) -> str:
    # A reader of lines cannot be given a cell with line breaks; quoting is undone by hand instead.
    return text_cell(text)[1:-1].replace('""', '"')


def test_every_account_has_a_place_in_a_bookkeepers_chart() -> None:
    assert plain_text.CLASSES.keys() == set(AccountKind)
    debit = {kind for kind, name in plain_text.CLASSES.items() if name in ("assets", "expenses")}
    # Rounding goes either way; the book counts it among what grows on the credit side.
    assert debit - {AccountKind.ROUNDING} == DEBIT_NORMAL
