"""`python -m tests.simulation --seed N --calls N`: exit code 1, the seed and the story where a promise is broken."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.run import Outcome, Servers, seeds, simulate
from tests.simulation.servers import started

_MEMORY_AT: Final = (10, 50, 100)
"""Parts of a run, in per cent, after which it is said how much memory is in use: it must not grow with the calls."""


def main() -> int:
    """Run what was asked for; the exit code."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with started() as servers:
        outcomes, memory_kib, seconds = _run(options, servers, console)
    broken = [outcome for outcome in outcomes if outcome.error is not None]
    _summary(console, options, outcomes, memory_kib, seconds)
    for outcome in broken:
        console.print(f"\nA promise is broken: {outcome.error!r}", markup=False, style="bold red")
        for line in outcome.story:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"\nAgain: make simulate SEED={outcome.seed} CALLS={options.calls_of(outcome.seed)}", markup=False
        )
    return 1 if broken else 0


class _Options(argparse.Namespace):
    seed: int
    calls: int
    minutes: int
    keep_going: bool

    def calls_of(self, seed: int) -> int:
        """How many calls the run of a seed was asked for."""
        return dict(seeds(self.seed, self.calls))[seed]


def _options() -> _Options:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="where all chance comes from")
    parser.add_argument("--calls", type=int, default=10_000, help="calls in all")
    parser.add_argument("--minutes", type=int, default=0, help="stop after the run in which this time has passed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first run that fails")
    return parser.parse_args(namespace=_Options())


def _run(options: _Options, servers: Servers, console: Console) -> tuple[list[Outcome], list[int], float]:
    """The outcomes, the memory in use after each, and the seconds that it took."""
    outcomes: list[Outcome] = []
    memory_kib: list[int] = []
    began, done = time.monotonic(), 0
    with _progress(console) as progress:
        task = progress.add_task("calls", total=options.calls)
        for seed, calls in seeds(options.seed, options.calls):
            outcomes.append(simulate(seed, calls, servers))
            # A run that is over is one large knot: what is left after it goes would be a leak.
            gc.collect()
            memory_kib.append(_resident_kib())
            done += calls
            progress.update(task, completed=done)
            if outcomes[-1].error is not None and not options.keep_going:
                break
            if options.minutes and time.monotonic() - began > options.minutes * 60:
                break
    return outcomes, memory_kib, time.monotonic() - began


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stdout.isatty())


def _summary(
    console: Console, options: _Options, outcomes: list[Outcome], memory_kib: list[int], seconds: float
) -> None:
    calls = sum(outcome.calls for outcome in outcomes)
    table = Table(title=f"{calls:,} calls from seed {options.seed} in {len(outcomes)} runs", title_justify="left")
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
    for percent in _MEMORY_AT:
        kib = memory_kib[(len(memory_kib) * percent - 1) // 100]
        table.add_row(f"memory at {percent} %", f"{kib / 1024:,.1f} MiB")
    table.add_row("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    console.print(table)


def _resident_kib() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))


if __name__ == "__main__":
    sys.exit(main())
