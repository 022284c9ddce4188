"""Commands that check: `verify` the ledger, and `doctor` what it stands on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from billing.hot.store import make_hot_store
from billing.store.engine import make_engine
from billing.verify import Report
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
    """Check on live data that the ledger keeps its promises; exit code 1 where one does not hold.

    Example: `tollgate verify --json`
    """
    stores = find_stores(data_dir)
    configure_logging("error")
    try:
        report = asyncio.run(_verify(stores))
    except (SQLAlchemyError, OSError, TimeoutError, ValueError) as error:
        end(f"Postgres cannot be asked ({type(error).__name__}). Run `tollgate doctor` to see why.", FAILED)
    except Unavailable as error:
        end(f"{error.message} Run `tollgate doctor` to see why.", FAILED)
    if as_json:
        checks = [{**asdict(check), "ok": check.ok} for check in report.checks]
        typer.echo(json.dumps({"ok": report.ok, "charges": report.charges, "checks": checks}))
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


async def _verify(stores: Stores) -> Report:
    engine = make_engine(
        stores.database_url, pool_size=2, application_name="tollgate verify", command_timeout_seconds=900
    )
    try:
        hot = await make_hot_store(stores.redis_url)
        try:
            return await verify_ledger(engine, hot)
        finally:
            await hot.close()
    finally:
        await engine.dispose()


def _print(report: Report) -> None:
    table = Table("", "Promise", "What contradicts it")
    for check in report.checks:
        table.add_row(_mark(check.ok), check.sentence, Text("\n".join(check.findings)))
    console = Console()
    console.print(table)
    verdict = "Every promise holds" if report.ok else "A promise does not hold"
    console.print(f"{verdict}, on {report.charges:,} charges.", highlight=False)


def _print_findings(findings: Sequence[Finding]) -> None:
    table = Table("", "Checked", "Finding")
    for finding in findings:
        # As plain text: names of models and backends may look like markup.
        table.add_row(_mark(finding.ok), finding.check, Text(finding.sentence))
    Console().print(table)


def _mark(ok: bool) -> Text:
    return Text("ok", style="green") if ok else Text("FAILED", style="bold red")
