"""The runs of a simulation in processes of their own, each with its own servers and every so many-th seed."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty
from typing import Any, Final

from tests.simulation.run import Outcome, seeds, simulate
from tests.simulation.servers import started

_SPAWN: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for: from which seed, how many calls, in how many processes, and when to stop."""

    seed: int
    calls: int
    jobs: int
    minutes: int
    keep_going: bool

    def calls_of(self, seed: int) -> int:
        """How many calls the run of a seed was asked for."""
        return dict(seeds(self.seed, self.calls))[seed]


@dataclass(frozen=True, slots=True)
class Told:
    """One run of one process, and the memory that the process had in use when the run was over, and at most."""

    job: int
    outcome: Outcome
    resident_kib: int
    peak_kib: int


class Jobs:
    """The processes of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._keeps_going = plan.keep_going
        self._queue = _SPAWN.Queue()
        self._stop = _SPAWN.Event()
        self._processes = [
            _SPAWN.Process(target=_work, args=(job, plan, self._stop, self._queue)) for job in range(plan.jobs)
        ]

    def told(self) -> Iterator[Told]:
        """What the processes tell until all are gone."""
        for process in self._processes:
            process.start()
        while True:
            # Asked before: what a process says last may be on its way when it is gone.
            are_running = any(process.is_alive() for process in self._processes)
            try:
                one = self._queue.get(timeout=0.2)
            except Empty:
                if not are_running:
                    return
                continue
            if one.outcome.error is not None and not self._keeps_going:
                self._stop.set()
            yield one

    @property
    def are_whole(self) -> bool:
        """Whether all came to their end, and none was killed or broke."""
        return all(process.exitcode == 0 for process in self._processes)


def _work(job: int, plan: Plan, stop: Any, queue: Any) -> None:
    began = time.monotonic()
    # What a run makes is kept until it is over, so there is little to find in between: a sixth faster.
    gc.set_threshold(50_000, 20, 50)
    with started() as servers:
        for seed, calls in islice(seeds(plan.seed, plan.calls), job, None, plan.jobs):
            outcome = simulate(seed, calls, servers)
            # A run that is over is one large knot: what is left after it goes would be a leak.
            gc.collect()
            queue.put(Told(job, outcome, _resident_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
            is_late = plan.minutes and time.monotonic() - began > plan.minutes * 60
            if is_late or stop.is_set() or (outcome.error is not None and not plan.keep_going):
                break


def _resident_kib() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
