"""The order of a verification: the book in one snapshot, slice by slice, then Redis beside the book."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.store import HotStore
from billing.store.seals import head
from billing.verify import book, invoices, periods, shares
from billing.verify.hot_store import CLAIMS, HotStoreCheck
from billing.verify.prices import CORRECTIONS, PRICES, check_corrections, price_book, reprice
from billing.verify.report import ChainHead, Report, Tally, Tell
from billing.verify.snapshot import Snapshot, snapshot

QUESTIONS: Final = (*book.QUESTIONS, *shares.QUESTIONS, *invoices.QUESTIONS, *periods.QUESTIONS)


def _nobody(check: str, done: int, steps: int) -> None:
    """Nobody listens."""


async def verify(engine: AsyncEngine, hot: HotStore | None, tell: Tell = _nobody) -> Report:
    """Check every promise; without `hot` those of the book alone. `tell` hears how far it has come.

    Raises SQLAlchemy's errors and `Unavailable` where Postgres or Redis cannot answer.
    """
    began = time.perf_counter()
    async with snapshot(engine) as seen:
        tallies = await _ask_book(seen, _Steps(tell))
        last = await head(seen.connection)
    if hot is not None:
        tallies += await _compare_redis(HotStoreCheck(engine, hot), _Steps(tell))
    # Sorting is stable: within a promise the checks stay in the order in which they were made.
    checks = sorted((tally.check() for tally in tallies), key=lambda check: check.claim.promise)
    chain = None if last is None else ChainHead(last.seq, last.posting_id, last.digest.hex())
    return Report(tuple(checks), seen.charges, round((time.perf_counter() - began) * 1_000), chain)


async def _ask_book(seen: Snapshot, steps: _Steps) -> list[Tally]:
    """Slice by slice, all that is asked of a slice; then what is asked of the whole book."""
    tallies = {claim.name: Tally(claim) for claim in (*(question.claim for question in QUESTIONS), PRICES, CORRECTIONS)}
    sliced = [question for question in QUESTIONS if question.sliced]
    whole = [question for question in QUESTIONS if not question.sliced]
    steps.count = len(seen.slices) * (len(sliced) + 1) + len(whole) + 1
    prices = await price_book(seen.connection)
    for part in seen.slices:
        for question in sliced:
            with steps.of(tallies[question.claim.name]) as tally:
                await seen.ask(tally, question.query, part)
        with steps.of(tallies[PRICES.name]) as tally:
            await reprice(prices, seen, part, tally)
    for question in whole:
        with steps.of(tallies[question.claim.name]) as tally:
            await seen.ask(tally, question.query)
    with steps.of(tallies[CORRECTIONS.name]) as tally:
        await check_corrections(prices, seen, tally)
    return list(tallies.values())


async def _compare_redis(check: HotStoreCheck, steps: _Steps) -> list[Tally]:
    shards = await check.shards()
    steps.count = len(shards) + 1
    tallies = [check.tallies[claim.name] for claim in CLAIMS]
    # One look answers all four claims, so each is said to take as long as the look.
    for shard in shards:
        with steps.of(*tallies):
            await check.first_look(shard)
    with steps.of(*tallies):
        await check.look_again()
    return tallies


class _Steps:
    """The steps of a part of the work, told to whoever listens and timed for the checks they are for."""

    def __init__(self, tell: Tell) -> None:
        self.count = 0
        self._done = 0
        self._tell = tell

    @contextmanager
    def of(self, *tallies: Tally) -> Iterator[Tally]:
        """One step, for these checks; gives the first of them."""
        self._tell(tallies[0].claim.name, self._done, self.count)
        began = time.perf_counter()
        yield tallies[0]
        for tally in tallies:
            tally.seconds += time.perf_counter() - began
        self._done += 1
