"""`python -m benchmarks.exports`: rows a second of the charges CSV, and the memory that it takes.

Exit code 1 where the file is not what its manifest says, or fewer rows come a second than the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.verify import _build, _progress, _running_servers
from billing.exports import KINDS, Manifest, Wanted, begin_export, stream
from billing.store.engine import make_engine

LIMIT: Final = 150_000
"""Rows of charges a second, on two cores."""

_KINDS: Final = ("charges", "charges", "charges", "journal", "hledger", "parquet")


@dataclass(frozen=True, slots=True)
class Run:
    """One export into a file: CPU of the exporter (`own_seconds`) and of its backends in Postgres, and memory."""

    kind: str
    rows: int
    size: int
    seconds: float
    own_seconds: float
    postgres_seconds: float
    grown_mib: float
    load: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


def main() -> int:
    """Build a ledger, export it, and compare with the limit; the exit code."""
    options = _options()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-exports-")))
        # Postgres refuses to run as root, so under root it runs as another account that must get this far.
        directory.chmod(0o755)
        servers = stack.enter_context(_running_servers(directory))
        with _progress(options.charges) as tick:
            asyncio.run(_build(servers, options.charges, tick))
        runs = asyncio.run(_measure(servers.database_url, directory / "file"))
    best = max(run.rate for run in runs if run.kind == "charges")
    if options.json:
        sys.stdout.write(json.dumps({"best": best, "runs": [asdict(run) for run in runs]}, indent=2) + "\n")
    else:
        _show(runs, Console(width=None if sys.stdout.isatty() else 120))
    return 0 if best >= LIMIT else 1


async def _measure(database_url: str, path: Path) -> list[Run]:
    engine = make_engine(database_url, command_timeout_seconds=600)
    try:
        return [await _run(engine, kind, path) for kind in _KINDS]
    finally:
        await engine.dispose()


async def _run(engine: AsyncEngine, kind: str, path: Path) -> Run:
    export = await begin_export(engine, KINDS[kind], Wanted())
    manifest = Manifest(export)
    resident = _forget_peak()
    backends = await _backend_seconds(engine)
    began, cpu = time.perf_counter(), time.process_time()
    with path.open("wb") as file:
        async for piece in stream(engine, export, manifest):
            file.write(piece)
    seconds, own = time.perf_counter() - began, time.process_time() - cpu
    theirs = await _backend_seconds(engine) - backends
    grown = (_kib("VmHWM") - resident) / 1_024
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256:
            sys.exit(f"The file of {kind} is not what its manifest says.")
        size = file.seek(0, os.SEEK_END)
    return Run(kind, manifest.rows, size, seconds, own, theirs, grown, os.getloadavg()[0])


async def _backend_seconds(engine: AsyncEngine) -> float:
    """CPU that the server processes of our connections have used."""
    async with engine.connect() as connection:
        found = await connection.execute(text("select pid from pg_stat_activity where usename = current_user"))
        return sum(map(_cpu_seconds, found.scalars()))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _forget_peak() -> int:
    """Have the kernel look for the peak anew; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _kib("VmRSS")


def _kib(name: str) -> int:
    """A figure of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _show(runs: list[Run], console: Console) -> None:
    table = Table("export")
    for name in ("rows", "MiB", "seconds", "rows/s", "own CPU s", "Postgres CPU s", "grown by MiB", "load"):
        table.add_column(name, justify="right")
    for run in runs:
        numbers = (f"{run.rows:,}", f"{run.size / 2**20:,.0f}", f"{run.seconds:.2f}", f"{run.rate:,.0f}")
        table.add_row(
            run.kind,
            *numbers,
            f"{run.own_seconds:.2f}",
            f"{run.postgres_seconds:.2f}",
            f"{run.grown_mib:.0f}",
            f"{run.load:.1f}",
        )
    console.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exports",
        description="Rows a second of the charges CSV from a ledger of many charges, which is built first.",
        epilog="Example: python -m benchmarks.exports --charges 100000 --json",
    )
    parser.add_argument("--charges", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.charges < 1:
        parser.error("--charges: there is nothing to export without a charge")
    return options


if __name__ == "__main__":
    sys.exit(main())
