"""Our count equals llama.cpp's own, to the token."""

from __future__ import annotations

import json
import random
from pathlib import Path

import httpx
import pytest

from billing.tokens import load_counter
from billing.tokens.corpus import CODE, PROSE, corpus
from gateway.embedded.llamacpp import LlamaCpp

pytestmark = pytest.mark.servers


def texts() -> list[str]:
    """The corpus, and the corpus cut and joined in other ways: more than 250 texts."""
    source = random.Random(11)
    joined = ["".join(source.choices((*PROSE, *CODE), k=source.randint(1, 5)))[3:] for _ in range(80)]
    return [*corpus(), *joined]


def test_agrees_with_llamacpp(llamacpp: LlamaCpp, tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    counter = load_counter(str(_as_llamacpp_reads_it(tiny_model[1], tmp_path)))
    assert counter.conversion.startswith("converted")
    differences = []
    with httpx.Client(base_url=llamacpp.url) as client:
        for text in texts():
            answer = client.post("/tokenize", json={"content": text, "add_special": False, "parse_special": False})
            count = counter.measure(text)
            if (count.tokens, count.exact) != (len(answer.json()["tokens"]), True):
                differences.append((text[:40], count, len(answer.json()["tokens"])))
    assert len(texts()) >= 250
    assert differences == []


def _as_llamacpp_reads_it(tokenizer: Path, directory: Path) -> Path:
    """The tokenizer with `<think>` and the like as tokens that are found in any text, which the GGUF says they are."""
    document = json.loads(tokenizer.read_text())
    for token in document["added_tokens"]:
        token["special"] = token["content"].startswith("<|")
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path
