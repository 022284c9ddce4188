"""One snapshot of the book, asked piece by piece, so that neither memory nor a statement grows with its years.

A piece is a range of posting ids. Charges are written in the order of their postings, so the rows of a piece lie
together on disk: each check reads them while they are still in memory from the one before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.verify.report import SHOWN_FINDINGS, Finding, Tally

CHARGES_A_SLICE: Final = 250_000

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_SETTINGS: Final = {
    "statement_timeout": "15min",
    # For sorting and grouping the rows of a slice without the disk.
    "work_mem": "32MB",
    # A month's call ids are in its own partition, so calls that are there twice are found month by month.
    "enable_partitionwise_aggregate": "on",
}


@dataclass(frozen=True, slots=True)
class Slice:
    """Postings from `low` to `high`, both inclusive. The first and the last slice reach to the ends of the type."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A read-only transaction that sees one moment: what is booked meanwhile changes nothing in it."""

    connection: AsyncConnection
    charges: int
    slices: tuple[Slice, ...]

    async def ask(self, tally: Tally, query: str, part: Slice | None = None, **parameters: object) -> None:
        """Add to `tally` what `query` answers: rows of `subject`, `expected`, `found`, and whether they are `wrong`.

        The texts are made in a second query, and only where something is wrong. A query about a part of the book
        limits itself to postings between :low and :high.
        """
        counted = f"select count(*), count(*) filter (where wrong) from ({query}) row"  # noqa: S608 - our own queries
        [(rows, wrong)] = await self._run(counted, part, parameters)
        findings: list[Finding] = []
        if wrong and len(tally.findings) < SHOWN_FINDINGS:
            texts = "subject::text, expected::text, found::text"
            shown = f"select {texts} from ({query}) row where wrong order by subject limit :shown"  # noqa: S608
            answer = await self._run(shown, part, {**parameters, "shown": SHOWN_FINDINGS})
            findings = [Finding(*row) for row in answer]
        tally.add(rows, wrong, findings)

    async def rows(self, query: str, part: Slice | None = None, **parameters: object) -> list[Any]:
        """The rows that a query answers."""
        return await self._run(query, part, parameters)

    async def _run(self, query: str, part: Slice | None, parameters: Mapping[str, object]) -> list[Any]:
        statement = text(query)
        if part is not None:
            statement = statement.bindparams(
                bindparam("low", part.low, type_=BigInteger), bindparam("high", part.high, type_=BigInteger)
            )
        return list((await self.connection.execute(statement, dict(parameters))).all())


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[Snapshot]:
    """The book as it is now. Raises SQLAlchemy's errors where Postgres cannot answer."""
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        for name, value in _SETTINGS.items():
            await connection.execute(text(f"set local {name} = '{value}'"))
        charges = (await connection.execute(text("select count(*) from charge"))).scalar_one()
        # By posting, not by charge: also of charges that name a posting which is not there.
        bounds = text("select coalesce(min(id), 0), coalesce(max(id), 0) from posting")
        first, last = (await connection.execute(bounds)).one()
        yield Snapshot(connection, charges, slices(first, last, -(-charges // CHARGES_A_SLICE)))


def slices(first: int, last: int, count: int) -> tuple[Slice, ...]:
    """All there can be, in `count` slices that share the ids from `first` to `last` evenly; at least one slice."""
    count = max(1, min(count, last - first + 1))
    edges = [first + (last - first + 1) * number // count for number in range(1, count)]
    return tuple(Slice(low, high - 1) for low, high in zip([_LOWEST, *edges], [*edges, _HIGHEST + 1], strict=True))
