"""Points at which a test lets a program die, as a power cut would; without `TOLLGATE_FAILPOINT` they do nothing."""

from __future__ import annotations

import os
import signal
from typing import Final

_CHOSEN: Final = os.environ.get("TOLLGATE_FAILPOINT")


def failpoint(name: str) -> None:
    """Kill this program at once (SIGKILL) if `TOLLGATE_FAILPOINT` names this point."""
    if name == _CHOSEN:
        os.kill(os.getpid(), signal.SIGKILL)
