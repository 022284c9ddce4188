"""`python -m benchmarks.verify`: what it takes to verify a large ledger, and that one wrong row in it is found.

Exit code 1 where the ledger is not clean, the tampering is not found, or it takes longer than the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.ledger import LedgerBuilder
from benchmarks.tollgate import ROOT
from billing.hot.keys import SHARDS
from billing.hot.store import make_hot_store
from billing.rebuild import ensure_epoch
from billing.sealing import seal_postings
from billing.store.engine import make_engine
from gateway.embedded import postgres as embedded_postgres
from gateway.embedded import redis as embedded_redis
from migrations.run import migrate

LIMIT_SECONDS: Final = 30
"""For a million charges; in proportion for more."""

_OWNER, _APP = "tollgate_owner", "tollgate_app"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `tollgate verify` as a program: its report, how long it took in all, and what it needed itself."""

    report: dict[str, Any]
    exit_code: int
    wall_seconds: float
    cpu_seconds: float
    peak_mib: float

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check["name"] for check in self.report["checks"] if not check["ok"]]


@dataclass(frozen=True, slots=True)
class Servers:
    """URLs of the throw-away servers."""

    owner_url: str
    database_url: str
    redis_url: str


def main() -> int:
    """Build, verify, tamper, verify again; the exit code."""
    options = _options()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-verify-")))
        # Postgres refuses to run as root, so under root it runs as another account that must get this far.
        directory.chmod(0o755)
        servers = stack.enter_context(_running_servers(directory))
        with _progress(options.charges) as tick:
            built_seconds, size = asyncio.run(_build(servers, options.charges, tick))
        load_before = os.getloadavg()[0]
        clean = _verify(servers)
        load_after = os.getloadavg()[0]
        tampered_call = asyncio.run(_tamper(servers))
        tampered = _verify(servers)
    result = {
        "passed": not (faults := _faults(clean, tampered, tampered_call)),
        "faults": faults,
        "charges": clean.report["charges"],
        "database_bytes": size,
        "build_seconds": round(built_seconds, 1),
        "load_average": [load_before, load_after],
        "clean": asdict(clean),
        "tampered": {"call": tampered_call, "failed": tampered.failed, "wall_seconds": tampered.wall_seconds},
    }
    if options.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        _show(result, clean, Console(width=None if sys.stdout.isatty() else 120))
    return 1 if faults else 0


def _faults(clean: Run, tampered: Run, call: str) -> list[str]:
    faults = []
    if clean.exit_code != 0 or not clean.report["ok"]:
        faults.append(f"an honest ledger is not clean: {', '.join(clean.failed)}")
    if (limit := LIMIT_SECONDS * max(1, clean.report["charges"] / 1_000_000)) < clean.wall_seconds:
        faults.append(f"{clean.wall_seconds:.1f} s is longer than {limit:.0f} s")
    if tampered.exit_code != 1 or call not in json.dumps(tampered.report):
        faults.append(f"the changed amount of call {call} is not found")
    return faults


def _show(result: dict[str, Any], clean: Run, console: Console) -> None:
    table = Table("promise", "check", title=f"tollgate verify on {result['charges']:,} charges")
    for name in ("rows", "seconds"):
        table.add_column(name, justify="right")
    for check in clean.report["checks"]:
        rows, seconds = f"{check['rows']:,} {check['unit']}", f"{check['milliseconds'] / 1_000:.2f}"
        table.add_row(check["promise"], check["name"], rows, seconds)
    console.print(table)
    load_before, load_after = result["load_average"]
    console.print(
        f"{clean.wall_seconds:.1f} s in all as a program, of which it computed {clean.cpu_seconds:.1f} s itself;"
        f" {clean.peak_mib:.0f} MiB of memory at most. The database has {result['database_bytes'] / 2**20:,.0f} MiB,"
        f" built in {result['build_seconds']:.0f} s. Load average {load_before:.1f} before, {load_after:.1f} after.",
        highlight=False,
    )
    tampered = result["tampered"]
    console.print(
        f"One unit less on call {tampered['call']}: found by {', '.join(tampered['failed']) or 'nothing'}, in"
        f" {tampered['wall_seconds']:.1f} s.",
        highlight=False,
    )
    for fault in result["faults"]:
        console.print(f"FAILED: {fault}", style="bold red", highlight=False)


# The ledger ----------------------------------------------------------------------------------------------------------


