"""`python -m benchmarks.booking`: how many charges a second the worker's booking takes, rollups and all.

Backlogs of settled charges are booked as a worker books them, a thousand of a shard in a transaction, three shards at
a time, on a Postgres with the settings of `tollgate up`. Only Redis is left out: entries are in memory. The CPU that
both programs took is told beside the rate, because other work on the machine changes the rate and hardly the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.ledger import LedgerBuilder
from billing.hot.entries import encode_charge
from billing.hot.keys import SHARDS, shard_of
from billing.hot.store import StreamEntry
from billing.sealing import seal_postings
from billing.settlement import book_entries
from billing.store import shards
from billing.store.engine import make_engine
from gateway.embedded import postgres as embedded_postgres
from gateway.embedded.postgres import Postgres
from migrations.run import migrate

_BATCH: Final = 1_000
_HANDS: Final = 3
_OWNER, _APP = "tollgate_owner", "tollgate_app"
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Booked:
    """One backlog: how long it took, and the CPU of this program and of Postgres, in microseconds a charge."""

    charges: int
    rows_before: int
    postings: int
    seconds: float
    python_us: float
    postgres_us: float
    load_average: float

    @property
    def rate(self) -> float:
        """Charges a second, as it was."""
        return self.charges / self.seconds


def main() -> int:
    """Book, and say how fast."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="tollgate-booking-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)
        postgres, owner_url, app_url = stack.enter_context(running_postgres(directory))
        results = asyncio.run(_run(postgres, owner_url, app_url, options))
    if options.json:
        sys.stdout.write(json.dumps([asdict(result) | {"rate": round(result.rate)} for result in results]) + "\n")
        return 0
    for result in results:
        total = result.python_us + result.postgres_us
        sys.stdout.write(
            f"{result.rows_before:>9,} rows before: {result.charges:,} charges in {result.postings:,} postings,"
            f" {result.rate:,.0f}/s; CPU a charge {result.python_us:.1f} µs here, {result.postgres_us:.1f} µs in"
            f" Postgres, so {2_000_000 / total:,.0f}/s of two whole cores; load average {result.load_average:.1f}\n"
        )
    return 0


async def _run(postgres: Postgres, owner_url: str, app_url: str, options: argparse.Namespace) -> list[Booked]:
    engine = make_engine(app_url, pool_size=4, command_timeout_seconds=600)
    try:
        now = datetime.now(UTC)
        builder = LedgerBuilder(engine, now, customers=options.customers)
        await builder.open()
        results, before = [], 0
        # A first one that is not told: plans, caches and files are made by it.
        await _book(engine, _backlog(builder.calls(now - timedelta(hours=2), 5_000)), [0] * SHARDS)
        before += 5_000
        counts = [options.charges, *([options.fill - options.charges, options.charges] if options.fill else [])]
        for number, count in enumerate(counts):
            moment = now - timedelta(hours=1) + timedelta(minutes=number)
            started = [0] * SHARDS
            done, postings = 0, await _count(owner_url, "posting")
            load = os.getloadavg()[0]
            here, there, began = time.process_time(), _cpu_seconds(postgres.child.pid), 0.0
            making = 0.0
            profile = cProfile.Profile() if options.profile and number == 0 else None
            spent = 0.0
            while done < count:
                size = min(100_000, count - done)
                made = time.process_time()
                backlog = _backlog(builder.calls(moment + timedelta(milliseconds=done), size))
                # A worker has no backlog in its memory that the garbage collector would walk through.
                gc.collect()
                gc.freeze()
                making += time.process_time() - made
                began = time.perf_counter()
                if profile is not None:
                    profile.enable()
                await _book(engine, backlog, started)
                if profile is not None:
                    profile.disable()
                spent += time.perf_counter() - began
                done += size
                gc.unfreeze()
            results.append(
                Booked(
                    done,
                    before,
                    await _count(owner_url, "posting") - postings,
                    spent,
                    (time.process_time() - here - making) / done * 1_000_000,
                    (_cpu_seconds(postgres.child.pid) - there) / done * 1_000_000,
                    load,
                )
            )
            before += done
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile)
        began = time.perf_counter()
        sealed = 0
        while count := await seal_postings(engine):
            sealed += count
        sys.stderr.write(f"sealed {sealed:,} postings in {time.perf_counter() - began:.1f} s\n")
        return results
    finally:
        await engine.dispose()


