"""A simulation that finds nothing may be blind: here each part that moves money gets a bug, and it must be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from billing import settlement, sweeper
from billing.hot.connection import Script
from billing.hot.store import HotStore
from billing.journal import settles
from billing.journal.journal import Journal
from billing.store import balances
from gateway.calls.running import Running
from gateway.calls.settling import Settling
from models.call import Void
from tests.simulation import redis, worker
from tests.simulation.run import Servers, simulate
from tests.simulation.test_simulation import CALLS

pytestmark = pytest.mark.servers

Patch = pytest.MonkeyPatch


def _script(patch: Patch, verb: str, line: str, instead: str) -> None:
    """Another line in one of the scripts that Redis runs."""
    right = redis._SCRIPTS[verb]
    assert right.source.count(line) == 1, f"{verb} has no such line any more: {line}"
    patch.setitem(redis._SCRIPTS, verb, Script(right.source.replace(line, instead), right.sha1))


def hold_ignores_what_is_held(patch: Patch) -> None:
    """Calls at the same time spend the same money."""
    _script(patch, "hold", "return balance - held >= tonumber", "return balance >= tonumber")


def settle_forgets_that_a_call_has_ended(patch: Patch) -> None:
    """A charge that is sent again is taken again."""
    _script(patch, "settle", "if ended and ended ~= 'abandoned' then return 0 end", "")


def void_gives_nothing_back(patch: Patch) -> None:
    """A call that costs nothing leaves its hold."""
    patch.setattr(HotStore, "void", _done)


async def _done(*_: Any, **__: Any) -> bool:
    return True


def booking_takes_a_call_twice(patch: Patch) -> None:
    """It does not ask which calls are booked."""

    async def all_of_them(_connection: Any, items: list[Any]) -> list[Any]:
        return items

    patch.setattr(settlement, "_not_booked", all_of_them)


def booking_forgets_totals(patch: Patch) -> None:
    """What Redis has debited is not taken over, so it is debited for ever."""
    right = balances.move_balances

    async def without_totals(connection: Any, amounts: Any, _running: Any = None) -> None:
        await right(connection, amounts, {})

    patch.setattr(balances, "move_balances", without_totals)


def booking_trims_before_it_commits(patch: Patch) -> None:
    """A worker that dies in between has thrown charges away."""
    right = HotStore.read

    async def read_and_trim(self: HotStore, shard: int, position: str, limit: int) -> Any:
        entries = await right(self, shard, position, limit)
        # One entry is only looked for, not booked.
        if entries and limit > 1:
            await self.trim(shard, entries[-1].id)
        return entries

    patch.setattr(HotStore, "read", read_and_trim)


def sweeper_ignores_checkpoints(patch: Patch) -> None:
    """What a dead gateway had delivered is free."""
    patch.setattr(sweeper, "end_of", lambda hold, _checkpoint, _now: Void(hold, "no reason"))


def sweeper_is_hasty(patch: Patch) -> None:
    """A gateway that is silent for a moment loses its calls."""

    async def sweep_at_once(hot: HotStore, shard: int, now: Any) -> Any:
        return await sweeper.sweep_shard(hot, shard, now, grace_seconds=1, confirm_seconds=1)

    patch.setattr(worker, "sweep_shard", sweep_at_once)


def replay_takes_another_call_id(patch: Patch) -> None:
    """What is on the disk is charged to a call that never was."""
    right = settles.read_settle

    def read(record: Any) -> Any:
        hold, charge = right(record)
        return hold, replace(charge, call_id=UUID(int=charge.call_id.int ^ 1))

    patch.setattr(settles, "read_settle", read)


def replay_leaves_out_every_second_call(patch: Patch) -> None:
    """Half of what only the disk knows is lost."""
    right = settles._once
    patch.setattr(settles, "_once", lambda records: iter(list(right(records))[::2]))


def recovery_drops_notes_of_open_calls(patch: Patch) -> None:
    """What ran when a process was killed is not found."""
    patch.setattr(Journal, "left_open", lambda _: {})


def calls_are_not_noted(patch: Patch) -> None:
    """The same, from the other side."""
    patch.setattr(Running, "note", lambda *_, **__: None)


def last_byte_waits_for_nothing(patch: Patch) -> None:
    """A client has its answer before its charge is anywhere."""
    right = Settling.begin

    def begin(self: Settling) -> None:
        right(self)
        self._is_journaled = self._is_heard = True
        self._look()

    patch.setattr(Settling, "begin", begin)


# Each with the seed that sees it today; what follows from a seed changes with the program's steps, so others are asked.
BUGS: dict[Callable[[Patch], None], int] = {
    hold_ignores_what_is_held: 1,
    settle_forgets_that_a_call_has_ended: 5,
    void_gives_nothing_back: 5,
    booking_takes_a_call_twice: 5,
    booking_forgets_totals: 5,
    booking_trims_before_it_commits: 1,
    sweeper_ignores_checkpoints: 5,
    sweeper_is_hasty: 9,
    replay_takes_another_call_id: 5,
    replay_leaves_out_every_second_call: 54,
    recovery_drops_notes_of_open_calls: 5,
    calls_are_not_noted: 82,
    last_byte_waits_for_nothing: 5,
}
OTHER_SEEDS = range(1, 25)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_is_seen(servers: Servers, monkeypatch: Patch, bug: Callable[[Patch], None]) -> None:
    bug(monkeypatch)
    errors = (simulate(seed, CALLS, servers).error for seed in (BUGS[bug], *OTHER_SEEDS))
    seen = next(filter(None, errors), None)
    assert seen is not None, f"nobody saw it in {1 + len(OTHER_SEEDS)} runs"
    # An auditor's word, and not a bug that cannot even run.
    assert seen.startswith(("Violation: ", "AssertionError: ")), seen
