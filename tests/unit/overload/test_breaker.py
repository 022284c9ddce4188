"""A breaker opens by its rules alone, lets one probe through at a time, and never stays open for good."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.breaker import (
    FAILURES_IN_A_ROW,
    FEWEST_CALLS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    WINDOW_SECONDS,
    Breaker,
    Breakers,
    Passage,
    State,
)


def passage(breaker: Breaker, now: float) -> Passage:
    given = breaker.admit(now)
    assert given is not None
    return given


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        passage(breaker, now).failed(now)
    assert breaker.state(now) is State.OPEN
    return breaker


@pytest.mark.parametrize(
    ("verdicts", "state"),
    [
        pytest.param("ffff", State.CLOSED, id="four failures in a row are not enough"),
        pytest.param("fffff", State.OPEN, id="the fifth failure in a row opens it"),
        pytest.param("ffffsffff", State.CLOSED, id="a success starts the row again"),
        pytest.param("ffffrf", State.OPEN, id="a 4xx neither ends the row nor adds to it"),
        pytest.param("ffffaf", State.OPEN, id="nor does a client that left"),
        pytest.param("r" * 50, State.CLOSED, id="4xx never open it"),
        pytest.param("a" * 50, State.CLOSED, id="departures never open it"),
        pytest.param("fs" * 9 + "f", State.CLOSED, id="half of nineteen calls are not enough"),
        pytest.param("sf" * 10, State.OPEN, id="half of twenty calls open it"),
        pytest.param("sff" * 6 + "s" * 7, State.CLOSED, id="the share is looked at when a call fails"),
        pytest.param("ssf" * 20, State.CLOSED, id="a third may fail"),
    ],
)
def test_what_opens_a_breaker(verdicts: str, state: State) -> None:
    breaker = Breaker()
    for verdict in verdicts:
        given = passage(breaker, 100.0)
        match verdict:
            case "s":
                given.succeeded(100.0)
            case "f":
                given.failed(100.0)
            case "r":
                given.refused()
            case "a":
                given.abandoned()
    assert breaker.state(100.0) is state


def test_failures_of_long_ago_have_no_share() -> None:
    breaker = Breaker()
    for second in range(40):
        given = passage(breaker, float(second))
        if second % 2:
            given.failed(float(second))
        else:
            given.succeeded(float(second))
    assert breaker.state(40.0) is State.CLOSED, "twenty calls need twenty seconds here, the window has ten"


def test_an_open_breaker_admits_nobody_for_five_seconds() -> None:
    breaker = opened(100.0)
    assert breaker.admit(104.9) is None
    assert not breaker.admits(104.9)
    assert breaker.pause_seconds(102.0) == 3.0
    assert breaker.admits(105.0)
    assert breaker.state(105.0) is State.HALF_OPEN


def test_one_probe_at_a_time() -> None:
    breaker = opened()
    passage(breaker, 5.0)
    assert breaker.admit(5.0) is None
    assert breaker.admit(500.0) is None
    assert not breaker.is_probing(500.0)


def test_a_failed_probe_doubles_the_pause_up_to_a_minute() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(6):
        pauses.append(breaker.pause_seconds(now))
        now += pauses[-1]
        passage(breaker, now).failed(now)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_successful_probe_closes_and_forgets() -> None:
    breaker = opened()
    passage(breaker, 5.0).failed(5.0)
    passage(breaker, 15.0).succeeded(15.0)
    assert breaker.state(15.0) is State.CLOSED
    for _ in range(FAILURES_IN_A_ROW):
        passage(breaker, 15.0).failed(15.0)
    assert breaker.pause_seconds(15.0) == FIRST_PAUSE_SECONDS


def test_a_probe_that_is_refused_has_shown_that_the_backend_answers() -> None:
    breaker = opened()
    passage(breaker, 5.0).refused()
    assert breaker.state(5.0) is State.CLOSED


def test_a_probe_whose_client_left_is_given_to_the_next_call() -> None:
    breaker = opened()
    passage(breaker, 5.0).abandoned()
    assert breaker.state(5.0) is State.HALF_OPEN
    passage(breaker, 5.0).succeeded(6.0)
    assert breaker.state(6.0) is State.CLOSED


@pytest.mark.parametrize("verdict", ["succeeded", "failed", "refused", "abandoned"])
def test_a_call_from_before_it_opened_says_nothing(verdict: str) -> None:
    breaker = Breaker()
    late = passage(breaker, 0.0)
    for _ in range(FAILURES_IN_A_ROW):
        passage(breaker, 0.0).failed(0.0)
    probe = passage(breaker, 5.0)
    getattr(late, verdict)(*[5.0] * (verdict in ("succeeded", "failed")))
    assert breaker.admit(5.0) is None, "the probe still runs"
    probe.succeeded(6.0)
    getattr(late, verdict)(*[6.0] * (verdict in ("succeeded", "failed")))
    assert breaker.state(6.0) is State.CLOSED


def test_breakers_are_made_when_asked_for_and_forgotten_with_their_deployment() -> None:
    breakers = Breakers()
    stays, goes = UUID(int=1), UUID(int=2)
    first, second = breakers.of(stays), breakers.of(goes)
    assert breakers.of(stays) is first
    breakers.keep({stays})
    assert breakers.of(stays) is first
    assert breakers.of(goes) is not second


class AnyOrder(RuleBasedStateMachine):
    """Calls begin and end in any order. The model keeps every verdict since the breaker last closed."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 1000.0
        self.running: list[tuple[Passage, int, bool]] = []
        self.generation = 0
        self.verdicts: list[tuple[float, bool]] = []
        self.until: float | None = None
        self.pause = FIRST_PAUSE_SECONDS

    @rule(seconds=st.one_of(st.floats(0, 3), st.floats(0, 70)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        admits = self.breaker.admits(self.now)
        given = self.breaker.admit(self.now)
        probing = any(is_probe for _, _, is_probe in self.running)
        expected = self.until is None or (self.now >= self.until and not probing)
        assert (given is not None) is admits is expected
        if given is not None:
            self.running.append((given, self.generation, self.until is not None))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), verdict=st.sampled_from(["succeeded", "failed", "failed", "refused", "abandoned"]))
    def end(self, data: st.DataObject, verdict: str) -> None:
        given, generation, is_probe = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if verdict in ("succeeded", "failed"):
            getattr(given, verdict)(self.now)
        else:
            getattr(given, verdict)()
        if generation != self.generation:
            return
        if is_probe:
            if verdict == "failed":
                self.pause = min(2 * self.pause, LONGEST_PAUSE_SECONDS)
                self.until = self.now + self.pause
            elif verdict != "abandoned":
                self.close()
        elif verdict in ("succeeded", "failed"):
            self.verdicts.append((self.now, verdict == "failed"))
            if verdict == "failed" and self.must_open():
                self.generation += 1
                self.pause = FIRST_PAUSE_SECONDS
                self.until = self.now + self.pause

    @precondition(lambda self: self.until is None)
    @rule(pattern=st.sampled_from(["f", "sf", "ssf", "sff"]), times=st.integers(1, 20))
    def burst(self, pattern: str, times: int) -> None:
        for verdict in pattern * times:
            if self.until is not None:
                return
            given = self.breaker.admit(self.now)
            assert given is not None
            self.verdicts.append((self.now, verdict == "f"))
            if verdict == "f":
                given.failed(self.now)
                if self.must_open():
                    self.generation += 1
                    self.pause = FIRST_PAUSE_SECONDS
                    self.until = self.now + self.pause
            else:
                given.succeeded(self.now)

    def must_open(self) -> bool:
        row = [failed for _, failed in self.verdicts[-FAILURES_IN_A_ROW:]]
        recent = [failed for time, failed in self.verdicts if int(self.now) - int(time) < WINDOW_SECONDS]
        return (len(row) == FAILURES_IN_A_ROW and all(row)) or (
            len(recent) >= FEWEST_CALLS and 2 * sum(recent) >= len(recent)
        )

    def close(self) -> None:
        self.generation += 1
        self.verdicts = []
        self.until = None

    @invariant()
    def state_is_that_of_the_model(self) -> None:
        after_opening = State.OPEN if self.until is not None and self.now < self.until else State.HALF_OPEN
        assert self.breaker.state(self.now) is (State.CLOSED if self.until is None else after_opening)

    @invariant()
    def never_two_probes(self) -> None:
        assert sum(is_probe and generation == self.generation for _, generation, is_probe in self.running) <= 1

    def teardown(self) -> None:
        """Whatever happened: once its probe has ended, a breaker lets another through within a minute."""
        for given, _, _ in self.running:
            given.abandoned()
        assert self.breaker.admit(self.now + LONGEST_PAUSE_SECONDS) is not None


TestAnyOrder = AnyOrder.TestCase
