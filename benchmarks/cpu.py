"""CPU time of processes, from the kernel's own accounting."""

from __future__ import annotations

import time
from pathlib import Path

# <linux/posix-timers.h>: the clock of a whole process, counted by the scheduler in nanoseconds. It is what
# /proc/<pid>/task/*/schedstat adds up to, and keeps the time of threads that have ended.
_CPUCLOCK_SCHED = 2


def tree(pid: int) -> list[int]:
    """`pid` and everything it has started, as far as it still runs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name stands in brackets and may contain anything; the parent is the second field after it.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it ended while we looked
    found = [pid]
    for one in found:
        found.extend(child for child, parent in parents.items() if parent == one)
    return found


def cpu_ns(pids: list[int]) -> int:
    """Nanoseconds on a CPU, user and system, of all threads of `pids` since each started."""
    total = 0
    for pid in pids:
        try:
            total += time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
        except OSError:
            continue  # it has ended; a reading before it ended is already taken
    return total


def threads_ns(pids: list[int]) -> int:
    """Nanoseconds on a CPU of the threads of `pids` that run now, without the first thread of each."""
    total = 0
    for pid in pids:
        try:
            threads = [entry for entry in Path(f"/proc/{pid}/task").iterdir() if entry.name != str(pid)]
        except OSError:
            continue
        for entry in threads:
            try:
                total += int((entry / "schedstat").read_text().split()[0])
            except OSError:
                continue
    return total
