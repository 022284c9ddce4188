"""What can go wrong in a run, and how often it does: each run draws its own weather from its seed.

Not every fault happens in every run: one that always drowns the others would hide what they do alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Final


class Fault(StrEnum):
    """Kinds of faults, by the name they have in a summary."""

    REQUEST_LOST = "command to Redis lost"
    REPLY_LOST = "reply of Redis lost"
    LATE = "command runs after its caller gave up"
    TWICE = "command runs twice"
    REDIS_AWAY = "Redis hangs"
    REDIS_BLANK = "Redis blank"
    REDIS_OLDER = "Redis put back to an older state"
    POSTGRES_AWAY = "Postgres away"
    GATEWAY_KILLED = "gateway killed"
    MEMORY_LOST = "gateway killed, its machine's memory lost"
    DISK_LOST = "gateway killed, its disk lost"
    WRITE_TORN = "last write of a journal torn"
    GATEWAY_FROZEN = "gateway frozen"
    GATEWAY_DRAINED = "gateway drained"
    JOURNAL_FULL = "disk of a journal full"
    END_FORGOTTEN = "end of a call forgotten, and told again"
    WORKER_KILLED = "worker killed"
    WORKER_ASLEEP = "worker asleep"
    JOURNAL_SLOW = "disk of a journal hangs"
    CLIENT_GONE = "client gone"
    CLIENT_SLOW = "client reads slowly"
    BACKEND = "backend misbehaves"


DISASTERS: Final[Mapping[Fault, float]] = {
    Fault.REDIS_AWAY: 15,
    Fault.REDIS_BLANK: 40,
    Fault.REDIS_OLDER: 30,
    Fault.POSTGRES_AWAY: 30,
    Fault.GATEWAY_KILLED: 15,
    Fault.MEMORY_LOST: 30,
    Fault.DISK_LOST: 30,
    Fault.GATEWAY_FROZEN: 20,
    Fault.GATEWAY_DRAINED: 20,
    Fault.JOURNAL_FULL: 20,
    Fault.JOURNAL_SLOW: 20,
    Fault.WORKER_KILLED: 15,
    Fault.WORKER_ASLEEP: 20,
}
"""What befalls a whole part, and the mean of seconds between two of them where a run has it at all."""

_RATES: Final = (0.0, 0.0, 0.002, 0.01, 0.05)
_CALLS_A_SECOND: Final = (40, 80, 160)


@dataclass(frozen=True, slots=True)
class Weather:
    """How often each fault happens in one run; the rates are of each command, step or call."""

    disasters: Mapping[Fault, float] = field(default_factory=dict)
    requests_lost: float = 0.0
    replies_lost: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    worker_killed: float = 0.0
    """Beside the kills among the disasters: of each step of a worker."""
    clients_gone: float = 0.0
    clients_slow: float = 0.0
    backends_bad: float = 0.0
    calls_a_second: int = 40

    @classmethod
    def drawn(cls, seed: int) -> Weather:
        """The weather of one run. It has its chance to itself: no change of the program gives a seed another one."""
        random = Random(f"weather {seed}")
        possible = list(DISASTERS)
        some = random.sample(possible, random.choice((0, 1, 1, 2, 2, 3, 4, len(possible))))
        return cls(
            disasters={fault: DISASTERS[fault] for fault in possible if fault in some},
            requests_lost=random.choice(_RATES),
            replies_lost=random.choice(_RATES),
            late=random.choice(_RATES),
            twice=random.choice(_RATES),
            worker_killed=random.choice(_RATES),
            clients_gone=random.choice((0.0, 0.05, 0.2)),
            clients_slow=random.choice((0.0, 0.002, 0.02)),
            backends_bad=random.choice((0.0, 0.1, 0.4)),
            calls_a_second=random.choice(_CALLS_A_SECOND),
        )

    def first_within(self, calls: int) -> float:
        """Seconds within which each disaster befalls a run of so many calls for the first time: well before its end."""
        return 0.7 * calls / self.calls_a_second

    @property
    def loses_redis(self) -> bool:
        """Whether Redis may forget what it had acknowledged."""
        return bool(self.disasters.keys() & {Fault.REDIS_BLANK, Fault.REDIS_OLDER})


CALM: Final = Weather()
"""Nothing goes wrong any more: what is broken now must mend by itself."""

Faults = Counter[Fault]
"""How often what happened."""
