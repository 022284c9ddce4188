"""Small tokenizers, trained on the corpus itself, in the shapes in which model makers publish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from billing.tokens.conversion import GPT2_PATTERN, JOINED_PATTERNS
from billing.tokens.corpus import CODE, PROSE, corpus

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
DEEPSEEK_PATTERNS = next(iter(JOINED_PATTERNS))
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

WriteTokenizer = Callable[..., Path]


def splits(*patterns: str) -> pre_tokenizers.PreTokenizer:
    """The usual pre-tokenizer: one split after the other, then bytes."""
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, BYTES])


def train(pre_tokenizer: Any, normalizer: Any = None, added: tuple[AddedToken, ...] = ()) -> dict[str, Any]:
    """A byte-level BPE of 2,000 tokens, as the document of its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*PROSE, *CODE, *corpus()], trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(list(added))
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


@pytest.fixture(scope="session")
def qwen() -> dict[str, Any]:
    """Qwen's shape: NFC, one split, `<think>` as a token that is not special. Copy before changing it."""
    return train(splits(QWEN2_PATTERN), normalizers.NFC(), (AddedToken("<think>"), AddedToken("</think>")))


@pytest.fixture(scope="session")
def shapes(qwen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Documents by name; all but the last two can be converted."""
    return {
        "qwen": qwen,
        "llama3": train(splits(LLAMA3_PATTERN)),
        "deepseek": train(splits(*DEEPSEEK_PATTERNS)),
        "gpt2": train(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)),
        "gpt2 as a split": train(splits(GPT2_PATTERN)),
        "space in front": train(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)),
        "sentencepiece": train(pre_tokenizers.Metaspace()),
    }


@pytest.fixture
def write(tmp_path: Path) -> WriteTokenizer:
    """Writes a document as a tokenizer.json and gives its path."""

    def write_tokenizer(document: dict[str, Any], name: str = "tokenizer.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return path

    return write_tokenizer
