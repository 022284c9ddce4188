"""A counter counts any text, and says when the number is not exact."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.tokens import Count, Counter, count_tokens_bound, estimate_tokens, load_counter
from billing.tokens.conversion import convert
from billing.tokens.corpus import CODE, PROSE, corpus
from billing.tokens.counter import COUNTED_CHARACTERS, PiecewiseCounter
from billing.tokens.pieces import LONGEST_PIECE_CHARACTERS, pieces, proven_cuts
from tests.unit.tokens.conftest import WriteTokenizer

ANY_TEXT = st.text(st.characters(codec=None), max_size=200)


@pytest.fixture
def counter(qwen: dict[str, Any], write: WriteTokenizer) -> Counter:
    return load_counter(str(write(qwen)))


def test_a_cut_text_counts_as_much_as_a_whole_one(qwen: dict[str, Any], counter: Counter) -> None:
    text = "\n".join([*PROSE, *CODE]) * 40
    assert len(text) > 4 * LONGEST_PIECE_CHARACTERS
    assert counter.measure(text) == Count(convert(qwen, "whole").length(text), exact=True)


@pytest.mark.parametrize("text", [*PROSE, *CODE])
def test_each_text_of_the_corpus_repeated_counts_as_a_whole(qwen: dict[str, Any], counter: Counter, text: str) -> None:
    repeated = (text + "\n") * 700
    count = counter.measure(repeated)
    if count.exact:
        assert count.tokens == convert(qwen, "whole").length(repeated)
    else:
        # Thai and Devanagari have no place of our rules: a cut may cost or save a token or two.
        assert abs(count.tokens - convert(qwen, "whole").length(repeated)) <= 2 * len(list(pieces(repeated, None)))


def test_a_run_without_a_safe_cut_is_exact_only_up_to_a_piece(counter: Counter) -> None:
    assert counter.measure("a" * LONGEST_PIECE_CHARACTERS).exact
    assert not counter.measure("a" * (LONGEST_PIECE_CHARACTERS + 1)).exact


def test_beyond_the_largest_text_the_count_is_extrapolated() -> None:
    letters = PiecewiseCounter("letters", len, None, "one token a letter")
    assert letters.measure("x" * 2 * COUNTED_CHARACTERS) == Count(2 * COUNTED_CHARACTERS, exact=False)


class Panic(BaseException):
    """What a Rust library raises when it gives up."""


@pytest.mark.parametrize("problem", [ValueError("stack"), Panic("panic")])
def test_an_encoder_that_gives_up_leaves_the_byte_bound(problem: BaseException) -> None:
    def give_up(text: str) -> int:
        raise problem

    assert PiecewiseCounter("broken", give_up, None, "never counts").measure("née") == Count(4, exact=False)


def test_an_interrupt_is_not_a_count() -> None:
    def interrupted(text: str) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PiecewiseCounter("interrupted", interrupted, None, "stopped").count("a")


@pytest.mark.parametrize(
    ("text", "exact"),
    [("\ud800", False), ("a\udfffb", False), ("\ud83d\ude00", False), ("", True), ("\x00\ufeff\ufffe", True)],
)
def test_odd_texts_are_counted(counter: Counter, text: str, exact: bool) -> None:
    count = counter.measure(text)
    assert count.exact is exact
    assert 0 <= count.tokens <= count_tokens_bound(text)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_the_bound_holds_for_any_text(any_counter: Counter, text: str) -> None:
    assert any_counter.count(text) <= count_tokens_bound(text)
    assert estimate_tokens(text) <= count_tokens_bound(text)


@pytest.fixture(scope="module")
def any_counter(qwen: dict[str, Any]) -> Counter:
    return PiecewiseCounter("qwen", convert(qwen, "qwen").length, None, "converted")


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        pytest.param("abc", 3, id="ASCII"),
        pytest.param("한", 3, id="a Hangul syllable"),
        pytest.param("\u0958", 6, id="what NFC takes apart is twice as long"),
        pytest.param("e\u0301", 3, id="what NFC joins was longer before"),
        pytest.param("\ud800", 3, id="a lone surrogate"),
    ],
)
def test_bound(text: str, bound: int) -> None:
    assert count_tokens_bound(text) == bound


def test_pieces_join_to_the_text() -> None:
    text = "\n".join(corpus()) * 3
    cuts = re.compile(r"(?<=\n)(?=[a-z])")
    assert "".join(piece for piece, _ in pieces(text, cuts)) == text
    assert max(len(piece) for piece, _ in pieces(text, cuts)) <= LONGEST_PIECE_CHARACTERS


def test_a_rule_that_changes_a_count_is_dropped() -> None:
    def odd_spaces(text: str) -> int:
        return len(re.findall(r"\w+ |\w+|\s|[^\w\s]", text))

    cuts = proven_cuts(odd_spaces, ["one two, three\nfour 5six", "x1y"])
    assert cuts is not None
    assert not cuts.search("one two")
    assert cuts.search("two, three")


def test_a_rule_that_cuts_into_a_whole_token_is_dropped() -> None:
    cuts = proven_cuts(len, ["one two, three\nfour"], ["<two, three>"])
    assert cuts is not None
    assert not cuts.search("two, three")


def test_no_rule_left_means_no_cuts() -> None:
    assert proven_cuts(lambda text: 1, ["one two, three\nfour 5six 文。"]) is None
