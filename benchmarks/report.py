"""The result of a run: whether it passes, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Cost, Latency

TOLLGATE, NGINX, DIRECT = "tollgate", "nginx", "direct"
_LIBRARIES = ("uvicorn", "uvloop", "httptools", "msgspec", "redis", "hiredis", "fastapi")


@dataclass(slots=True)
class Report:
    """What one run has found."""

    repetitions: int
    slot_seconds: float
    nginx_version: str | None
    costs: list[Cost] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    served: int = 0
    booked: int = 0
    verification: str = ""
    load_average: tuple[float, float] = (0.0, 0.0)
    """Of the machine, over one minute, before and after."""

    def faults(self) -> list[str]:
        """Why the run does not pass, one sentence each."""
        faults = []
        for cost in self.costs:
            ratios = cost.ratios(TOLLGATE, NGINX)
            if ratios and statistics.median(ratios) > cost.scenario.limit:
                faults.append(
                    f"{cost.scenario.name}: {statistics.median(ratios):.2f} × nginx, and the limit is "
                    f"{cost.scenario.limit:g}."
                )
        if self.booked != self.served:
            faults.append(f"{self.served} calls were served and {self.booked} charges are booked.")
        if self.verification:
            faults.append(f"`tollgate verify` finds: {self.verification}")
        return faults

    def as_json(self) -> dict[str, Any]:
        """Everything, ratios first. CPU times are microseconds per request, latencies microseconds over direct."""
        return {
            "passed": not self.faults(),
            "faults": self.faults(),
            "cpu": [_cost_json(cost) for cost in self.costs],
            "latency": [_latency_json(latency) for latency in self.latencies],
            "correctness": {"served": self.served, "booked": self.booked, "verify": self.verification or "clean"},
            "conditions": self.conditions(),
        }

    def conditions(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "cores": os.cpu_count(),
            "load_average_before_and_after": list(self.load_average),
            "repetitions": self.repetitions,
            "slot_seconds": self.slot_seconds,
            "nginx": self.nginx_version,
            "python": platform.python_version(),
            **{library: version(library) for library in ("tollgate", *_LIBRARIES)},
        }

    def show(self, console: Console) -> None:
        """Print it, ratios first."""
        console.print(self._cost_table())
        console.print(self._beside_table())
        if self.latencies:
            console.print(self._latency_table())
        conditions = self.conditions()
        libraries = ", ".join(f"{name} {conditions[name]}" for name in ("python", *_LIBRARIES))
        before, after = self.load_average
        console.print(
            f"Tollgate {conditions['tollgate']}, nginx {self.nginx_version or 'absent'}, {libraries}. "
            f"{conditions['cores']} cores, load average {before:.1f} before and {after:.1f} after; "
            f"{self.repetitions} repetitions of {self.slot_seconds:g} s slots in turn. Key check, hold, settlement, "
            "durable ledger and logging as `tollgate up` runs them; loopback, no TLS."
        )
        console.print(
            f"{self.served:,} calls served, {self.booked:,} charges booked; verify: {self.verification or 'clean'}."
        )
        if self.nginx_version is None:
            console.print("nginx is not installed, so there is no ratio and nothing to pass (Debian: nginx-light).")
        for fault in self.faults():
            console.print(f"FAILED: {fault}", style="bold red")

    def _cost_table(self) -> Table:
        table = Table(title="CPU time per request", title_justify="left")
        for column in ("load", "at a time", "× nginx (min–max)", "limit", "gateway µs", "nginx µs"):
            table.add_column(column, justify="left" if column == "load" else "right")
        for cost in self.costs:
            ratios = cost.ratios(TOLLGATE, NGINX)
            table.add_row(
                cost.scenario.name,
                str(cost.scenario.concurrency),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "-",
                f"{cost.scenario.limit:g}",
                _spread(cost.microseconds(TOLLGATE)),
                _spread(cost.microseconds(NGINX)),
            )
        return table

    def _beside_table(self) -> Table:
        table = Table(title="CPU time per request beside the gateway, µs", title_justify="left")
        table.add_column("load")
        for part in self.costs[0].beside_microseconds(TOLLGATE):
            table.add_column(part, justify="right")
        for cost in self.costs:
            table.add_row(cost.scenario.name, *(f"{us:.0f}" for us in cost.beside_microseconds(TOLLGATE).values()))
        return table

    def _latency_table(self) -> Table:
        table = Table(title="Latency over direct, open loop, from the moment due", title_justify="left")
        for column in ("load", "a second", "through", "p50 µs", "p99 µs", "first byte p50 µs"):
            table.add_column(column, justify="left" if column in ("load", "through") else "right")
        for latency in self.latencies:
            for target in latency.whole_ns:
                if target != DIRECT:
                    added = _added(latency, target)
                    numbers = (f"{number:.0f}" for number in added.values())
                    table.add_row(latency.pace.name, f"{latency.pace.rate_per_second:g}", target, *numbers)
        return table


def _cost_json(cost: Cost) -> dict[str, Any]:
    ratios = cost.ratios(TOLLGATE, NGINX)
    return {
        "load": cost.scenario.name,
        "concurrency": cost.scenario.concurrency,
        "ratio_to_nginx": _numbers(ratios),
        "limit": cost.scenario.limit,
        "cpu_us_per_request": {target: _numbers(cost.microseconds(target)) for target in cost.slots},
        "beside_us_per_request": {part: round(us, 1) for part, us in cost.beside_microseconds(TOLLGATE).items()},
        "requests": {target: sum(slot.requests for slot in slots) for target, slots in cost.slots.items()},
    }


def _latency_json(latency: Latency) -> dict[str, Any]:
    return {
        "load": latency.pace.name,
        "rate_per_second": latency.pace.rate_per_second,
        "added_us": {
            target: {name: round(number, 1) for name, number in _added(latency, target).items()}
            for target in latency.whole_ns
            if target != DIRECT
        },
    }


def _added(latency: Latency, target: str) -> dict[str, float]:
    return {
        "p50": latency.added_us(latency.whole_ns, target, DIRECT, 0.50),
        "p99": latency.added_us(latency.whole_ns, target, DIRECT, 0.99),
        "first_byte_p50": latency.added_us(latency.first_ns, target, DIRECT, 0.50),
    }


def _numbers(numbers: list[float]) -> dict[str, float] | None:
    if not numbers:
        return None
    return {
        "median": round(statistics.median(numbers), 2),
        "min": round(min(numbers), 2),
        "max": round(max(numbers), 2),
    }


def _spread(numbers: list[float]) -> str:
    return f"{statistics.median(numbers):.0f} ({min(numbers):.0f}–{max(numbers):.0f})" if numbers else "-"
