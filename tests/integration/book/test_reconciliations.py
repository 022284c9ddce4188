"""The ledger's side of a reconciliation: which charges are summed, and that what was found is never changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.store.engine import make_engine
from billing.store.pages import Page
from billing.store.reconciliations import booked_since, keep, last_base, list_reconciliations
from models.ids import uuid7
from models.reconciliation import Base, Comparison, Counters, LedgerSums, Measure, Reconciliation, Verdict
from tests.conftest import Database

pytestmark = pytest.mark.anyio

_NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
_DAY = timedelta(days=1)
_CHARGE = text(
    "insert into charge (call_id, organization_id, project_id, api_key_id, currency, endpoint, model, deployment,"
    " streamed, ending, usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens,"
    " reasoning_tokens, amount, hold, price_version_ids, created_at, ended_at, posting_id, funding, counted, corrects)"
    " values (:call_id, :call_id, :call_id, :call_id, 'USD', '/v1', 'tiny', :backend, true, 'finished', :source,"
    " :input, 0, 0, :output, 0, 0, 0, '{}', now(), now(), 1, '[]', cast(:counted as jsonb), :corrects)"
)


@pytest.fixture
async def owner(postgres: Database) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(postgres.owner_url, pool_size=1)
    yield engine
    await engine.dispose()


async def charge(engine: AsyncEngine, at: datetime, tokens: tuple[int, int], **changes: object) -> None:
    """Store a charge of a call that began at a moment."""
    row = {"backend": "a", "source": "backend", "counted": None, "corrects": None, "call_id": uuid7(at), **changes}
    async with engine.begin() as connection:
        await connection.execute(_CHARGE, {**row, "input": tokens[0], "output": tokens[1]})


def found(at: datetime, verdict: Verdict, counters: Counters | None, calls_in_flight: int = 0) -> Reconciliation:
    """A result as it is kept."""
    if counters is None:
        return Reconciliation("a", at, None, at - _DAY, Comparison(verdict), reason="It does not answer.")
    measure = Measure(counters, LedgerSums(), LedgerSums(1, 2, 3), calls_in_flight, is_steady=True)
    return Reconciliation("a", at, None, at - _DAY, Comparison(verdict), measure)


async def test_sums_are_of_one_backend_since_a_moment_with_corrections(owner: AsyncEngine) -> None:
    first = uuid7(_NOW)
    await charge(owner, _NOW, (10, 5), call_id=first, source="checkpoint")
    await charge(owner, _NOW + _DAY, (100, 50))
    await charge(owner, _NOW - _DAY, (1_000, 500))
    await charge(owner, _NOW, (1_000, 500), backend="b")
    # What a correction takes away stands in `counted` alone.
    less = '{"difference": {"input": 0, "output": -2}}'
    await charge(owner, _NOW, (0, 0), corrects=first, counted=less)
    more = '{"difference": {"input": 1, "output": 3}}'
    await charge(owner, _NOW, (1, 3), corrects=first, counted=more)
    async with owner.connect() as connection:
        assert await booked_since(connection, "a", _NOW) == LedgerSums(111, 56, 1)
        assert await booked_since(connection, "a", _NOW - _DAY) == LedgerSums(1_111, 556, 1)
        assert await booked_since(connection, "c", _NOW) == LedgerSums()


async def test_the_base_is_the_last_that_can_be_compared_with(owner: AsyncEngine) -> None:
    counters = Counters(2**40, 7, 5, 6)
    async with owner.begin() as connection:
        assert await last_base(connection, "a") is None
        await keep(connection, found(_NOW, Verdict.DIFFERS, counters))
        await keep(connection, found(_NOW + _DAY, Verdict.DIFFERS, Counters(1, 1), calls_in_flight=3))
        await keep(connection, found(_NOW + 2 * _DAY, Verdict.UNREACHABLE, None))
        assert await last_base(connection, "a") == Base(_NOW, _NOW - _DAY, counters, LedgerSums(1, 2, 3))
        assert await last_base(connection, "b") is None
        rows, more = await list_reconciliations(connection, "a", Page(None, 2, newest_first=True))
        assert ([row.verdict for row in rows], more) == (["unreachable", "differs"], True)


@pytest.mark.parametrize(
    "change", ["delete from reconciliation", "update reconciliation set verdict = 'equal'", "truncate reconciliation"]
)
async def test_what_was_found_is_only_added_to(owner: AsyncEngine, change: str) -> None:
    async with owner.begin() as connection:
        await keep(connection, found(_NOW, Verdict.DIFFERS, Counters(1, 1)))
    with pytest.raises(DBAPIError, match="reconciliation is append-only"):
        async with owner.begin() as connection:
            await connection.execute(text(change))
