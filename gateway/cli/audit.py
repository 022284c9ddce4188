"""Commands that check: `verify` the ledger, and `doctor` what it stands on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from billing.hot.store import make_hot_store
from billing.store.engine import make_engine
from billing.verify import PROMISES, Check, Report, Tell
from billing.verify import verify as verify_ledger
from gateway.cli.addresses import DATA_DIRECTORY, FAILED, Stores, end, find_stores
from gateway.doctor import Finding, Patient, examine
from gateway.telemetry import configure_logging
from models.errors import Unavailable

_LONGEST_SECONDS: Final = 900

DataDirectory: TypeAlias = Annotated[
    Path, typer.Option(help="Data directory of `tollgate up`, where the environment names no servers.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Answer in JSON, for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    for command in (verify, doctor):
        app.command()(command)


def verify(data_dir: DataDirectory = DATA_DIRECTORY, as_json: Json = False) -> None:
    """Check on live data that the ledger keeps its promises, P1 to P7; exit code 1 where one does not hold.

    Calls may run meanwhile. Each check says what it compared, and names the first rows that contradict it. For P8
    there is `tollgate reconcile`.

    Example: `tollgate verify --json`
    """
    stores = find_stores(data_dir)
    configure_logging("error")
    try:
        with _progress() as tell:
            report = asyncio.run(_verify(stores, tell))
    except (SQLAlchemyError, OSError, TimeoutError, ValueError) as error:
        end(f"Postgres cannot be asked ({type(error).__name__}). Run `tollgate doctor` to see why.", FAILED)
    except Unavailable as error:
        end(f"{error.message} Run `tollgate doctor` to see why.", FAILED)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        _print(report)
    raise typer.Exit(0 if report.ok else FAILED)


def doctor(data_dir: DataDirectory = DATA_DIRECTORY, as_json: Json = False) -> None:
    """Look at Redis, Postgres, secrets, backends, tokenizers and prices; exit code 1 where something must be mended.

    Example: `tollgate doctor --data-dir .tollgate`
    """
    stores = find_stores(data_dir)
    configure_logging("error")
    patient = Patient(stores.database_url, stores.redis_url, stores.key_pepper)
    findings = asyncio.run(examine(patient, datetime.now(UTC)))
    ok = all(finding.ok for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}))
    else:
        _print_findings(findings)
    raise typer.Exit(0 if ok else FAILED)


async def _verify(stores: Stores, tell: Tell) -> Report:
    engine = make_engine(
        stores.database_url, pool_size=2, application_name="tollgate verify", command_timeout_seconds=_LONGEST_SECONDS
    )
    try:
        hot = await make_hot_store(stores.redis_url)
        try:
            return await verify_ledger(engine, hot, tell)
        finally:
            await hot.close()
    finally:
        await engine.dispose()


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on standard error, where somebody watches it."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda check, done, steps: progress.update(task, description=check, completed=done, total=steps)


def _print(report: Report) -> None:
    console = Console(highlight=False)
    for promise, title in PROMISES.items():
        console.print(f"{promise} {title}", style="bold")
        table = Table.grid(padding=(0, 2, 0, 0))
        # As wide as the longer mark, so that the sentences of all promises stand below one another.
        table.add_column(min_width=len(_mark(ok=False)), no_wrap=True)
        for check in report.checks:
            if check.claim.promise == promise:
                table.add_row(_mark(check.ok), check.claim.sentence)
                table.add_row("", Text(f"{check.name}: {_extent(check)}", style="dim"))
        console.print(table)
    for check in report.checks:
        if not check.ok:
            _print_wrong(console, check)
    if not report.ok:
        console.print("Amounts are ledger units: 10⁻⁹ USD or EUR, 10⁻⁶ KRW or JPY.", style="dim")
    if report.head is not None:
        console.print(
            f"The chain of seals has {report.head.seq:,} postings, to {report.head.posting_id}: {report.head.digest}",
            soft_wrap=True,
        )
    verdict = "Every promise holds" if report.ok else "A promise does not hold"
    console.print(f"{verdict}, on {report.charges:,} charges, in {report.milliseconds / 1_000:,.1f} s.")


def _extent(check: Check) -> str:
    return f"{check.rows:,} {check.claim.unit}, {check.milliseconds / 1_000:,.1f} s"


def _print_wrong(console: Console, check: Check) -> None:
    shown = "" if check.wrong <= len(check.findings) else f", the first {len(check.findings)}"
    console.print(f"{check.claim.promise} {check.name}: {check.wrong:,} wrong{shown}", style="bold red")
    for finding in check.findings:
        # As plain text, and unbroken: ids and reasons may look like markup, and are copied from here.
        console.print(Text(f"  {finding}"), soft_wrap=True)


def _print_findings(findings: Sequence[Finding]) -> None:
    table = Table("", "Checked", "Finding")
    for finding in findings:
        # As plain text: names of models and backends may look like markup.
        table.add_row(_mark(finding.ok), finding.check, Text(finding.sentence))
    Console().print(table)


def _mark(ok: bool) -> Text:
    return Text("ok", style="green") if ok else Text("FAILED", style="bold red")
