"""Loading counters, each once, and counting long texts beside the event loop."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from billing.tokens.conversion import NotConvertible, convert, disagreement, reference_length
from billing.tokens.corpus import corpus
from billing.tokens.counter import (
    Count,
    Counter,
    PiecewiseCounter,
    TokenizerUnavailable,
    estimate_tokens,
    utf8_length,
)
from billing.tokens.encodings import ENCODINGS, load_encoding
from billing.tokens.pieces import proven_cuts

# A text of 8 KB is counted in about a millisecond; handing it to a thread costs a tenth of that, and a switch.
COUNTED_ON_THE_LOOP_BYTES = 8_192


def load_counter(spec: str) -> Counter:
    """The counter of `spec`: the path of a tokenizer.json, or the name of a tiktoken encoding.

    Takes seconds for a large vocabulary. Raises `TokenizerUnavailable`; never downloads anything.
    """
    if spec in ENCODINGS:
        encoding = load_encoding(spec)
        length = functools.partial(_ordinary_length, encoding)
        return PiecewiseCounter(spec, length, proven_cuts(length, corpus()), "tiktoken's own encoding")
    if not spec.endswith(".json"):
        raise TokenizerUnavailable(
            f"{spec!r} is neither the path of a tokenizer.json nor a tiktoken encoding; "
            f"the encodings are {', '.join(sorted(ENCODINGS))}."
        )
    return _from_document(spec, _read(spec))


def _ordinary_length(encoding: Any, text: str) -> int:
    return len(encoding.encode_ordinary(text))


def _read(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as problem:
        raise TokenizerUnavailable(f"The tokenizer {path} cannot be read: {problem.strerror}.") from problem
    except ValueError as problem:
        raise TokenizerUnavailable(f"The tokenizer {path} is not JSON: {problem}.") from problem
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise TokenizerUnavailable(f"{path} is JSON but no tokenizer.json: it has no model.")
    return document


def _from_document(path: str, document: dict[str, Any]) -> Counter:
    """The converted encoding where it agrees with the reference on the whole corpus, else the reference."""
    try:
        reference = reference_length(document)
    # The library raises bare exceptions, each with a message of its own, for a file it cannot use.
    except Exception as problem:
        raise TokenizerUnavailable(f"{path} is not a tokenizer that can be used: {problem}.") from problem
    try:
        conversion = convert(document, path)
        reason = disagreement(conversion.length, reference, (*corpus(), *conversion.whole_tokens))
    except NotConvertible as problem:
        reason = str(problem)
    # A pattern that tiktoken cannot compile, or a file of a shape that we did not foresee: the reference knows better.
    except Exception as problem:
        reason = f"it cannot be converted ({type(problem).__name__}: {problem})"
    added = [token["content"] for token in document.get("added_tokens", ()) if not token.get("special")]
    if reason is None:
        cuts = proven_cuts(conversion.length, corpus(), added)
        return PiecewiseCounter(path, conversion.length, cuts, "converted to tiktoken; agrees with the reference")
    cuts = proven_cuts(reference, corpus(), added)
    return PiecewiseCounter(path, reference, cuts, f"counted by the reference, because {reason}")


class Tokenizers:
    """The counters of one process. Loads and long counts run in `workers` threads of its own; `close` ends them."""

    def __init__(self, workers: int = 2) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="tokens")
        self._counters: dict[str, Counter] = {}
        self._failures: dict[str, str] = {}
        self._loading: dict[str, asyncio.Future[None]] = {}

    def get(self, spec: str) -> Counter | None:
        """The counter of `spec`, or None while it loads and where it failed; `reason` says which."""
        return self._counters.get(spec)

    def reason(self, spec: str) -> str | None:
        """Why `get` answers None, as a sentence; None where there is a counter."""
        if spec in self._counters:
            return None
        return self._failures.get(spec, f"The tokenizer {spec} is not loaded yet.")

    async def load(self, specs: Iterable[str]) -> None:
        """Load what is not loaded and has not failed before. Never raises for a tokenizer: see `reason`."""
        await asyncio.gather(*(self._load(spec) for spec in dict.fromkeys(specs)))

    async def count(self, spec: str | None, text: str) -> Count:
        """Tokens of `text` by the counter of `spec`; an inexact estimate where there is none.

        Above 8 KB the count is made in a thread, in pieces, so that the loop never waits for it.
        """
        counter = None if spec is None else self.get(spec)
        if counter is None:
            return Count(estimate_tokens(text), exact=False)
        if len(text) <= COUNTED_ON_THE_LOOP_BYTES // 4 or utf8_length(text) <= COUNTED_ON_THE_LOOP_BYTES:
            return counter.measure(text)
        return await asyncio.get_running_loop().run_in_executor(self._threads, counter.measure, text)

    def close(self) -> None:
        """Let running counts end, and start no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self, spec: str) -> None:
        if spec in self._counters or spec in self._failures:
            return
        if spec not in self._loading:
            self._loading[spec] = asyncio.ensure_future(self._load_once(spec))
        # Shielded: a caller that is cancelled must not take the load away from the others that wait for it.
        await asyncio.shield(self._loading[spec])

    async def _load_once(self, spec: str) -> None:
        try:
            loop = asyncio.get_running_loop()
            self._counters[spec] = await loop.run_in_executor(self._threads, load_counter, spec)
        except TokenizerUnavailable as problem:
            self._failures[spec] = problem.message
        finally:
            del self._loading[spec]
