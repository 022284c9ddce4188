"""A tokenizer.json as a tiktoken encoding: ten times faster than its reference, and believed only where they agree.

Only byte-level byte-pair vocabularies can be converted. tiktoken's rank is the priority of a merge, so the ranks are
the 256 bytes and then the merges in their order; the ids of the file do not matter for counting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tiktoken
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC

# The pattern of GPT-2, which the file format calls ByteLevel with `use_regex`.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# tiktoken drops text that no alternative matches without a word, which would be counted as nothing.
CATCH_ALL = r"|[\s\S]"

# DeepSeek V3 and its kin split three times: digits, then CJK, then words in what is left. Joined with `|` that would be
# wrong in a fifth of texts: the classes of the last split must leave out what the first two took away, and the end of
# what they left is an end of text for its `\s+(?!\S)`. A run that no split matches stays in one piece.
_CJK = "一-龥぀-ゟ゠-ヿ"
_DEEPSEEK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_DEEPSEEK_JOINED = (
    rf"\p{{N}}{{1,3}}|[{_CJK}]+"
    r"""|[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}{_CJK}]?[\p{{L}}\p{{M}}--[{_CJK}]]+"
    rf"| ?[\p{{P}}\p{{S}}--[{_CJK}]]+[\r\n]*"
    rf"|\s*[\r\n]+|\s+(?![^\s\p{{N}}{_CJK}])|\s+"
)
# What the words leave: neither letter, mark, number, punctuation, symbol nor white space. Its last character belongs to
# the word after it.
_DEEPSEEK_REST = rf"|[^\s\p{{L}}\p{{M}}\p{{N}}\p{{P}}\p{{S}}]+(?![\p{{L}}\p{{M}}--[{_CJK}]])"
JOINED_PATTERNS: dict[tuple[str, ...], str] = {
    (r"\p{N}{1,3}", f"[{_CJK}]+", _DEEPSEEK_WORDS): _DEEPSEEK_JOINED + _DEEPSEEK_REST,
}


class NotConvertible(Exception):
    """Why a tokenizer.json stays with its reference, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A tiktoken encoding that counts what the tokenizer.json says it should."""

    encoding: tiktoken.Encoding
    whole_tokens: frozenset[str]
    """Texts that are one token wherever they stand, though they are no special tokens."""
    normalise: Callable[[str], str] | None

    def length(self, text: str) -> int:
        """Tokens of `text`."""
        if self.normalise is not None and not text.isascii():
            text = self.normalise(text)
        if not self.whole_tokens:
            return len(self.encoding.encode_ordinary(text))
        return len(self.encoding.encode(text, allowed_special=self.whole_tokens, disallowed_special=()))


def convert(document: dict[str, Any], name: str) -> Conversion:
    """The encoding of a parsed tokenizer.json, not yet compared. Raises `NotConvertible`."""
    ranks = merge_ranks(document)
    whole_tokens = _whole_tokens(document)
    encoding = tiktoken.Encoding(
        name,
        pat_str=_pattern(document) + CATCH_ALL,
        mergeable_ranks=ranks,
        special_tokens={token: len(ranks) + place for place, token in enumerate(sorted(whole_tokens))},
    )
    return Conversion(encoding, whole_tokens, _normaliser(document))


def reference_length(document: dict[str, Any]) -> Callable[[str], int]:
    """Counts with the `tokenizers` library itself, without the special tokens of a template. Raises `Exception`."""
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    # A batch of one on purpose: `encode` keeps the GIL while it works, 1.8 s for a megabyte; this one does not.
    return lambda text: len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def disagreement(length: Callable[[str], int], reference: Callable[[str], int], texts: Iterable[str]) -> str | None:
    """The first of `texts` on which the two counts differ, as a phrase; None where they agree on all."""
    for text in texts:
        counted, expected = length(text), reference(text)
        if counted != expected:
            return f"it counts {counted} and the reference {expected} tokens in {text[:40]!r}"
    return None


def merge_ranks(document: dict[str, Any]) -> dict[bytes, int]:
    """The rank of every mergeable byte sequence. Raises `NotConvertible` for any but a byte-level BPE."""
    model = document["model"]
    if model.get("type") != "BPE":
        raise NotConvertible(f"its model is {model.get('type')} and not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise NotConvertible(f"its model uses {option}")
    byte_of = _byte_alphabet()
    if not byte_of.keys() <= model["vocab"].keys():
        raise NotConvertible("its vocabulary does not contain all 256 bytes")
    ranks = {bytes([byte]): byte for byte in range(256)}
    try:
        for merge in model["merges"]:
            # Both spellings are about: "a b" in files of old, ["a", "b"] since tokens may contain spaces.
            pair = "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)
            ranks.setdefault(bytes(byte_of[character] for character in pair), len(ranks))
        if model.get("ignore_merges"):
            _add_unmerged(ranks, document, byte_of)
    except KeyError as problem:
        raise NotConvertible(f"its merges are not byte-level: {problem.args[0]!r}") from None
    return ranks


def _add_unmerged(ranks: dict[bytes, int], document: dict[str, Any], byte_of: dict[str, int]) -> None:
    """With `ignore_merges` a word that is in the vocabulary is one token, even where no merge leads to it."""
    added = {token["content"] for token in document.get("added_tokens", ())}
    for token, _ in sorted(document["model"]["vocab"].items(), key=lambda entry: entry[1]):
        if token not in added:
            ranks.setdefault(bytes(byte_of[character] for character in token), len(ranks))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map of bytes to printable characters, reversed: the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _pattern(document: dict[str, Any]) -> str:
    """The one regular expression by which text is split before merging."""
    declared = document.get("pre_tokenizer") or {}
    steps = declared["pretokenizers"] if declared.get("type") == "Sequence" else [declared]
    match steps:
        case [*splits, {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}] if splits:
            patterns = tuple(_split_pattern(split) for split in splits)
            joined = patterns[0] if len(patterns) == 1 else JOINED_PATTERNS.get(patterns)
            if joined is None:
                raise NotConvertible("its pre-tokenizer splits several times, in a way that we cannot join")
            return joined
        case [{"type": "ByteLevel", "use_regex": use_regex, "add_prefix_space": False}] if use_regex:
            return GPT2_PATTERN
    kinds = ", ".join(str(step.get("type")) for step in steps)
    raise NotConvertible(
        f"its pre-tokenizer ({kinds}) is not made of Splits and a ByteLevel that puts no space in front"
    )


def _split_pattern(split: dict[str, Any]) -> str:
    match split:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            # Some files spell the line ends as themselves and some as escapes.
            return pattern.replace("\r", r"\r").replace("\n", r"\n")
    raise NotConvertible(f"its pre-tokenizer has a {split.get('type')} that keeps no simple pieces")


def _normaliser(document: dict[str, Any]) -> Callable[[str], str] | None:
    match document.get("normalizer"):
        case None | {"type": "Sequence", "normalizers": []}:
            return None
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            # The reference's own: Python's tables are of another version, and quadratic on combining marks.
            return NFC().normalize_str
        case other:
            raise NotConvertible(f"its normalizer is {other['type']}")


def _whole_tokens(document: dict[str, Any]) -> frozenset[str]:
    """Added tokens that are found in any text; special ones are not, because our texts are text and not templates."""
    tokens = [token for token in document.get("added_tokens", ()) if not token.get("special")]
    for token in tokens:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise NotConvertible(f"its added token {token['content']!r} takes white space or word borders into account")
    return frozenset(token["content"] for token in tokens)
