"""One child of the supervisor: a program that is started, watched, stopped, and never outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.embedded.errors import CannotStart

_SHIM = Path(__file__).with_name("child.py")
_POLL_SECONDS = 0.01


def shim(orphan_signal: signal.Signals, account: str | None = None) -> list[str]:
    """What to put before a program so that it gets `orphan_signal` when we die, and runs as `account`."""
    return [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), str(int(orphan_signal)), account or "-"]


class Child:
    """A running program. `log` receives its output; `stop_signal` asks it to end."""

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        *,
        log: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        orphan_signal: signal.Signals = signal.SIGKILL,
        account: str | None = None,
        environment: Mapping[str, str] | None = None,
        keep_open: tuple[int, ...] = (),
    ) -> None:
        """Start `program` (an absolute path and its arguments). `orphan_signal` is what it gets if we die.

        It inherits the descriptors `keep_open` and no others.

        Call it from the main thread: the kernel sends `orphan_signal` when the thread that started a child ends.
        """
        self.name = name
        self.log = log
        self._stop_signal = stop_signal
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._program = subprocess.Popen(  # noqa: S603 - our own programs, from our own wheels
                [*shim(orphan_signal, account), *program],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=None if environment is None else dict(environment),
                # A group of its own: Ctrl-C reaches the supervisor only, which stops its children in order.
                process_group=0,
                pass_fds=keep_open,
            )

    @property
    def pid(self) -> int:
        """The system's id of the program."""
        return self._program.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._program.poll()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Return when `ready()`; raise `CannotStart` if the program ends first or `seconds` pass."""
        deadline = time.monotonic() + seconds
        while not ready():
            if (code := self.exit_code()) is not None:
                raise CannotStart(f"{self.name} ended while starting (exit code {code}): {self.last_words()}")
            if time.monotonic() > deadline:
                raise CannotStart(f"{self.name} was not ready within {seconds:.0f} s; see {self.log}.")
            time.sleep(_POLL_SECONDS)

    def output(self) -> str:
        """What it has written since it started, the last 20 kB of it."""
        with self.log.open("rb") as output:
            output.seek(self._log_start)
            return output.read()[-20_000:].decode("utf-8", "replace")

    def last_words(self) -> str:
        """The last line of the output that says something, for a sentence about the failure."""
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "ERROR", "rror:", "# "))]
        return (telling or lines or ["it left no message"])[-1]

    def stop(self, seconds: float) -> None:
        """Ask it to end, and after `seconds` make it."""
        self.ask_to_stop()
        try:
            self._program.wait(seconds)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()

    def ask_to_stop(self, seconds: float = 0) -> None:
        """Send the stop signal, and wait at most this long for the end."""
        self.signal(self._stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._program.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program; nothing happens if it has ended."""
        self._program.send_signal(number)
