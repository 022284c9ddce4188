"""How often and how soon a child that ended is started again. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0
MOST = 5
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5.0


@dataclass(slots=True)
class Restarts:
    """The ends of one child within the last minute."""

    ends: list[float] = field(default_factory=list)

    def after(self, now: float) -> float | None:
        """Seconds to wait before starting again after an end at `now`; None: it has ended too often, give up."""
        self.ends = [end for end in self.ends if now - end < WINDOW_SECONDS]
        self.ends.append(now)
        if len(self.ends) > MOST:
            return None
        return min(FIRST_DELAY_SECONDS * (1 << len(self.ends) - 1), LONGEST_DELAY_SECONDS)
