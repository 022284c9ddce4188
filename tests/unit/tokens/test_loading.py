"""Counters are loaded once, beside the loop, and long texts are counted beside it too."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from billing.tokens import Count, Tokenizers, estimate_tokens, load_counter
from tests.unit.tokens.conftest import WriteTokenizer

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000
STALL_LIMIT_SECONDS = 0.050
# The machine of the tests is shared: a stall of ours comes every time, one of a neighbour does not.
ATTEMPTS = 6


@pytest.fixture
async def tokenizers() -> AsyncIterator[Tokenizers]:
    opened = Tokenizers()
    yield opened
    opened.close()


@pytest.fixture
def spec(qwen: dict[str, Any], write: WriteTokenizer) -> str:
    return str(write(qwen))


async def test_a_counter_is_loaded_once_for_all_who_ask(tokenizers: Tokenizers, spec: str) -> None:
    assert tokenizers.get(spec) is None
    assert "not loaded yet" in str(tokenizers.reason(spec))
    await asyncio.gather(tokenizers.load([spec]), tokenizers.load([spec, spec]))
    counter = tokenizers.get(spec)
    assert counter is not None
    assert tokenizers.reason(spec) is None
    await tokenizers.load([spec])
    assert tokenizers.get(spec) is counter


async def test_a_failure_is_remembered_with_its_reason(tokenizers: Tokenizers, spec: str) -> None:
    await tokenizers.load(["absent.json", spec])
    assert tokenizers.get("absent.json") is None
    assert "No such file" in str(tokenizers.reason("absent.json"))
    assert tokenizers.get(spec) is not None


async def test_a_cancelled_caller_does_not_stop_the_load(tokenizers: Tokenizers, spec: str) -> None:
    first = asyncio.ensure_future(tokenizers.load([spec]))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(tokenizers.load([spec]))
    first.cancel()
    await second
    assert tokenizers.get(spec) is not None


async def test_without_a_counter_the_count_is_an_estimate(tokenizers: Tokenizers) -> None:
    assert await tokenizers.count(None, "x" * 101) == Count(26, exact=False)
    assert await tokenizers.count("not loaded", "é") == Count(1, exact=False)
    assert estimate_tokens("") == 0


async def test_short_and_long_texts_are_counted_alike(tokenizers: Tokenizers, spec: str) -> None:
    await tokenizers.load([spec])
    counter = load_counter(spec)
    for text in ("short", "many words, " * 2_000):
        assert await tokenizers.count(spec, text) == counter.measure(text)


SOURCE = random.Random(3)
HOSTILE = {
    "letters": "a" * MEGABYTE,
    "random letters": "".join(SOURCE.choices("abcdefghijklmnopqrstuvwxyz", k=MEGABYTE)),
    "spaces": " " * MEGABYTE,
    "new lines": "\n" * MEGABYTE,
    "zero-width spaces": "\u200b" * (MEGABYTE // 3),
    "emoji sequences": "👩\u200d👩\u200d👧\u200d👦" * (MEGABYTE // 25),
    "digits": "".join(SOURCE.choices("0123456789٠١٢٣४५１２", k=MEGABYTE // 2)),
    "combining marks out of order": "\u0315\u0316" * (MEGABYTE // 4),
    "words": "the quick brown fox jumps over the lazy dog\n" * (MEGABYTE // 44),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_megabyte_never_stalls_the_loop(tokenizers: Tokenizers, spec: str, name: str) -> None:
    await tokenizers.load([spec])
    stalls = []
    for _ in range(ATTEMPTS):
        count, stall = await _longest_stall(tokenizers, spec, HOSTILE[name])
        assert 0 < count.tokens <= 3 * MEGABYTE
        assert count.exact is (name == "words")
        stalls.append(stall)
        if stall < STALL_LIMIT_SECONDS:
            break
    assert min(stalls) < STALL_LIMIT_SECONDS
    assert (await tokenizers.count(spec, "one two " * 2_000)).exact, "the workers are alive"


async def test_the_reference_does_not_stall_the_loop_either(
    tokenizers: Tokenizers, shapes: dict[str, dict[str, Any]], write: WriteTokenizer
) -> None:
    spec = str(write(shapes["space in front"]))
    await tokenizers.load([spec])
    stalls = []
    for _ in range(ATTEMPTS):
        stalls.append((await _longest_stall(tokenizers, spec, HOSTILE["digits"]))[1])
        if stalls[-1] < STALL_LIMIT_SECONDS:
            break
    assert min(stalls) < STALL_LIMIT_SECONDS


async def _longest_stall(tokenizers: Tokenizers, spec: str, text: str) -> tuple[Count, float]:
    """The count of `text`, and the seconds for which the loop was longest kept from its next turn."""
    counting = asyncio.ensure_future(tokenizers.count(spec, text))
    longest, last = 0.0, time.perf_counter()
    while not counting.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last - 0.001), now
    return counting.result(), longest
