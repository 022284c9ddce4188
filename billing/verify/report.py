"""What a verification says: one check a promise or more, and the rows that contradict it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

SHOWN_FINDINGS: Final = 20
"""Findings that a check shows; it counts all of them."""


PROMISES: Final = {
    "P1": "No lost charge",
    "P2": "No double charge",
    "P3": "No overdraft",
    "P4": "Write-ahead",
    "P5": "Conservation",
    "P6": "One price",
    "P7": "Invoice = sum of its charges + tax",
}
"""Those of docs/promises.md that live data can show."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that contradicts a promise. Amounts are ledger units of the row's currency."""

    subject: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.subject}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a check claims: `promise` as in docs/promises.md, one sentence on what is compared, and of how many what."""

    name: str
    promise: str
    sentence: str
    unit: str


@dataclass(frozen=True, slots=True)
class Check:
    """A claim after it was looked at: `rows` were compared, `wrong` of them contradict it, the first are shown."""

    claim: Claim
    rows: int
    wrong: int
    findings: tuple[Finding, ...]
    milliseconds: int

    @property
    def name(self) -> str:
        """Name of the claim."""
        return self.claim.name

    @property
    def ok(self) -> bool:
        """Whether the claim holds."""
        return not self.wrong


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last seal: whoever has noted it elsewhere can tell that no posting up to it was changed since."""

    seq: int
    posting_id: int
    digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one run, in the order of the promises, how many charges there were, and the head of the chain."""

    checks: tuple[Check, ...]
    charges: int
    milliseconds: int
    head: ChainHead | None = None

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as `tollgate verify --json` and the operator's API give it."""
        return {
            "object": "verification",
            "ok": self.ok,
            "charges": self.charges,
            "milliseconds": self.milliseconds,
            "chain_head": None if self.head is None else asdict(self.head),
            "checks": [_check_json(check) for check in self.checks],
        }


Tell: TypeAlias = Callable[[str, int, int], None]
"""Hears which check is being made, how many steps are done, and of how many."""


@dataclass(slots=True)
class Tally:
    """A check in the making: what its parts found, one slice of the book after the other."""

    claim: Claim
    rows: int = 0
    wrong: int = 0
    findings: tuple[Finding, ...] = ()
    seconds: float = 0

    def add(self, rows: int, wrong: int = 0, findings: Sequence[Finding] = ()) -> None:
        """Count a part."""
        self.rows += rows
        self.wrong += wrong
        self.findings = (*self.findings, *findings)[:SHOWN_FINDINGS]

    def check(self) -> Check:
        """The check, when all parts are in."""
        return Check(self.claim, self.rows, self.wrong, self.findings, round(self.seconds * 1_000))


def _check_json(check: Check) -> dict[str, Any]:
    return {
        "name": check.claim.name,
        "promise": check.claim.promise,
        "sentence": check.claim.sentence,
        "ok": check.ok,
        "rows": check.rows,
        "unit": check.claim.unit,
        "wrong": check.wrong,
        "milliseconds": check.milliseconds,
        "findings": [asdict(finding) for finding in check.findings],
    }
