"""The command `reconcile`: the ledger's tokens against the backends' own counters."""

from __future__ import annotations

from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.addresses import DATA_DIRECTORY, FAILED
from gateway.cli.operator_client import AsJson, DataDirectory, Key, Url, operator_client

_SENTENCES: Final = {
    "baseline": "first look: what comes from now on is compared",
    "equal": "the ledger has what the backend counted",
    "differs": "the ledger does not have what the backend counted",
    "restarted": "its counters began anew: what comes from now on is compared",
}
_COLORS: Final = {"differs": "bold red", "unreachable": "bold red", "restarted": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reconcile)


def reconcile(
    url: Url = None, operator_key: Key = None, data_dir: DataDirectory = DATA_DIRECTORY, as_json: AsJson = False
) -> None:
    """Compare the ledger's tokens with the backends' own counters since the last time, and keep the result.

    Exit code 1 where they differ, or a backend cannot be asked. Best at a quiet moment: calls that run are counted by
    the backend before the ledger has them.

    Example: `tollgate reconcile --json`
    """
    with operator_client(data_dir, url, operator_key, as_json) as client:
        run = client.post("/reconciliation")
        if as_json:
            client.show(run, ())
        else:
            _print(run)
    raise typer.Exit(0 if run["ok"] else FAILED)


def _print(run: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table("Backend", "Verdict", "Input tokens (backend / ledger)", "Output tokens", "Finding")
    for result in run["data"]:
        verdict = Text(result["verdict"], style=_COLORS.get(result["verdict"], "green"))
        # As plain text: names and reasons may look like markup.
        table.add_row(Text(result["backend"]), verdict, *_tokens(result), Text(_finding(result)))
    console.print(table)
    if run["without_counters"]:
        console.print(Text(f"Without counters of their own: {', '.join(run['without_counters'])}."))


def _tokens(result: dict[str, Any]) -> tuple[str, str]:
    """Metered and charged tokens, or what the counters show where there is nothing to compare yet."""
    if result["metered"] is None:
        counters = result["counters"] or {}
        return _number(counters.get("input_tokens")), _number(counters.get("output_tokens"))
    sides = [(result["metered"][meter], result["charged"][meter]) for meter in ("input_tokens", "output_tokens")]
    first, second = (
        f"{metered:,}" if metered == charged else f"{metered:,} / {charged:,}" for metered, charged in sides
    )
    return first, second


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _finding(result: dict[str, Any]) -> str:
    sentence = result["reason"] or _SENTENCES[result["verdict"]]
    difference = result["difference"]
    if difference is not None and any(difference.values()):
        sentence += f" (by {difference['input_tokens']:+,} and {difference['output_tokens']:+,} tokens)"
    if result["calls_in_flight"]:
        sentence += (
            f"; calls in flight meanwhile, whose tokens are not in the ledger yet: {result['calls_in_flight']:,}"
        )
    if result["estimated_calls"]:
        sentence += f"; calls charged by another count than the backend's: {result['estimated_calls']:,}"
    return sentence
