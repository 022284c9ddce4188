"""Whose turn it is: organizations one after another, by deficit round robin on tokens. Pure.

Each organization has a credit. At its turn it is served until the credit is used up; then it gets `quantum` tokens more
and goes to the end. A call may overdraw the credit, and the debt is paid with later turns: so the first call of an
organization is served in its first turn however large it is, and over time all get the same number of tokens. (This
is the variant with negative deficits, known as surplus round robin, which Linux's fq_codel also uses.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar
from uuid import UUID

MOST_TURNS_FOR_A_CALL = 32
"""A call costs at most so many quanta, which bounds the work of finding who is next."""

Call = TypeVar("Call")


class _Turn(Generic[Call]):
    """An organization's credit in tokens, and its calls in their order with what each costs."""

    __slots__ = ("calls", "credit")

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.calls: OrderedDict[Call, int] = OrderedDict()


class Turns(Generic[Call]):
    """Calls that wait, in the order in which they are served."""

    __slots__ = ("_calls", "_quantum", "_ring")

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._calls = 0
        # The front has the turn. An organization without calls stays only while it is in debt: were it forgiven, it
        # would pay to have one huge call wait at a time.
        self._ring: OrderedDict[UUID, _Turn[Call]] = OrderedDict()

    def __len__(self) -> int:
        return self._calls

    def add(self, organization: UUID, call: Call, tokens: int) -> None:
        """A call waits, behind the earlier ones of its organization."""
        turn = self._ring.get(organization)
        if turn is None:
            turn = self._ring[organization] = _Turn(self._quantum)
        turn.calls[call] = min(max(tokens, 1), MOST_TURNS_FOR_A_CALL * self._quantum)
        self._calls += 1

    def remove(self, organization: UUID, call: Call) -> None:
        """A call no longer waits, and was not served here."""
        turn = self._ring[organization]
        del turn.calls[call]
        self._calls -= 1
        self._settle(organization, turn)

    def serve(self, may: Callable[[Call], bool] | None = None) -> Call | None:
        """The call whose turn it is, taken out; None if there is none that `may` be served now."""
        ring = self._ring
        if not self._calls or (may is not None and not any(may(call) for turn in ring.values() for call in turn.calls)):
            return None
        # Somebody may be served, so this ends: debts are paid round after round until one of them has credit.
        while True:
            organization, turn = next(iter(ring.items()))
            call = next((call for call in turn.calls if may is None or may(call)), None)
            if call is not None and turn.credit > 0:
                turn.credit -= turn.calls.pop(call)
                self._calls -= 1
                self._settle(organization, turn)
                return call
            ring.move_to_end(organization)
            if turn.credit <= 0:
                turn.credit += self._quantum
                self._settle(organization, turn)

    def _settle(self, organization: UUID, turn: _Turn[Call]) -> None:
        if not self._calls:
            # Nobody waits, so nobody is kept waiting by a debt.
            self._ring.clear()
        elif not turn.calls and turn.credit > 0:
            del self._ring[organization]
