"""`python -m tests.simulation --seed N --calls N`: exit code 1, the seed and the story where a promise is broken."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.jobs import Jobs, Plan, Told


def main() -> int:
    """Run what was asked for; the exit code."""
    plan = _plan()
    console = Console(width=None if sys.stdout.isatty() else 120)
    began = time.monotonic()
    told, is_whole = _run(plan, console)
    _summary(console, plan, told, time.monotonic() - began)
    broken = [one.outcome for one in told if one.outcome.error is not None]
    for outcome in broken:
        console.print(f"\nA promise is broken: {outcome.error}", markup=False, style="bold red")
        for line in outcome.story:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(f"\nAgain: make simulate SEED={outcome.seed} CALLS={plan.calls_of(outcome.seed)}", markup=False)
    return 1 if broken or not is_whole else 0


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="where all chance comes from")
    parser.add_argument("--calls", type=int, default=10_000, help="calls in all")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with servers of its own")
    parser.add_argument("--minutes", type=int, default=0, help="stop after the runs in which this time has passed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first run that fails")
    return Plan(**vars(parser.parse_args()))


def _run(plan: Plan, console: Console) -> tuple[list[Told], bool]:
    """All runs in the order in which they ended, and whether every process came to its end."""
    told: list[Told] = []
    jobs = Jobs(plan)
    with _progress(console) as progress:
        task = progress.add_task("calls", total=plan.calls)
        for one in jobs.told():
            told.append(one)
            progress.update(task, advance=one.outcome.calls)
    return told, jobs.are_whole


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stdout.isatty())


def _summary(console: Console, plan: Plan, told: list[Told], seconds: float) -> None:
    outcomes = [one.outcome for one in told]
    calls = sum(outcome.calls for outcome in outcomes)
    table = Table(title=f"{calls:,} calls from seed {plan.seed} in {len(outcomes)} runs", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for title, counts in (
        ("ended", sum((outcome.endings for outcome in outcomes), Counter[str]())),
        ("fault", sum((Counter(map(str, outcome.faults.elements())) for outcome in outcomes), Counter[str]())),
        ("backend", sum((Counter(map(str, outcome.vices.elements())) for outcome in outcomes), Counter[str]())),
    ):
        for name, count in counts.most_common():
            table.add_row(f"{title}: {name}", f"{count:,}")
        table.add_section()
    table.add_row("calls a second", f"{calls / seconds:,.0f}")
    table.add_row(
        "simulated time a second", f"{sum(outcome.simulated_seconds for outcome in outcomes) / seconds:,.0f} s"
    )
    for job in range(plan.jobs):
        _memory(table, [one for one in told if one.job == job])
    console.print(table)


def _memory(table: Table, told: list[Told]) -> None:
    """What a process had in use after each tenth of its runs: it must not grow with the calls."""
    if not told:
        return
    calls = sum(one.outcome.calls for one in told)
    tenths = [told[(len(told) * tenth - 1) // 10].resident_kib // 1024 for tenth in range(1, 11)]
    table.add_row(f"MiB after each tenth of {calls:,} calls", " ".join(map(str, tenths)))
    table.add_row("MiB at most", str(told[-1].peak_kib // 1024))


if __name__ == "__main__":
    sys.exit(main())
