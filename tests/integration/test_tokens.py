"""Our count equals llama.cpp's own, to the token."""

from __future__ import annotations

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


def test_agrees_with_llamacpp(llamacpp: LlamaCpp, tiny_model: tuple[Path, Path]) -> None:
    counter = load_counter(str(tiny_model[1]))
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
