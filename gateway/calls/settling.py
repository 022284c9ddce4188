"""A charge on its way to the journal's disk and to the hot store, both at once: the last byte waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from billing.failpoints import failpoint
from billing.hot.entries import encode_charge
from billing.journal.settles import settle_record
from gateway.calls.running import Running
from models.call import Charge, Hold
from models.errors import Unavailable

SETTLE_PATIENCE_SECONDS: Final = 2.0
"""How long a client waits for its last byte while the ledger is away; the settling itself never gives up."""
JOURNAL_PATIENCE_SECONDS: Final = 1.0
"""How long a disk may take to write; after that Redis alone carries the charge."""

_log = structlog.get_logger("tollgate.calls")


class Settling:
    """`then` is called once, when the charge is durable: on disk, or where that fails taken by the hot store.

    Where the hot store is away the charge goes on being offered to it in the background, for as long as it takes.
    """

    __slots__ = (
        "_charge",
        "_hold",
        "_is_heard",
        "_is_journaled",
        "_is_over",
        "_running",
        "_then",
        "late_at",
        "underway",
    )

    def __init__(self, running: Running, hold: Hold, charge: Charge, then: Callable[[], None]) -> None:
        self._running = running
        self._hold = hold
        self._charge = charge
        self._then = then
        self._is_journaled: bool | None = None
        self._is_heard: bool | None = None
        self._is_over = False
        self.late_at = float("inf")
        self.underway: asyncio.Task[None] | None = None
        """The settling that goes on in the background."""

    @property
    def is_durable(self) -> bool:
        """Whether the charge would outlive this process."""
        return bool(self._is_journaled or self._is_heard or (self.underway is not None and self.underway.done()))

    def begin(self) -> None:
        """Write to both. The journal first: its thread works while Redis does."""
        running, hold, charge = self._running, self._hold, self._charge
        encoded = b""
        try:
            encoded = encode_charge(charge)
            if running.journal is None:
                self._is_journaled = False
            else:
                self.late_at = asyncio.get_running_loop().time() + JOURNAL_PATIENCE_SECONDS
                record = settle_record(hold, charge, encoded)
                running.journal.start(record, self._journaled, in_flight=len(running.drivers))
        except Exception:
            # Whatever is wrong with our record or our disk, the hold must end: no sweeper does it while we live.
            _log.exception("charge_not_journaled", call_id=charge.call_id)
            self._journaled(Unavailable("The journal did not take the charge."))
        running.hot.start_settle(hold, charge, self._answered, encoded)

    def journal_is_late(self) -> None:
        """The disk does not answer: Redis alone must do."""
        self._journaled(Unavailable("The journal's disk does not answer."))

    def _journaled(self, error: Unavailable | None) -> None:
        if self._is_journaled is None:
            self.late_at = float("inf")
            self._is_journaled = error is None
            failpoint("after_journal")
            self._look()

    def _answered(self, answer: int | Unavailable) -> None:
        self._is_heard = not isinstance(answer, Unavailable)
        failpoint("after_settle")
        self._look()

    def _look(self) -> None:
        if self._is_over or self._is_journaled is None or self._is_heard is None:
            return
        self._is_over = True
        if self._is_heard:
            self._then()
            return
        task = self.underway = self._running.settle(self._hold, self._charge)
        if self._is_journaled:
            self._then()
        else:
            self._running.detach(self._be_patient(task))

    async def _be_patient(self, task: asyncio.Task[None]) -> None:
        await asyncio.wait({task}, timeout=SETTLE_PATIENCE_SECONDS)
        self._then()
