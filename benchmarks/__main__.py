"""`python -m benchmarks`: what a call costs beside nginx. Exit code 1 where a limit is passed or a charge missing."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import nginx
from benchmarks.backend import MODELS
from benchmarks.measure import PACES, SCENARIOS, Bench, Target
from benchmarks.profile import chosen, profile
from benchmarks.report import DIRECT, NGINX, TOLLGATE, Report
from benchmarks.tollgate import ROOT, Tollgate

FAILED = 1


def main() -> int:
    """Run what was asked for; the exit code."""
    # Everything that was started is stopped on the way out, also when we are told to end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(FAILED))
    try:
        return _run(_options())
    except RuntimeError as problem:
        sys.stderr.write(f"The benchmark could not be run: {problem}\n")
        return FAILED


def _run(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        # Postgres refuses to run as root, so under root it runs as another account that must get this far.
        directory.chmod(0o755)
        backend_port = stack.enter_context(running_backend())
        tollgate = Tollgate(directory / "tollgate", f"http://127.0.0.1:{backend_port}")
        stack.callback(tollgate.stop)
        bench = Bench()
        stack.callback(bench.close)
        if options.profile:
            sys.stdout.write(profile(bench, tollgate, directory, options.seconds * 5, chosen(options.profile)) + "\n")
            return 0
        report = _measure(bench, tollgate, backend_port, directory, options)
    if options.json:
        sys.stdout.write(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        report.show(Console(width=None if sys.stdout.isatty() else 140))
    return FAILED if report.faults() else 0


def _measure(
    bench: Bench, tollgate: Tollgate, backend_port: int, directory: Path, options: argparse.Namespace
) -> Report:
    parts = {part: pid for part, pid in tollgate.pids.items() if part != "gateway"}
    ours = Target(TOLLGATE, tollgate.port, tollgate.key, (tollgate.pids["gateway"],), parts)
    direct = Target(DIRECT, backend_port, tollgate.key)
    compared, plain = [ours], None
    if (program := nginx.find()) is not None:
        plain = nginx.Nginx(program, directory / "nginx", backend_port, tollgate.key)
        compared.insert(0, Target(NGINX, plain.port, tollgate.key, (plain.pid,)))
    report = Report(options.repetitions, options.seconds, plain.version if plain else None)
    before = os.getloadavg()[0]
    try:
        steps = options.repetitions * (len(SCENARIOS) * len(compared) + len(PACES) * (len(compared) + 1))
        with _progress(steps) as tick:
            for scenario in SCENARIOS:
                report.costs.append(bench.cost(scenario, compared, options.repetitions, options.seconds, tick))
            for pace in PACES:
                targets = [direct, *compared]
                report.latencies.append(bench.latency(pace, targets, options.repetitions, options.seconds, tick))
    finally:
        if plain:
            plain.stop()
    report.load_average = (before, os.getloadavg()[0])
    report.served = bench.served[TOLLGATE]
    report.booked = tollgate.booked(report.served)
    report.verification = tollgate.verify()
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="CPU time per call of a complete Tollgate, beside nginx on the same machine at the same time.",
        epilog="Example: python -m benchmarks --quick --json",
    )
    parser.add_argument("--quick", action="store_true", help="three short repetitions: a look, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repetitions", type=int, help="repetitions (default 7, quick 3)")
    parser.add_argument("--seconds", type=float, help="length of a slot in seconds (default 2, quick 1)")
    parser.add_argument(
        "--profile",
        choices=MODELS,
        nargs="?",
        const=MODELS[0],
        help="measure nothing; show where the gateway's CPU time goes under this load (default answer)",
    )
    options = parser.parse_args()
    options.repetitions = options.repetitions or (3 if options.quick else 7)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    return options


@contextmanager
def running_backend() -> Iterator[int]:
    """The port of a running benchmark backend."""
    program = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.backend"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        yield int(program.stdout.readline())
    finally:
        program.stdin.close()
        program.stdout.close()
        program.wait(10)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where somebody watches it."""
    columns = (TextColumn("measuring"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("measuring", total=steps)
        yield lambda: progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
