"""A converted encoding counts what its reference counts, or is not used."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from billing.tokens import load_counter
from billing.tokens.conversion import NotConvertible, convert, disagreement, merge_ranks, reference_length
from billing.tokens.corpus import corpus
from tests.unit.tokens.conftest import LLAMA3_PATTERN, WriteTokenizer, splits, train

CONVERTED = ("qwen", "llama3", "deepseek", "gpt2", "gpt2 as a split")
NOT_CONVERTED = ("space in front", "sentencepiece")


def texts_beyond_the_corpus() -> list[str]:
    """What the proof at loading has not seen: the corpus cut and joined in other ways."""
    source = random.Random(7)
    texts = []
    for _ in range(250):
        parts = source.choices(corpus(), k=source.randint(1, 6))
        starts = [source.randrange(len(part) + 1) for part in parts]
        texts.append("".join(part[start : start + 30] for part, start in zip(parts, starts, strict=True)))
    return texts


@pytest.mark.parametrize("shape", CONVERTED)
def test_a_converted_encoding_agrees_with_the_reference(
    shapes: dict[str, dict[str, Any]], write: WriteTokenizer, shape: str
) -> None:
    counter = load_counter(str(write(shapes[shape])))
    reference = reference_length(shapes[shape])
    assert counter.conversion.startswith("converted")
    assert disagreement(counter.count, reference, texts_beyond_the_corpus()) is None


@pytest.mark.parametrize("shape", NOT_CONVERTED)
def test_what_cannot_be_converted_is_counted_by_the_reference(
    shapes: dict[str, dict[str, Any]], write: WriteTokenizer, shape: str
) -> None:
    counter = load_counter(str(write(shapes[shape])))
    assert counter.conversion.startswith("counted by the reference, because its pre-tokenizer (")
    assert counter.exact
    assert disagreement(counter.count, reference_length(shapes[shape]), texts_beyond_the_corpus()) is None


def test_a_conversion_that_disagrees_is_refused(
    qwen: dict[str, Any], write: WriteTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.tokens.conversion._normaliser", lambda document: None)
    counter = load_counter(str(write(qwen)))
    assert counter.conversion.startswith("counted by the reference, because it counts ")
    assert counter.count("e\u0301") == reference_length(qwen)("é")


def test_splits_that_nobody_has_joined_stay_with_the_reference(write: WriteTokenizer) -> None:
    counter = load_counter(str(write(train(splits(r"\p{N}", LLAMA3_PATTERN)))))
    assert "splits several times" in counter.conversion


def test_both_spellings_of_merges_give_the_same_ranks(qwen: dict[str, Any]) -> None:
    old = copy.deepcopy(qwen)
    old["model"]["merges"] = [" ".join(pair) for pair in qwen["model"]["merges"]]
    assert merge_ranks(old) == merge_ranks(qwen)
    assert len(merge_ranks(qwen)) == 256 + len(qwen["model"]["merges"])


def test_text_that_no_alternative_matches_is_counted(qwen: dict[str, Any]) -> None:
    document = copy.deepcopy(qwen)
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+"
    assert convert(document, "letters only").length("a1") == 2


def test_a_text_that_looks_like_a_special_token_is_text(qwen: dict[str, Any], write: WriteTokenizer) -> None:
    counter = load_counter(str(write(qwen)))
    assert counter.count("<|im_end|>") > 1
    assert counter.count("<think>") == 1


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        pytest.param("model", {"type": "Unigram"}, "its model is Unigram", id="no BPE"),
        pytest.param("model", {"byte_fallback": True}, "its model uses byte_fallback", id="byte fallback"),
        pytest.param("normalizer", {"type": "NFKC"}, "its normalizer is NFKC", id="another normalizer"),
    ],
)
def test_reasons_against_a_conversion(qwen: dict[str, Any], part: str, value: dict[str, Any], reason: str) -> None:
    document = copy.deepcopy(qwen)
    document[part] |= value
    with pytest.raises(NotConvertible, match=reason):
        convert(document, "changed")


def test_ignore_merges_takes_a_word_of_the_vocabulary_whole(qwen: dict[str, Any], write: WriteTokenizer) -> None:
    document = copy.deepcopy(qwen)
    document["model"] |= {"ignore_merges": True}
    document["model"]["vocab"] |= {"xqzjvk": 90_000}
    counter = load_counter(str(write(document)))
    assert counter.count("xqzjvk") == reference_length(document)("xqzjvk") == 1
