"""The command `export`: the ledger as files for finance, fetched from a running gateway and checked on arrival."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from billing.exports import EXCEL_ROWS, KINDS
from billing.exports.focus_check import DATA_SETS
from billing.exports.focus_check import check as check_focus
from gateway.cli.addresses import DATA_DIRECTORY, FAILED, STRANGE_KEY, USAGE, end, find_operated

_TIMEOUT = httpx.Timeout(30, read=300)
_FAULTS_SHOWN = 20


class Profile(StrEnum):
    """Who is to read it."""

    EXCEL = "excel"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that has arrived: the watermark that repeats it, and its digest."""

    watermark: str
    sha256: str


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(export)


def export(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of: {', '.join(KINDS)}.")],
    out: Annotated[
        Path, typer.Option("--out", "--output", help="File to write; its manifest goes beside as FILE.manifest.json.")
    ],
    start: Annotated[str | None, typer.Option("--from", help="First instant, such as 2026-03-01 (UTC).")] = None,
    stop: Annotated[str | None, typer.Option("--to", help="Instant after the last, such as 2026-04-01 (UTC).")] = None,
    org: Annotated[
        str | None, typer.Option("--org", "--organization", help="Only the organization of this id.")
    ] = None,
    since: Annotated[int | None, typer.Option(help="Only what is newer than the export of this watermark.")] = None,
    watermark: Annotated[int | None, typer.Option(help="Repeat the export of this watermark, to the byte.")] = None,
    profile: Annotated[Profile, typer.Option(help="`excel` adds the byte order mark that it needs.")] = Profile.MACHINE,
    excel: Annotated[bool, typer.Option("--excel", help="The same as --profile excel.")] = False,
    url: Annotated[str | None, typer.Option(help="Address of the gateway; else TOLLGATE_URL.")] = None,
    operator_key: Annotated[str | None, typer.Option(help="Better in TOLLGATE_OPERATOR_KEY.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Data directory of `tollgate up`.")] = DATA_DIRECTORY,
    check: Annotated[bool, typer.Option("--check", help="Of FOCUS: examine the file, tell what is wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Write a file for finance, and check that what arrived is what the ledger holds; exit code 1 where it is not.

    Example: `tollgate export charges --from 2026-03-01 --to 2026-04-01 --out march.csv`
    """
    if kind not in KINDS:
        end(f"There is no export {kind}. There is: {', '.join(KINDS)}.", USAGE)
    if check and kind not in DATA_SETS:
        end(f"Only FOCUS files are examined: {', '.join(DATA_SETS)}.", USAGE)
    is_excel = excel or profile is Profile.EXCEL
    asked = {"from": _instant("--from", start), "to": _instant("--to", stop), "organization": org}
    asked |= {"watermark": _number(watermark), "since": _number(since), "profile": "excel" if is_excel else None}
    given = {name: value for name, value in asked.items() if value is not None}
    operated = find_operated(data_dir, url, operator_key)
    headers = {"authorization": f"Bearer {operated.operator_key}"}
    try:
        with httpx.Client(base_url=operated.url, headers=headers, timeout=_TIMEOUT) as client:
            manifest = _export(client, kind, given, out)
            faults = _faults(client, kind, given, manifest, out) if check else []
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        end(f"The gateway at {operated.url} does not answer ({type(error).__name__}). Is it running?", FAILED)
    except OSError as error:
        end(f"{out} cannot be written: {error.strerror}.", FAILED)
    if as_json:
        typer.echo(json.dumps(manifest))
    else:
        _print(manifest, out)
    if faults:
        for fault in faults[:_FAULTS_SHOWN]:
            typer.echo(fault, err=True)
        end(f"{out} is not what FOCUS asks for: {len(faults):,} faults.", FAILED)


def _export(client: httpx.Client, kind: str, asked: dict[str, str], out: Path) -> dict[str, Any]:
    path = f"/operator/v1/exports/{kind}"
    with _beside(out) as part:
        arrived = _fetch(client, path, asked, part)
        answer = client.get(path, params=asked | {"watermark": arrived.watermark, "manifest": "true"})
        _demand_success(answer)
        manifest: dict[str, Any] = answer.json()
        # The manifest is made from the ledger once more: a file that was cut short or changed on its way shows here.
        if manifest["sha256"] != arrived.sha256:
            end("What arrived is not what the ledger holds; nothing was written. Run the export again.", FAILED)
        part.replace(out)
    out.with_name(f"{out.name}.manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _faults(client: httpx.Client, kind: str, asked: dict[str, str], manifest: dict[str, Any], out: Path) -> list[str]:
    """What is wrong in a FOCUS file. Whole books are also compared with the invoices of the same watermark."""
    payable: dict[str, Decimal] | None = None
    if not {"from", "to"} & asked.keys():
        answer = client.get(
            "/operator/v1/exports/invoices",
            params={name: asked[name] for name in ("organization",) if name in asked}
            | {"watermark": manifest["watermark"]},
        )
        _demand_success(answer)
        rows = csv.DictReader(io.StringIO(answer.text, newline=""), strict=True)
        payable = {row["number"]: Decimal(row["total"]) for row in rows if row["status"] != "void"}
    with out.open(encoding="utf-8-sig", newline="") as file:
        return list(check_focus(kind, file, payable))


def _fetch(client: httpx.Client, path: str, asked: dict[str, str], part: Path) -> Arrived:
    """Stream the file to disk with a progress bar on stderr, where there is a terminal."""
    digest = hashlib.sha256()
    with client.stream("GET", path, params=asked) as answer, _progress() as progress, part.open("wb") as file:
        if answer.status_code >= 400:
            answer.read()
        _demand_success(answer)
        # What is not counted beforehand is shown as moving, without an end.
        rows = answer.headers.get("x-tollgate-rows")
        task = progress.add_task(path.rpartition("/")[2], total=None if rows is None else int(rows))
        for chunk in answer.iter_bytes():
            file.write(chunk)
            digest.update(chunk)
            progress.advance(task, chunk.count(b"\r\n"))
        if rows is not None:
            progress.update(task, completed=int(rows))
        file.flush()
        os.fsync(file.fileno())
        return Arrived(answer.headers["x-tollgate-watermark"], digest.hexdigest())


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A file beside `out` that goes away unless it is moved: `out` is never half of an export."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _demand_success(answer: httpx.Response) -> None:
    if answer.status_code < 400:
        return
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        end(f"The gateway {STRANGE_KEY}", FAILED)
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "The gateway gave no reason."
    end(f"The gateway refused ({answer.status_code}): {message}", USAGE if answer.status_code in (400, 422) else FAILED)


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)


def _instant(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        end(f"{option} must be a date or an instant, such as 2026-03-01 or 2026-03-01T09:00:00Z.", USAGE)


def _print(manifest: dict[str, Any], out: Path) -> None:
    totals = ", ".join(f"{amount} {currency}" for currency, amount in manifest["totals"].items()) or "nothing"
    rows = "charges" if manifest["kind"] == "charges" else "rows"
    typer.echo(f"{out}: {manifest['rows']:,} {rows}, {totals}.")
    typer.echo(f"Watermark {manifest['watermark']}, sha256 {manifest['sha256']}.")
    if manifest.get("files", 1) > 1:
        typer.echo(f"Excel shows the first {EXCEL_ROWS:,}; export shorter periods with --from and --to.", err=True)