@contextmanager
def _running_servers(directory: Path) -> Iterator[Servers]:
    """A Postgres and a Redis with the settings of `tollgate up`; they sync as rarely as they can, for the building."""
    word, log = embedded_postgres.new_password(), directory / "postgres.log"
    embedded_postgres.initialise(directory / "postgres", word, log=log)
    settings = {"fsync": "off", "synchronous_commit": "off", "max_wal_size": "8GB"}
    with ExitStack() as stack:
        postgres = embedded_postgres.start(directory / "postgres", word, log=log, settings=settings)
        stack.callback(postgres.child.stop, seconds=30)
        redis = embedded_redis.start(directory / "redis", word, log=directory / "redis.log")
        stack.callback(redis.child.stop, seconds=10)
        for role in (_OWNER, _APP):
            asyncio.run(embedded_postgres.create_role(postgres, role, word))
        asyncio.run(embedded_postgres.create_database(postgres, "tollgate", _OWNER))
        owner_url = postgres.url("tollgate", _OWNER, word)
        migrate(owner_url, _APP)
        yield Servers(owner_url, postgres.url("tollgate", _APP, word), redis.url)


async def _build(servers: Servers, charges: int, tick: Callable[[int], None]) -> tuple[float, int]:
    """Fill the book and bring its balances to Redis; the seconds it took, and the bytes it has."""
    began = time.perf_counter()
    engine = make_engine(servers.database_url, command_timeout_seconds=600)
    hot = await make_hot_store(servers.redis_url)
    try:
        await LedgerBuilder(engine, datetime.now(UTC)).build(charges, tick)
        while await seal_postings(engine):
            pass
        for shard in range(SHARDS):
            await ensure_epoch(engine, hot, shard)
    finally:
        await hot.close()
        await engine.dispose()
    owner = await asyncpg.connect(servers.owner_url)
    try:
        # What autovacuum would have done in the course of the months.
        await owner.execute("vacuum analyze")
        size: int = await owner.fetchval("select pg_database_size(current_database())")
    finally:
        await owner.close()
    return time.perf_counter() - began, size


async def _tamper(servers: Servers) -> str:
    """Take one unit off one charge in the middle, as only the owner can; the id of its call."""
    owner = await asyncpg.connect(servers.owner_url)
    try:
        await owner.execute("alter table charge disable trigger user")
        middle = "select call_id from charge where amount > 0 and corrects is null order by call_id offset $1 limit 1"
        offset = await owner.fetchval("select count(*) / 2 from charge")
        call = await owner.fetchval(middle, offset)
        await owner.execute("update charge set amount = amount - 1 where call_id = $1", call)
    finally:
        await owner.close()
    return str(call)


# The run -------------------------------------------------------------------------------------------------------------


def _verify(servers: Servers) -> Run:
    """Run the command as an operator does, and ask the kernel what it needed."""
    environment = os.environ | {
        "TOLLGATE_DATABASE_URL": servers.database_url,
        "TOLLGATE_REDIS_URL": servers.redis_url,
    }
    peak_kib = 0
    with tempfile.TemporaryFile() as answer:
        began = time.perf_counter()
        program = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "verify", "--json"], env=environment, cwd=ROOT, stdout=answer
        )
        # What the kernel keeps as the peak of a child that has ended counts our own memory, from before its exec.
        while not (ended := os.wait4(program.pid, os.WNOHANG))[0]:
            peak_kib = max(peak_kib, _peak_kib(program.pid))
            time.sleep(0.02)
        wall_seconds = time.perf_counter() - began
        _, status, used = ended
        program.returncode = os.waitstatus_to_exitcode(status)
        answer.seek(0)
        try:
            report = json.load(answer)
        except ValueError:
            sys.exit(f"`tollgate verify` ended with {program.returncode} and without a report")
    return Run(report, program.returncode, wall_seconds, used.ru_utime + used.ru_stime, peak_kib / 1_024)


def _peak_kib(pid: int) -> int:
    """Largest resident memory of a program so far; 0 where it has just ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verify",
        description="Seconds and memory of `tollgate verify` on a ledger of many charges, which is built first.",
        epilog="Example: python -m benchmarks.verify --charges 100000 --json",
    )
    parser.add_argument("--charges", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.charges < 1:
        parser.error("--charges: there is nothing to verify without a charge")
    return options


@contextmanager
def _progress(charges: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where somebody watches it."""
    columns = (TextColumn("booking charges"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=charges)
        yield lambda more: progress.advance(task, more)


if __name__ == "__main__":
    sys.exit(main())
