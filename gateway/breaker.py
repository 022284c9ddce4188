"""Circuit breakers: a deployment that fails is left alone for a while, then tried with one call at a time. Pure.

Five failures in a row, or half of at least twenty calls within ten seconds, open the breaker for five seconds. Then one
call at a time goes through as a probe: its success closes the breaker, its failure doubles the pause, up to a minute
(facts on reliability, section 8). A deployment that is unhealthy or in maintenance is suspended: as one whose breaker
is open, but no call probes it. Whoever comes back, or is new, has its whole share of the calls after half a minute.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from uuid import UUID

from gateway.window import Window

FAILURES_IN_A_ROW = 5
WINDOW_SECONDS = 10
FEWEST_CALLS = 20
FAILED_SHARE = 0.5
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
SLOW_START_SECONDS = 30.0
FIRST_SHARE = 0.1
"""Part of its weight with which a deployment begins that is new or has come back: its caches are cold."""

_NEVER = float("inf")


class State(StrEnum):
    """Closed: calls pass. Open: none does. Half open: the pause is over, and one probe at a time passes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Passage:
    """Leave to make one attempt at a deployment; after it, one of the four verdicts is given.

    A passage belongs to the state of the breaker in which it was given. A verdict that comes when the breaker has
    meanwhile opened or closed says nothing about now, and changes nothing.
    """

    __slots__ = ("_breaker",)

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def succeeded(self, now: float) -> None:
        """The first byte of a good answer has come."""
        self._breaker._succeeded(self, now)

    def failed(self, now: float) -> None:
        """No connection, a 5xx, or no first byte in time."""
        self._breaker._failed(self, now)

    def refused(self) -> None:
        """The backend answered with a 4xx: no count of failures, but a probe has shown that it answers."""
        self._breaker._refused(self)

    def abandoned(self) -> None:
        """The attempt ended without an answer and through no fault of the backend: the client left, say."""
        self._breaker._abandoned(self)


class Breaker:
    """The breaker of one deployment, as this process sees it."""

    __slots__ = (
        *("_back_at", "_calls", "_failures", "_failures_in_a_row", "_passage", "_pause_seconds", "_probe", "_until"),
        "_warm_at",
    )

    def __init__(self) -> None:
        # One for all calls that pass while it is closed, so that passing costs nothing; None while it is not.
        self._passage: Passage | None = Passage(self)
        self._probe: Passage | None = None
        self._until: float | None = None
        self._back_at = 0.0
        self._warm_at = 0.0
        self._pause_seconds = 0.0
        self._failures_in_a_row = 0
        self._calls = Window(WINDOW_SECONDS)
        self._failures = Window(WINDOW_SECONDS)

    def state(self, now: float) -> State:
        """For metrics."""
        if self._until is None:
            return State.CLOSED
        return State.OPEN if now < self._until else State.HALF_OPEN

    def admits(self, now: float) -> bool:
        """Whether `admit` would let a call through; takes nothing."""
        return self._until is None or (now >= self._until and self._probe is None)

    def admit(self, now: float) -> Passage | None:
        """Let a call through, or not. In half-open state the passage is the probe, and there is no other until its
        verdict: whoever takes one must see to it that a verdict follows, `abandoned` if nothing else."""
        if self._until is None:
            return self._passage
        if now < self._until or self._probe is not None:
            return None
        self._probe = Passage(self)
        return self._probe

    def is_probing(self, now: float) -> bool:
        """Whether the next call would be a probe."""
        return self._until is not None and self._probe is None and now >= self._until

    def pause_seconds(self, now: float) -> float:
        """Time until a call may pass; 0 where one may now, or as soon as the running probe has ended."""
        if self._until is None:
            return 0.0
        # When one that is suspended comes back is expected, not known.
        until = self._until if self._until != _NEVER else self._back_at
        return min(max(0.0, until - now), LONGEST_PAUSE_SECONDS)

    def share(self, now: float) -> float:
        """The part of its weight that the deployment counts with: less than 1 while it starts slowly."""
        missing = self._warm_at - now
        return 1.0 if missing <= 0 else max(FIRST_SHARE, 1 - missing / SLOW_START_SECONDS)

    def start_slowly(self, now: float) -> None:
        """The deployment is new, or has come back."""
        self._warm_at = now + SLOW_START_SECONDS

    def suspend(self, back_at: float) -> None:
        """Let no call through until `resume`, which is expected at `back_at`. Again is harmless."""
        self._passage = self._probe = None
        self._until, self._back_at = _NEVER, back_at

    def resume(self, now: float) -> None:
        """Let calls through again, if it was suspended."""
        if self._until == _NEVER:
            self._close()
            self.start_slowly(now)

    def _succeeded(self, passage: Passage, now: float) -> None:
        if passage is self._passage:
            self._calls.add(now)
            self._failures_in_a_row = 0
        elif passage is self._probe:
            self._close()
            self.start_slowly(now)

    def _failed(self, passage: Passage, now: float) -> None:
        if passage is self._passage:
            self._calls.add(now)
            self._failures.add(now)
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= FAILURES_IN_A_ROW or self._fails_often(now):
                self._open(now, FIRST_PAUSE_SECONDS)
        elif passage is self._probe:
            self._open(now, min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS))

    def _refused(self, passage: Passage) -> None:
        # A probe without verdict would keep the deployment half open for as long as somebody sends what it refuses.
        if passage is self._probe:
            self._close()

    def _abandoned(self, passage: Passage) -> None:
        if passage is self._probe:
            self._probe = None

    def _fails_often(self, now: float) -> bool:
        calls = self._calls.sum(now)
        return calls >= FEWEST_CALLS and self._failures.sum(now) >= FAILED_SHARE * calls

    def _close(self) -> None:
        self._passage, self._probe, self._until = Passage(self), None, None
        self._failures_in_a_row = 0
        self._calls, self._failures = Window(WINDOW_SECONDS), Window(WINDOW_SECONDS)

    def _open(self, now: float, pause_seconds: float) -> None:
        self._passage = self._probe = None
        self._until = now + pause_seconds
        self._pause_seconds = pause_seconds


class Breakers:
    """The breakers of all deployments, by their ids; each is made when it is first asked for."""

    __slots__ = ("_breakers",)

    def __init__(self) -> None:
        self._breakers: dict[UUID, Breaker] = {}

    def of(self, deployment: UUID) -> Breaker:
        """The breaker of a deployment."""
        breaker = self._breakers.get(deployment)
        if breaker is None:
            breaker = self._breakers[deployment] = Breaker()
        return breaker

    def keep(self, deployments: Collection[UUID]) -> None:
        """Forget all others: the catalog has changed."""
        self._breakers = {each: breaker for each, breaker in self._breakers.items() if each in deployments}
