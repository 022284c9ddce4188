"""Measuring: the same load on each target in turn, CPU time before and after, and ratios within each repetition."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.backend import ANSWER, BURST, PACED
from benchmarks.cpu import cpu_ns, threads_ns, tree
from benchmarks.load import Order
from benchmarks.tollgate import ROOT

PATH = "/v1/chat/completions"
PROMPT = "Say the same thing as always, please, and at the usual length. " * 10
MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load whose CPU time per request is compared. `limit` is the highest ratio to nginx that passes."""

    name: str
    model: str
    streamed: bool
    concurrency: int
    limit: float


@dataclass(frozen=True, slots=True)
class Pace:
    """A load at a low fixed rate, of which the latency added to the backend's own is told."""

    name: str
    model: str
    streamed: bool
    rate_per_second: float


SCENARIOS = (
    Scenario("answer of 1 KB, not streamed", ANSWER, streamed=False, concurrency=16, limit=15.0),
    Scenario("66 events, no gap", BURST, streamed=True, concurrency=8, limit=6.0),
    Scenario("66 events, 1 ms apart", PACED, streamed=True, concurrency=8, limit=6.0),
)
PACES = (
    Pace("answer of 1 KB, not streamed", ANSWER, streamed=False, rate_per_second=60),
    Pace("66 events, no gap", BURST, streamed=True, rate_per_second=10),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where load is sent. `pids` are the roots of the process trees whose CPU time is counted to it."""

    name: str
    port: int
    key: str
    pids: tuple[int, ...] = ()
    beside: Mapping[str, int] = field(default_factory=dict)
    """Other parts that work for it, by name: told apart, because nginx has none."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One turn of one target: requests, and CPU nanoseconds of the target and of the parts beside it.

    `threads_ns` is the part of `cpu_ns` that was spent outside the first thread of each process.
    """

    requests: int
    cpu_ns: int
    beside_ns: Mapping[str, int]
    threads_ns: int

    @property
    def cpu_us_per_request(self) -> float:
        """Microseconds of CPU time per request."""
        return self.cpu_ns / 1_000 / self.requests


@dataclass(slots=True)
class Cost:
    """CPU time in one scenario, slots by target in the order of the repetitions."""

    scenario: Scenario
    slots: dict[str, list[Slot]] = field(default_factory=dict)

    def microseconds(self, target: str) -> list[float]:
        """CPU time per request, one number a repetition."""
        return [slot.cpu_us_per_request for slot in self.slots.get(target, ())]

    def threads_microseconds(self, target: str) -> list[float]:
        """CPU time per request outside the first threads, one number a repetition."""
        return [slot.threads_ns / 1_000 / slot.requests for slot in self.slots.get(target, ())]

    def beside_microseconds(self, target: str) -> dict[str, float]:
        """Median CPU time per request of each part beside the target."""
        slots = self.slots.get(target, [])
        parts = slots[0].beside_ns if slots else {}
        return {
            part: statistics.median(slot.beside_ns[part] / 1_000 / slot.requests for slot in slots) for part in parts
        }

    def ratios(self, target: str, other: str) -> list[float]:
        """CPU time per request of `target` over that of `other` in the same repetition."""
        pairs = zip(self.microseconds(target), self.microseconds(other), strict=False)
        return [one / base for one, base in pairs]


@dataclass(slots=True)
class Latency:
    """Latencies at one pace, in nanoseconds by target: one list of samples a repetition."""

    pace: Pace
    whole_ns: dict[str, list[list[int]]] = field(default_factory=dict)
    first_ns: dict[str, list[list[int]]] = field(default_factory=dict)

    def added_us(self, samples: Mapping[str, list[list[int]]], target: str, direct: str, quantile: float) -> float:
        """Median over the repetitions of the quantile's distance to the backend's own, in microseconds."""
        pairs = zip(samples[target], samples[direct], strict=True)
        return statistics.median(_quantile(one, quantile) - _quantile(base, quantile) for one, base in pairs) / 1_000


def _quantile(samples: list[int], quantile: float) -> int:
    return sorted(samples)[min(len(samples) - 1, int(quantile * len(samples)))]


class Bench:
    """Sends load through a program of its own, and counts what each target has served."""

    def __init__(self) -> None:
        self._load = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.served: dict[str, int] = {}

    def close(self) -> None:
        """End the program that sends."""
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        # Not by closing its input alone: when we are interrupted it is in the middle of an order.
        self._load.terminate()
        self._load.wait(10)
        self._load.stdin.close()
        self._load.stdout.close()

    def cost(
        self, scenario: Scenario, targets: Iterable[Target], repetitions: int, seconds: float, tick: Callable[[], None]
    ) -> Cost:
        """Slots of `seconds` in turn, after one that warms up. Raises `RuntimeError` for any answer that is wrong."""
        cost = Cost(scenario)
        turns = list(targets)
        for target in turns:
            self._slot(target, scenario, seconds / 2)
        for _ in range(repetitions):
            for target in turns:
                cost.slots.setdefault(target.name, []).append(self._slot(target, scenario, seconds))
                tick()
            # Whoever goes second finds warmer caches, or a busier neighbour: take turns in that as well.
            turns.reverse()
        return cost

    def latency(
        self, pace: Pace, targets: Iterable[Target], repetitions: int, seconds: float, tick: Callable[[], None]
    ) -> Latency:
        """Open-loop latencies in turn. Raises `RuntimeError` for any answer that is wrong."""
        latency = Latency(pace)
        turns = list(targets)
        for _ in range(repetitions):
            for target in turns:
                order = order_for(target, pace.model, pace.streamed, seconds, rate_per_second=pace.rate_per_second)
                outcome = self.send(target, order)
                latency.whole_ns.setdefault(target.name, []).append(outcome["whole_ns"])
                latency.first_ns.setdefault(target.name, []).append(outcome["first_ns"])
                tick()
            turns.reverse()
        return latency

    def send(self, target: Target, order: Order) -> dict[str, Any]:
        """Carry out one order; the fields of `benchmarks.load.Outcome`."""
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write(json.dumps(asdict(order)) + "\n")
        self._load.stdin.flush()
        line = self._load.stdout.readline()
        if not line:
            raise RuntimeError("the program that sends the load has ended")
        outcome: dict[str, Any] = json.loads(line)
        self.served[target.name] = self.served.get(target.name, 0) + outcome["completed"]
        if outcome["failed"] or not outcome["completed"]:
            raise RuntimeError(f"{target.name} failed {outcome['failed']} requests, first: {outcome['failure']}")
        return outcome

    def _slot(self, target: Target, scenario: Scenario, seconds: float) -> Slot:
        order = order_for(target, scenario.model, scenario.streamed, seconds, concurrency=scenario.concurrency)
        pids = [pid for root in target.pids for pid in tree(root)]
        beside = {part: tree(root) for part, root in target.beside.items()}
        threads_before = threads_ns(pids)
        before, beside_before = cpu_ns(pids), {part: cpu_ns(found) for part, found in beside.items()}
        # All that was sent is answered when this returns: nothing in flight at the second reading.
        outcome = self.send(target, order)
        spent, in_threads = cpu_ns(pids) - before, threads_ns(pids) - threads_before
        beside_ns = {part: cpu_ns(found) - beside_before[part] for part, found in beside.items()}
        return Slot(outcome["completed"], spent, beside_ns, in_threads)


def order_for(
    target: Target, model: str, streamed: bool, seconds: float, concurrency: int = 1, rate_per_second: float = 0
) -> Order:
    """What to send to `target`; an open loop where there is a rate."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0.7,
    }
    if streamed:
        # Usage asked for, so that Tollgate has nothing to take out and both send the same 66 events.
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Order(
        host="127.0.0.1",
        port=target.port,
        path=PATH,
        key=target.key,
        body=json.dumps(body),
        streamed=streamed,
        seconds=seconds,
        concurrency=concurrency,
        rate_per_second=rate_per_second,
    )
