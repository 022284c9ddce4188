"""`python -m benchmarks.journal`: what a settle record costs until it is on disk, by how many wait at a time."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the system's temporary one)")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of each row (default: %(default)s)")
    options = parser.parse_args()
    table = Table("at a time", "records/s", "loop µs", "thread µs", "p50 µs", "p99 µs", title="Journal")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for concurrency in CONCURRENCIES:
            row = uvloop.run(measure(Path(directory), concurrency, options.seconds))
            table.add_row(*row.cells())
    Console().print(table)


if __name__ == "__main__":
    main()
