"""tiktoken's encodings are taken from its cache or not at all."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from billing.tokens import TokenizerUnavailable, load_counter
from billing.tokens.encodings import ENCODINGS, VocabularyFile
from tests.unit.tokens.conftest import WriteTokenizer


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a tokenizer was about to be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_an_absent_vocabulary_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(
        TokenizerUnavailable, match=r"never downloads: put https://.*o200k_base\.tiktoken at .*fb374d41"
    ):
        load_counter("o200k_base")


def test_a_damaged_vocabulary_is_kept_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    damaged = tmp_path / ENCODINGS["cl100k_base"].cache_name
    damaged.write_bytes(b"IQ== 0\n")
    with pytest.raises(TokenizerUnavailable, match="is damaged: its sha256 is"):
        load_counter("cl100k_base")
    assert damaged.exists()


def test_a_cache_that_is_switched_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(TokenizerUnavailable, match="switched off"):
        load_counter("p50k_base")


def test_the_second_cache_variable_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    with pytest.raises(TokenizerUnavailable, match=str(tmp_path)):
        load_counter("r50k_base")


def test_a_vocabulary_that_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = VocabularyFile("https://example.org/x", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    monkeypatch.setitem(ENCODINGS, "o200k_base", file)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / file.cache_name).touch()
    ranks = {bytes([byte]): byte for byte in range(256)}
    bytewise = tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={"<|end|>": 256})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: bytewise)
    assert load_counter("o200k_base").count("<|end|>é") == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be read: No such file", id="no file"),
        pytest.param("{", "is not JSON", id="no JSON"),
        pytest.param("[]", "no tokenizer.json: it has no model", id="another JSON"),
        pytest.param('{"model": {"type": "Magic"}}', "is not a tokenizer that can be used", id="an unknown model"),
    ],
)
def test_files_that_are_no_tokenizers(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerUnavailable, match=message):
        load_counter(str(path))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TokenizerUnavailable, match=r"neither .* cl100k_base, o200k_base"):
        load_counter("gpt-9")


def test_a_truncating_file_is_counted_in_full(qwen: dict[str, Any], write: WriteTokenizer) -> None:
    limits = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    counter = load_counter(str(write(qwen | {"truncation": limits, "padding": padding})))
    assert counter.count("!") == 1
    assert counter.count("one two three four five six") >= 6
