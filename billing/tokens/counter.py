"""What a counter of tokens is, and the one implementation: an encoder applied to pieces of the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tokenizers.normalizers import NFC

from billing.tokens.pieces import pieces
from models.errors import TollgateError

# Above this a text cannot be a prompt of any model we know; what follows is extrapolated, so that a hostile body of the
# largest permitted size does not keep a core busy for a minute.
COUNTED_CHARACTERS = 4 * 1024 * 1024
# Mean UTF-8 bytes of a token over English, code and CJK with the vocabularies in use; errs by about 20 % per text.
BYTES_PER_TOKEN_ESTIMATE = 4


class TokenizerUnavailable(TollgateError):
    """A tokenizer cannot be loaded; the message says what is missing and where it was looked for."""


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of a text; `exact` is False where the number is an estimate or a bound."""

    tokens: int
    exact: bool


class Counter(Protocol):
    """Counts the tokens of plain text; text that looks like a special token is ordinary text.

    `exact` tells whether the counter is a real tokenizer and not an estimate; `name` is what it was loaded from;
    `conversion` is a sentence on how it counts. No method raises on any text.
    """

    @property
    def exact(self) -> bool: ...

    @property
    def name(self) -> str: ...

    @property
    def conversion(self) -> str: ...

    def count(self, text: str) -> int:
        """Tokens of `text`, the best number there is."""
        ...

    def measure(self, text: str) -> Count:
        """Tokens of `text`, and whether this number is exact."""
        ...


def count_tokens_bound(text: str) -> int:
    """The most tokens that byte-level BPE can make of `text`: its UTF-8 bytes, before or after normalisation to NFC.

    NFC can make a text longer (U+0958 becomes six bytes of three), and some tokenizers normalise first.
    """
    if text.isascii():
        return len(text)
    # Rust and not unicodedata: that one is quadratic on a run of combining marks, 1.4 s for 64 KB with the GIL held.
    normalised: str = NFC().normalize_str(well_formed(text))
    return max(utf8_length(text), utf8_length(normalised))


def estimate_tokens(text: str) -> int:
    """A fair guess without a tokenizer: a token per four UTF-8 bytes, rounded up."""
    return -(-utf8_length(text) // BYTES_PER_TOKEN_ESTIMATE)


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8; a lone surrogate counts as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def well_formed(text: str) -> str:
    """`text` itself, or with lone surrogates replaced by U+FFFD where it has any."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@dataclass(frozen=True, slots=True)
class PiecewiseCounter:
    """Counts with `length` (text to number of tokens), applied to pieces cut where `cuts` matches.

    Pieces keep the list of tokens that the encoder builds under the GIL short. `cuts` are places where the tokenizer
    always splits, so that cutting there does not change the count; see `billing.tokens.pieces`.
    """

    name: str
    length: Callable[[str], int]
    cuts: re.Pattern[str] | None
    conversion: str
    exact: bool = True

    def count(self, text: str) -> int:
        """Tokens of `text`, the best number there is."""
        return self.measure(text).tokens

    def measure(self, text: str) -> Count:
        """Tokens of `text`; not exact where a run had no safe cut, or the encoder gave up on a piece."""
        sound = well_formed(text)
        exact = sound is text
        counted = sound[:COUNTED_CHARACTERS]
        tokens = 0
        for piece, safe in pieces(counted, self.cuts):
            count = self._measure_piece(piece)
            tokens += count.tokens
            exact = exact and safe and count.exact
        if len(counted) < len(sound):
            return Count(-(-tokens * len(sound) // len(counted)), exact=False)
        return Count(tokens, exact and self.exact)

    def _measure_piece(self, piece: str) -> Count:
        try:
            return Count(self.length(piece), exact=True)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # Rust panics arrive as PanicException, a BaseException: they would end the worker, not the count.
        except BaseException:
            return Count(count_tokens_bound(piece), exact=False)
