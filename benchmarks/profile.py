"""Where the gateway's CPU time goes: one more gateway on the same Postgres and Redis, under a profiler."""

from __future__ import annotations

import pstats
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import SCENARIOS, Bench, Scenario, Target, order_for
from benchmarks.tollgate import ROOT, Tollgate

SHOWN_FUNCTIONS = 45
_READY_SECONDS = 60.0


def profile(bench: Bench, tollgate: Tollgate, directory: Path, seconds: float, scenario: Scenario) -> str:
    """Load one scenario on a profiled gateway; the profile as text.

    py-spy where it is installed: it disturbs nothing, but tells elapsed time, so that on a busy machine the writes at
    which the gateway was interrupted look dear. Else cProfile, on CPU time: short functions look dearer than they are.
    """
    output = directory / "profile"
    sampler = shutil.which("py-spy")
    program = ("-m", "gateway.cli", "serve") if sampler else ("-m", "benchmarks.traced", str(output))
    with tollgate.gateway(directory / "profiled.log", program) as (port, gateway):
        target = Target("profiled", port, tollgate.key)
        bench.send(target, order_for(target, scenario.model, scenario.streamed, 1.0, scenario.concurrency))
        order = order_for(target, scenario.model, scenario.streamed, seconds, scenario.concurrency)
        recording = _sample(sampler, gateway, seconds, output) if sampler else _trace(gateway, output)
        with recording:
            outcome = bench.send(target, order)
    head = f"{scenario.name}, {scenario.concurrency} at a time, {outcome['completed']} requests\n"
    return head + (_sampled(output) if sampler else _traced(output))


@contextmanager
def _sample(sampler: str, gateway: subprocess.Popen[bytes], seconds: float, output: Path) -> Iterator[None]:
    program = [sampler, "record", "--pid", str(gateway.pid), "--duration", str(int(seconds)), "--rate", "500"]
    program += ["--function", "--format", "raw", "--output", str(output)]
    spy = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - py-spy
    yield
    spy.wait(seconds + 30)


@contextmanager
def _trace(gateway: subprocess.Popen[bytes], output: Path) -> Iterator[None]:
    gateway.send_signal(signal.SIGUSR1)
    yield
    gateway.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _READY_SECONDS
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    # Written in one go by a process that is alive: what exists is whole a moment later.
    time.sleep(0.5)


def chosen(name: str) -> Scenario:
    """The scenario whose model is `name`."""
    return next(scenario for scenario in SCENARIOS if scenario.model == name)


def _sampled(path: Path) -> str:
    """Samples of py-spy by function: alone, and with what it calls."""
    alone: dict[str, int] = {}
    within: dict[str, int] = {}
    total = 0
    for line in path.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        total += int(samples)
        alone[frames[-1]] = alone.get(frames[-1], 0) + int(samples)
        for frame in set(frames):
            within[frame] = within.get(frame, 0) + int(samples)
    rows = sorted(alone.items(), key=lambda row: -row[1])[:SHOWN_FUNCTIONS]
    lines = [
        f"{100 * own / total:6.1f} % alone {100 * within[name] / total:6.1f} % within  {name}" for name, own in rows
    ]
    return "\n".join(lines)


def _traced(path: Path) -> str:
    """cProfile's table by own time."""
    text = path.with_suffix(".txt")
    with text.open("w") as output:
        pstats.Stats(str(path), stream=output).sort_stats("tottime").print_stats(SHOWN_FUNCTIONS)
    return text.read_text().replace(f"{ROOT}/", "")
