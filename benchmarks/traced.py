"""`tollgate serve` under cProfile, from one SIGUSR1 to the next: starting and stopping are no part of the profile."""

from __future__ import annotations

import cProfile
import signal
import sys
import time
from types import FrameType

from gateway.cli import main


def run(output: str) -> None:
    """Serve; the statistics are written to `output` at the second signal."""
    # CPU time and not the clock on the wall: on a busy machine that one shows who was interrupted.
    profiler = cProfile.Profile(time.thread_time)
    running = False

    def toggle(number: int, frame: FrameType | None) -> None:
        nonlocal running
        if running:
            profiler.disable()
            profiler.dump_stats(output)
        else:
            profiler.enable()
        running = not running

    signal.signal(signal.SIGUSR1, toggle)
    sys.argv = ["tollgate", "serve"]
    main()


if __name__ == "__main__":
    run(sys.argv[1])
