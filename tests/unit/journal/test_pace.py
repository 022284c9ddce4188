"""When records go to the disk: a lone one at once, those of a crowd together, and never later than their company."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

import pytest

from billing.journal.batches import CROWD, PACE_SECONDS, Batches, JournalUnavailable
from billing.journal.frames import Record
from models.ids import uuid7


class Hours:
    """Of an event loop, what is used here: a clock that stands still, and one timer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: tuple[float, Callable[[], object]] | None = None

    def time(self) -> float:
        """The loop's time."""
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Hours:
        """Set the timer, which is this loop itself."""
        self.due = (when, callback)
        return self

    def cancel(self) -> None:
        """The timer's."""
        self.due = None

    def pass_by(self, seconds: float) -> None:
        """Let time go on, and a timer that falls due do its work."""
        self.now += seconds
        if self.due is not None and self.due[0] <= self.now:
            _, callback = self.due
            callback()


@dataclass(slots=True)
class Desk:
    """Batches, what they had written, and what was told."""

    loop: Hours = field(default_factory=Hours)
    written: list[int] = field(default_factory=list)
    told: list[JournalUnavailable | None] = field(default_factory=list)
    batches: Batches = field(init=False)

    def __post_init__(self) -> None:
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.batches = Batches(loop, lambda records: self.written.append(len(records)))

    def add(self, in_flight: int) -> None:
        record = Record(1, uuid7(datetime.now(UTC)), b"{}")
        self.batches.add(record, self.told.append, in_flight)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_lone_call_never_waits(desk: Desk) -> None:
    for _ in range(3):
        desk.add(in_flight=CROWD - 1)
    assert desk.written == [1, 1, 1]


def test_the_first_of_a_crowd_goes_at_once_and_the_next_ones_together(desk: Desk) -> None:
    desk.add(in_flight=20)
    desk.add(in_flight=20)
    desk.add(in_flight=20)
    assert desk.written == [1]
    desk.loop.pass_by(PACE_SECONDS[0])
    assert desk.written == [1, 2]


@pytest.mark.parametrize(("in_flight", "seconds"), [(20, 0.008), (48, 0.012), (64, 0.016), (1_000, 0.016)])
def test_how_long_a_crowd_waits(desk: Desk, in_flight: int, seconds: float) -> None:
    desk.add(in_flight)
    desk.add(in_flight)
    assert desk.loop.due is not None
    assert desk.loop.due[0] - desk.loop.now == pytest.approx(seconds)


def test_nobody_waits_for_company_that_cannot_come(desk: Desk) -> None:
    desk.add(in_flight=4)
    desk.add(in_flight=4)
    desk.add(in_flight=4)
    assert desk.written == [1]
    desk.add(in_flight=4)
    assert desk.written == [1, 3]
    assert desk.loop.due is None


def test_those_that_are_being_written_are_no_company(desk: Desk) -> None:
    desk.add(in_flight=6)
    for _ in range(5):
        desk.add(in_flight=6)
    assert desk.written == [1, 5]
    # They all wait for the disk still; one more call has come and ended meanwhile.
    desk.add(in_flight=7)
    assert desk.written == [1, 5, 1]


def test_each_is_told_once_in_its_order(desk: Desk) -> None:
    for _ in range(4):
        desk.add(in_flight=4)
    desk.batches.written(3, 1, "no space")
    assert desk.told[:3] == [None, None, None]
    assert isinstance(desk.told[3], JournalUnavailable)
    assert "no space" in str(desk.told[3])
    assert desk.batches.unwritten() == []
