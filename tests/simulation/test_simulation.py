"""A short simulation: some seeds, chosen so that every kind of fault happens in two of them."""

from __future__ import annotations

import pytest

from tests.simulation.backends import Vice
from tests.simulation.faults import Fault, Faults
from tests.simulation.run import Servers, simulate

pytestmark = pytest.mark.servers

CALLS = 600
SEEDS = (5, 24, 54, 82)
"""A seed has its weather for ever (`Weather.drawn`), and each disaster of it befalls a short run too: change these only
where there is another kind of fault."""


def test_every_promise_holds_whatever_befalls(servers: Servers) -> None:
    faults, vices = Faults(), set[Vice]()
    for seed in SEEDS:
        outcome = simulate(seed, CALLS, servers)
        told = "\n".join((f"make simulate SEED={seed} CALLS={CALLS}", *outcome.story))
        assert outcome.error is None, f"{outcome.error}\n{told}"
        assert outcome.calls == CALLS
        faults += outcome.faults
        vices |= set(outcome.vices)
    # A simulation in which nothing happens proves nothing.
    assert faults.keys() >= set(Fault), f"these did not happen: {set(Fault) - faults.keys()}"
    assert vices == set(Vice)


def test_a_seed_gives_the_same_run(servers: Servers) -> None:
    first, second = simulate(3, 200, servers), simulate(3, 200, servers)
    assert (first.trace, first.endings, first.faults) == (second.trace, second.endings, second.faults)
