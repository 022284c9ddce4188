"""Shares of the revenue: which rules apply to a call, and that the parts are the whole, to the last unit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.shares import WHOLE_PPM, Rule, apportion, largest_total, rules_of, share_out
from models.ledger import AccountKind, ShareRole
from models.money import Units
from tests.unit.test_usage import a_charge

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ACME, OTHER = UUID(int=1), UUID(int=2)


def rule(
    ppm: int,
    party: str = "maker",
    *,
    role: ShareRole = ShareRole.MODEL_OWNER,
    model: str | None = None,
    organization_id: UUID | None = None,
    starts: datetime = BEGAN,
    ends: datetime | None = None,
) -> Rule:
    return Rule(role, party, model, organization_id, ppm, starts, ends)


@pytest.mark.parametrize(
    ("amount", "weights", "parts"),
    [
        pytest.param(100, [1, 1, 1], [34, 33, 33], id="of equal remainders the first gets more"),
        pytest.param(10, [1, 5, 4], [1, 5, 4], id="nothing to round"),
        pytest.param(1, [1, 2, 2], [0, 1, 0], id="a single unit goes to the largest remainder"),
        pytest.param(-100, [1, 1, 1], [-34, -33, -33], id="what is taken back mirrors what was given"),
        pytest.param(0, [1, 1], [0, 0], id="nothing to divide"),
        pytest.param(7, [0, 1], [0, 7], id="a weight of zero gets nothing"),
    ],
)
def test_apportion(amount: int, weights: list[int], parts: list[int]) -> None:
    assert apportion(amount, weights) == parts


@given(
    amount=st.integers(-(10**18), 10**18),
    weights=st.lists(st.integers(0, WHOLE_PPM), min_size=1, max_size=8).filter(any),
)
def test_parts_are_the_whole_and_each_is_off_by_less_than_one(amount: int, weights: list[int]) -> None:
    parts = apportion(amount, weights)
    assert sum(parts) == amount
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(amount * weight, sum(weights))) < 1
    assert apportion(-amount, weights) == [-part for part in parts]


@pytest.mark.parametrize(
    ("model", "organization_id", "ppm"),
    [
        pytest.param("tiny", ACME, 4, id="of this customer and model"),
        pytest.param("large", ACME, 3, id="of this customer"),
        pytest.param("tiny", OTHER, 2, id="of this model"),
        pytest.param("large", OTHER, 1, id="of everything"),
    ],
)
def test_the_narrowest_rule_of_a_party_counts(model: str, organization_id: UUID, ppm: int) -> None:
    rules = [
        rule(1),
        rule(2, model="tiny"),
        rule(3, organization_id=ACME),
        rule(4, model="tiny", organization_id=ACME),
    ]
    for order in (rules, rules[::-1]):
        assert [found.ppm for found in rules_of(order, model, organization_id, BEGAN)] == [ppm]


def test_rules_apply_from_their_beginning_to_their_end() -> None:
    rules = [rule(1, ends=BEGAN + DAY), rule(2, starts=BEGAN + DAY)]
    moments = [BEGAN - DAY, BEGAN, BEGAN + DAY - timedelta(microseconds=1), BEGAN + DAY]
    assert [[found.ppm for found in rules_of(rules, "tiny", ACME, moment)] for moment in moments] == [[], [1], [1], [2]]


def test_a_party_may_have_two_roles() -> None:
    both = [rule(1), rule(2, role=ShareRole.RESELLER)]
    assert [found.ppm for found in rules_of(both, "tiny", ACME, BEGAN)] == [1, 2]
    assert ShareRole.RESELLER.account is AccountKind.RESELLER_PAYABLE


def test_each_call_is_divided_by_itself() -> None:
    rules = [rule(333_333, "a"), rule(333_333, "b"), rule(333_334, "c")]
    charges = [a_charge(created_at=BEGAN, amount=1) for _ in range(3)]
    shares = share_out(rules, charges)
    model = charges[0].model
    assert shares == {(ShareRole.MODEL_OWNER, "c", model): 3}, "three times the largest remainder of one unit"


def test_a_correction_takes_back_by_the_rules_of_its_call() -> None:
    rules = [rule(250_000, ends=BEGAN + DAY), rule(500_000, starts=BEGAN + DAY)]
    call = a_charge(created_at=BEGAN, amount=100)
    fixed = a_charge(created_at=BEGAN, amount=-40, corrects=call.call_id)
    key = (ShareRole.MODEL_OWNER, "maker", call.model)
    assert share_out(rules, [call]) == {key: 25}
    assert share_out(rules, [fixed]) == {key: -10}


@given(
    amounts=st.lists(st.integers(0, 10**12), max_size=6),
    ppms=st.lists(st.integers(0, WHOLE_PPM), min_size=1, max_size=5).filter(lambda ppms: sum(ppms) <= WHOLE_PPM),
)
def test_nobody_gets_more_than_there_is(amounts: list[int], ppms: list[int]) -> None:
    rules = [rule(ppm, f"party {place}") for place, ppm in enumerate(ppms)]
    shares = share_out(rules, [a_charge(created_at=BEGAN, amount=Units(amount)) for amount in amounts])
    assert all(amount > 0 for amount in shares.values())
    assert sum(shares.values()) <= sum(amounts)
    if sum(ppms) == WHOLE_PPM:
        assert sum(shares.values()) == sum(amounts)


@pytest.mark.parametrize(
    ("rules", "changed", "total"),
    [
        pytest.param([rule(600_000)], rule(500_000, "b"), 1_100_000, id="two of everything"),
        pytest.param([rule(600_000, model="a")], rule(500_000, "b", model="b"), 500_000, id="of different models"),
        pytest.param([rule(600_000, model="a")], rule(500_000, "b"), 1_100_000, id="one of them of everything"),
        pytest.param(
            [rule(600_000, organization_id=ACME)],
            rule(500_000, "b", model="a"),
            1_100_000,
            id="a customer's, a model's",
        ),
        pytest.param(
            [rule(600_000, organization_id=ACME)],
            rule(500_000, "b", organization_id=OTHER),
            500_000,
            id="of two",
        ),
        pytest.param([rule(600_000)], rule(500_000, model="a"), 500_000, id="a narrower one instead"),
        pytest.param([rule(600_000, ends=BEGAN + DAY)], rule(500_000, "b", starts=BEGAN + DAY), 600_000, id="later"),
        pytest.param([rule(600_000, starts=BEGAN + DAY)], rule(500_000, "b"), 1_100_000, id="one that begins later"),
        pytest.param(
            [rule(900_000), rule(500_000, "b", model="a")],
            rule(100_000, model="a", ends=BEGAN + DAY),
            1_400_000,
            id="the wider one counts again when the narrower ends",
        ),
    ],
)
def test_the_largest_total_of_any_call(rules: list[Rule], changed: Rule, total: int) -> None:
    assert largest_total([*rules, changed], changed, BEGAN) == total


def test_what_is_over_does_not_count() -> None:
    old = rule(900_000, ends=BEGAN + DAY)
    new = rule(800_000, "b", starts=BEGAN + DAY)
    assert largest_total([old, new], new, BEGAN + DAY) == 800_000
