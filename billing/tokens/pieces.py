"""Where a long text may be cut without changing its count of tokens.

A cut is harmless only where the pre-tokenizer splits whatever stands on either side. Which places these are depends on
the tokenizer, so each rule is tried on the corpus when a tokenizer is loaded, and dropped where it changed a count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

# Pieces are cut at the first safe place after the first length and, where there is none up to the second, right there.
# 16 k characters keep the loop free: the token list of the worst text takes about a millisecond to build.
PIECE_CHARACTERS = 8_192
LONGEST_PIECE_CHARACTERS = 16_384

CUT_RULES = (
    r"(?<=[^\s/]\n)(?=[A-Za-z])",  # a new line that begins with a letter
    r"(?<=[^\W\d_])(?= [^\W\d_])",  # before the space between two words, in any script
    r'(?<=[A-Za-z])(?=[,;:.)\]}"=])',  # the end of an ASCII word, never at an apostrophe
    r"(?<=[0-9])(?=[A-Za-z])",  # from digit to letter: base64, hexadecimal
    r"(?<=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3])(?=[、。，！？])",  # the end of a CJK clause
)
TRIALS_PER_TEXT = 2


def pieces(text: str, cuts: re.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    """The pieces of `text` in order, each with whether its end is a place where a cut cannot change the count."""
    start = 0
    while len(text) - start > LONGEST_PIECE_CHARACTERS:
        latest = start + LONGEST_PIECE_CHARACTERS
        place = cuts.search(text, start + PIECE_CHARACTERS, latest) if cuts else None
        end = place.start() if place else latest
        yield text[start:end], place is not None
        start = end
    yield text[start:], True


def proven_cuts(
    length: Callable[[str], int], texts: Iterable[str], whole_tokens: Iterable[str] = ()
) -> re.Pattern[str] | None:
    """The rules under which cutting any of `texts` left its count (by `length`) unchanged, as one pattern.

    `whole_tokens` are texts that are one token wherever they stand; a rule that would cut into one is dropped.
    """
    corpus = [(text, length(text)) for text in texts]
    tokens = list(whole_tokens)
    kept = [
        rule
        for rule in CUT_RULES
        if not any(re.search(rule, token) for token in tokens)
        and all(_harmless(re.compile(rule), text, tokens, length) for text, tokens in corpus)
    ]
    return re.compile("|".join(kept)) if kept else None


def _harmless(rule: re.Pattern[str], text: str, tokens: int, length: Callable[[str], int]) -> bool:
    places = [match.start() for match in rule.finditer(text)]
    step = max(1, len(places) // TRIALS_PER_TEXT)
    return all(length(text[:place]) + length(text[place:]) == tokens for place in places[::step])
