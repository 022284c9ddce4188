"""`python -m benchmarks.invoices`: how long an invoice run takes, by the charges that there are.

A throw-away Postgres is filled as for `benchmarks.verify`, with all charges in one month; then it is run for all
organizations, as `tollgate invoice run --finalize` does: cut off, drafted, issued with number and posting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.console import Console
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.booking import running_postgres
from benchmarks.ledger import LedgerBuilder
from billing.invoices import Policy, Run, run
from billing.store.engine import make_engine
from billing.store.taxes import set_seller
from models.tables import usage_day

_LIMIT_SECONDS: Final = 10.0
_AT_ONCE: Final = 3
_DAYS: Final = 27
"""Fewer than any month has."""


async def _bill(engine: AsyncEngine, now: datetime) -> dict[date, tuple[int, float]]:
    """Run every month: how many invoices were issued, and the seconds that it took."""
    found = select(usage_day.c.billing_month, usage_day.c.organization_id).distinct()
    async with engine.begin() as connection:
        await set_seller(connection, {"legal_name": "Bench", "country": "DE"})
        rows = (await connection.execute(found)).all()
    runs = {}
    for month in sorted({row.billing_month for row in rows}):
        owners = sorted(row.organization_id for row in rows if row.billing_month == month)
        wanted = Run(month, "benchmark", Policy(), finalizes=True, is_forced=True)
        began = time.perf_counter()
        results = [outcome.result async for outcome in run(engine, wanted, owners, now, at_once=_AT_ONCE)]
        runs[month] = results.count("issued"), time.perf_counter() - began
    return runs


async def _run(app_url: str, charges: int, customers: int) -> dict[date, tuple[int, float]]:
    now = datetime.now(UTC)
    # A call or two may end a little later than this, and none before the month has begun.
    end_of_last = datetime(now.year, now.month, 1, tzinfo=UTC) - timedelta(hours=6)
    engine = make_engine(app_url, pool_size=_AT_ONCE)
    try:
        await LedgerBuilder(engine, end_of_last, customers, days=_DAYS).build(charges)
        # When all of its months have ended.
        return await _bill(engine, datetime(now.year + 1, now.month, 1, tzinfo=UTC))
    finally:
        await engine.dispose()


def main() -> int:
    """Fill, bill and print; the exit code is 1 where a run took longer than ten seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--charges", type=int, default=1_000_000, help="in the ledger (default: %(default)s)")
    parser.add_argument("--customers", type=int, default=160, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-") as directory:
        Path(directory).chmod(0o755)
        with running_postgres(Path(directory)) as (_, _, app_url):
            runs = asyncio.run(_run(app_url, options.charges, options.customers))
    console = Console()
    for month, (issued, seconds) in runs.items():
        each = 1_000 * seconds / max(issued, 1)
        console.print(f"{month:%Y-%m}: {issued} invoices in {seconds:.1f} s, {each:.1f} ms each")
    issued, total = sum(count for count, _ in runs.values()), sum(seconds for _, seconds in runs.values())
    console.print(
        f"{options.charges:,} charges: {issued} invoices in {total:.1f} s; load average {os.getloadavg()[0]:.1f}"
    )
    return int(max(seconds for _, seconds in runs.values()) > _LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
