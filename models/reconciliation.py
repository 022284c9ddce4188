"""What a reconciliation compares: a backend's own token counters, and what the ledger charged for its calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Verdict(StrEnum):
    """What came of reconciling one backend."""

    BASELINE = "baseline"
    EQUAL = "equal"
    DIFFERS = "differs"
    RESTARTED = "restarted"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Counters:
    """Tokens a backend has processed since it started, by its own count; `input` includes what its cache served.

    Either number is off by at most its `rounding`, in tokens: llama.cpp prints six digits, however large a number is.
    """

    input: int
    output: int
    input_rounding: int = 0
    output_rounding: int = 0


@dataclass(frozen=True, slots=True)
class LedgerSums:
    """Sums over charges: tokens, and how many of the calls were charged by another count than the backend's last."""

    input: int = 0
    output: int = 0
    estimated_calls: int = 0

    def __add__(self, other: LedgerSums) -> LedgerSums:
        return LedgerSums(
            self.input + other.input, self.output + other.output, self.estimated_calls + other.estimated_calls
        )

    def __sub__(self, other: LedgerSums) -> LedgerSums:
        return LedgerSums(
            self.input - other.input, self.output - other.output, self.estimated_calls - other.estimated_calls
        )


@dataclass(frozen=True, slots=True)
class Base:
    """What a backend is compared with: its last reconciliation; `ledger` sums the calls begun at `counted_from` or
    later. `calls_in_flight` ran when it was taken, so the counters had a part of their tokens and the ledger none."""

    at: datetime
    counted_from: datetime
    counters: Counters
    ledger: LedgerSums
    calls_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Measure:
    """One look at a backend and at the ledger. `since_base` sums what the base did, `since_next` what the next
    reconciliation will start from."""

    counters: Counters
    since_base: LedgerSums
    since_next: LedgerSums
    calls_in_flight: int
    is_steady: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tokens since the base by the backend's count (`metered`) and by the ledger's (`charged`), where comparable."""

    verdict: Verdict
    metered: LedgerSums | None = None
    charged: LedgerSums | None = None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result for one backend. `reason` says why there is no `measure`, or why a difference is not one."""

    backend: str
    at: datetime
    since: datetime | None
    counted_from: datetime
    comparison: Comparison
    measure: Measure | None = None
    reason: str | None = None