def _backlog(charges: Sequence[object]) -> list[list[StreamEntry]]:
    """Entries by shard, as they lie on the streams."""
    streams: list[list[StreamEntry]] = [[] for _ in range(SHARDS)]
    settled: dict[object, int] = {}
    for charge in charges:
        owner = charge.organization_id  # type: ignore[attr-defined]
        settled[owner] = settled.get(owner, 0) + charge.amount  # type: ignore[attr-defined]
        stream = streams[shard_of(owner)]
        milliseconds = int(charge.ended_at.timestamp() * 1_000)  # type: ignore[attr-defined]
        stream.append(
            StreamEntry(f"{milliseconds}-{len(stream)}", encode_charge(charge), settled[owner], False)  # type: ignore[arg-type]
        )
    return streams


async def _book(engine: AsyncEngine, streams: list[list[StreamEntry]], _started: list[int]) -> None:
    hands = asyncio.Semaphore(_HANDS)

    async def book(shard: int, entries: list[StreamEntry]) -> None:
        for at in range(0, len(entries), _BATCH):
            batch = entries[at : at + _BATCH]
            async with hands, engine.begin() as connection:
                lease = await shards.lease(connection, shard)
                assert lease is not None, "nobody else books"
                booked = await book_entries(connection, lease, batch)
                assert booked.charges == len(batch), booked
                await shards.move(connection, lease, booked.position)

    await asyncio.gather(*(book(shard, entries) for shard, entries in enumerate(streams)))


async def _count(owner_url: str, table: str) -> int:
    owner = await asyncpg.connect(owner_url)
    try:
        counted: int = await owner.fetchval(f"select count(*) from {table}")  # noqa: S608 - our own names
        return counted
    finally:
        await owner.close()


def _cpu_seconds(pid: int) -> float:
    """CPU of a server and of all its processes, those that have ended included."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat.parent.name) == pid:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == pid:
            total += sum(map(int, fields[11:13]))
    return total / _TICKS


@contextmanager
def running_postgres(directory: Path) -> Iterator[tuple[Postgres, str, str]]:
    """A migrated Postgres with the settings of `tollgate up`, the owner's address and the program's."""
    word, log = embedded_postgres.new_password(), directory / "postgres.log"
    embedded_postgres.initialise(directory / "postgres", word, log=log)
    postgres = embedded_postgres.start(directory / "postgres", word, log=log)
    try:
        for role in (_OWNER, _APP):
            asyncio.run(embedded_postgres.create_role(postgres, role, word))
        asyncio.run(embedded_postgres.create_database(postgres, "tollgate", _OWNER))
        owner_url = postgres.url("tollgate", _OWNER, word)
        migrate(owner_url, _APP)
        yield postgres, owner_url, postgres.url("tollgate", _APP, word)
    finally:
        postgres.child.stop(seconds=30)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.booking",
        description="Charges a second that are booked with their sums, and the CPU a charge.",
        epilog="Example: python -m benchmarks.booking --charges 100000 --fill 1000000",
    )
    parser.add_argument("--charges", type=int, default=60_000, help="of each backlog (default: %(default)s)")
    parser.add_argument("--fill", type=int, default=0, help="book again when so many rows are there")
    parser.add_argument("--customers", type=int, default=160, help="(default: %(default)s)")
    parser.add_argument("--profile", type=int, default=0, metavar="LINES", help="show where this program computes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
