"""`python -m benchmarks.journal`: what a settle record costs until it is on disk, by how many wait at a time.

With `--gateway`, also what it costs a whole gateway, and which bytes wait for it: two gateways on the same Postgres and
Redis, one with a journal and one without, get the same load in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import running_backend
from benchmarks.backend import ANSWER, BURST
from benchmarks.measure import Bench, Pace, Scenario, Target
from benchmarks.tollgate import Tollgate
from billing.journal.frames import Record
from billing.journal.journal import open_journal
from models.ids import uuid7

CONCURRENCIES = (1, 16, 64, 256)
PAYLOAD_BYTES = 1_400
"""About what a hold and a charge need."""
_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """One run: `loop_us` is CPU of the event loop's thread per record, `thread_us` that of the writing thread."""

    concurrency: int
    records: int
    seconds: float
    loop_us: float
    thread_us: float
    latencies_us: list[float]

    def cells(self) -> list[str]:
        """The row of the table."""
        hundredths = statistics.quantiles(self.latencies_us, n=100)
        numbers = (self.records / self.seconds, self.loop_us, self.thread_us, hundredths[49], hundredths[98])
        return [str(self.concurrency), *(f"{number:,.1f}" if number < 100 else f"{number:,.0f}" for number in numbers)]


async def measure(directory: Path, concurrency: int, seconds: float) -> Row:
    """Callers that append, wait, and append again. Each is three lines on the loop, and they are part of the figure."""
    journal = open_journal(directory, uuid7(datetime.now(UTC)))
    payload = bytes(PAYLOAD_BYTES)
    latencies: list[float] = []
    clock = time.perf_counter
    # Ids are made before, as they are in a call: the journal only gets them.
    call_ids = [uuid7(datetime.now(UTC)) for _ in range(10_000)]

    async def call(number: int) -> None:
        while (began := clock()) < end:
            number = (number + concurrency) % len(call_ids)
            await journal.append(Record(1, call_ids[number], payload))
            latencies.append(clock() - began)
            if len(latencies) % 4_096 == 0:
                # As the owner does when Postgres has booked them, or the disk would fill.
                journal.forget(journal.unconfirmed())

    await asyncio.gather(*(journal.append(Record(1, call_id, payload)) for call_id in call_ids[:256]))
    loop_ns, process_ns, began = time.thread_time_ns(), time.process_time_ns(), clock()
    end = began + seconds
    await asyncio.gather(*(call(number) for number in range(concurrency)))
    took = clock() - began
    loop_ns, process_ns = time.thread_time_ns() - loop_ns, time.process_time_ns() - process_ns
    count = len(latencies)
    await journal.close()
    journal.forget(journal.unconfirmed())
    per_record = 1_000 * count
    return Row(
        concurrency,
        count,
        took,
        loop_ns / per_record,
        (process_ns - loop_ns) / per_record,
        [latency * 1e6 for latency in latencies],
    )


def compare(repetitions: int, seconds: float) -> Table:
    """Two gateways in turn: CPU of each call at 64 at a time, first and last byte of a stream at a low rate."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        directory.chmod(0o755)
        tollgate = Tollgate(directory / "tollgate", f"http://127.0.0.1:{stack.enter_context(running_backend())}")
        stack.callback(tollgate.stop)
        bench = Bench()
        stack.callback(bench.close)
        targets = []
        for name, settings in (("with", {"TOLLGATE_JOURNAL_DIR": str(directory / "journal")}), ("without", {})):
            port, process = stack.enter_context(tollgate.gateway(directory / f"{name}.log", **settings))
            targets.append(Target(name, port, tollgate.key, (process.pid,)))
        busy = Scenario("at 64 at a time", ANSWER, streamed=False, concurrency=64, limit=0)
        calm = Pace("stream", BURST, streamed=True, rate_per_second=20)
        cost = bench.cost(busy, targets, repetitions, seconds, lambda: None)
        latency = bench.latency(calm, targets, repetitions, seconds, lambda: None)
    table = Table("a gateway", "with a journal", "without", "difference, paired", title="Journal in a gateway")
    rows = (
        ("CPU µs a call, 64 at a time", cost.microseconds("with"), cost.microseconds("without")),
        ("of it in threads", cost.threads_microseconds("with"), cost.threads_microseconds("without")),
        ("first byte p50 µs, 20 streams/s", _medians(latency.first_ns["with"]), _medians(latency.first_ns["without"])),
        ("last byte p50 µs, 20 streams/s", _medians(latency.whole_ns["with"]), _medians(latency.whole_ns["without"])),
    )
    for name, having, lacking in rows:
        apart = [one - other for one, other in zip(having, lacking, strict=True)]
        spread = f"{statistics.median(apart):,.0f} ({min(apart):,.0f} to {max(apart):,.0f})"
        table.add_row(name, f"{statistics.median(having):,.0f}", f"{statistics.median(lacking):,.0f}", spread)
    return table


def _medians(samples: list[list[int]]) -> list[float]:
    """The median of each repetition, in microseconds."""
    return [statistics.median(repetition) / 1_000 for repetition in samples]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the system's temporary one)")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of each row (default: %(default)s)")
    parser.add_argument("--gateway", action="store_true", help="compare two gateways, one without a journal, as well")
    parser.add_argument("--repetitions", type=int, default=7, help="of that comparison (default: %(default)s)")
    options = parser.parse_args()
    table = Table("at a time", "records/s", "loop µs", "thread µs", "p50 µs", "p99 µs", title="Journal")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for concurrency in CONCURRENCIES:
            row = uvloop.run(measure(Path(directory), concurrency, options.seconds))
            table.add_row(*row.cells())
    Console().print(table)
    if options.gateway:
        Console().print(compare(options.repetitions, options.seconds))


if __name__ == "__main__":
    main()
