"""Reconciliations in Postgres: what each found, what the next one starts from, and the sums of charges they compare."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, ColumnElement, and_, case, func, insert, not_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from models.catalog import Backend, BackendKind
from models.ids import first_uuid7
from models.reconciliation import Base, Counters, LedgerSums, Reconciliation, Verdict
from models.tables import backend as backends
from models.tables import charge, reconciliation
from models.usage import UsageSource

_LOCK: Final = 0x7265636F
"""Advisory lock under which one reconciliation runs at a time ("reco")."""


async def one_at_a_time(connection: AsyncConnection) -> None:
    """Wait for a reconciliation that runs elsewhere, until this transaction ends: two would start from one base."""
    await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


async def enabled_backends(connection: AsyncConnection) -> list[Backend]:
    """The backends that get calls, oldest first."""
    rows = await connection.execute(select(backends).where(backends.c.disabled_at.is_(None)).order_by(backends.c.id))
    return [Backend(row.id, row.name, BackendKind(row.kind), row.url, row.credential) for row in rows]


async def last_base(connection: AsyncConnection, backend: str) -> Base | None:
    """What a backend's next reconciliation starts from; None before the first one.

    One that differs while calls ran is no base: the difference may have been theirs, and would be seen a second time,
    the other way round. The next one then looks over the longer time.
    """
    is_busy = and_(reconciliation.c.verdict == Verdict.DIFFERS.value, reconciliation.c.calls_in_flight > 0)
    found = await fetch_optional(
        connection,
        select(reconciliation)
        .where(reconciliation.c.backend == backend, reconciliation.c.counter_input.is_not(None), not_(is_busy))
        .order_by(reconciliation.c.id.desc())
        .limit(1),
    )
    if found is None:
        return None
    counters = Counters(found.counter_input, found.counter_output, found.input_rounding, found.output_rounding)
    ledger = LedgerSums(found.ledger_input, found.ledger_output, found.ledger_estimated_calls)
    # Equal while calls ran is equal: where both sums agree none of these calls had any tokens yet.
    in_flight = 0 if found.verdict == Verdict.EQUAL.value else found.calls_in_flight
    return Base(found.at, found.counted_from, counters, ledger, in_flight)


async def booked_since(connection: AsyncConnection, backend: str, start: datetime) -> LedgerSums:
    """Sums over the booked charges, with corrections, of a backend's calls that began at `start` or later."""
    is_estimated = charge.c.usage_source != UsageSource.BACKEND.value
    row = await fetch_one(
        connection,
        select(
            func.coalesce(func.sum(_tokens("input", charge.c.input_tokens)), 0).label("input"),
            func.coalesce(func.sum(_tokens("output", charge.c.output_tokens)), 0).label("output"),
            func.count().filter(is_estimated).label("estimated"),
        ).where(charge.c.deployment == backend, charge.c.call_id >= first_uuid7(start)),
    )
    return LedgerSums(int(row.input), int(row.output), int(row.estimated))


def _tokens(meter: str, column: ColumnElement[int]) -> ColumnElement[int]:
    """Tokens of a charge. Columns cannot be negative, so a correction has its signed difference in `counted`."""
    signed = charge.c.counted["difference"][meter].as_string().cast(BigInteger)
    return case((charge.c.corrects.is_not(None), func.coalesce(signed, column)), else_=column)


async def keep(connection: AsyncConnection, result: Reconciliation) -> AnyRow:
    """Store the result for one backend; answers its row."""
    values: dict[str, object] = {
        "backend": result.backend,
        "at": result.at,
        "since": result.since,
        "verdict": result.comparison.verdict.value,
        "reason": result.reason,
        "counted_from": result.counted_from,
    }
    if (measure := result.measure) is not None:
        values |= {
            "calls_in_flight": measure.calls_in_flight,
            "counter_input": measure.counters.input,
            "counter_output": measure.counters.output,
            "input_rounding": measure.counters.input_rounding,
            "output_rounding": measure.counters.output_rounding,
            "ledger_input": measure.since_next.input,
            "ledger_output": measure.since_next.output,
            "ledger_estimated_calls": measure.since_next.estimated_calls,
        }
    metered, charged = result.comparison.metered, result.comparison.charged
    if metered is not None and charged is not None:
        values |= {
            "metered_input": metered.input,
            "metered_output": metered.output,
            "charged_input": charged.input,
            "charged_output": charged.output,
            "estimated_calls": charged.estimated_calls,
        }
    return await fetch_one(connection, insert(reconciliation).values(values).returning(reconciliation))


async def list_reconciliations(
    connection: AsyncConnection, backend: str | None, page: Page
) -> tuple[list[AnyRow], bool]:
    """A page of results, of one backend where named; its cursor is the number of a result."""
    statement = select(reconciliation)
    if backend is not None:
        statement = statement.where(reconciliation.c.backend == backend)
    return await fetch_page(connection, statement, reconciliation.c.id, page)
