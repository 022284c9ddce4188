"""Which money pays for which charge."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.booking import Grant, GrantScope, draw_order, plan_booking, refusal
from billing.store.grants import scope_from, scope_json
from models.call import Charge
from models.ids import uuid7
from models.ledger import AccountKind, GrantKind
from models.money import Units
from models.usage import Ending, UsageSource

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def _grant(number: int, remaining: int = 100, **terms: object) -> Grant:
    grant = Grant(UUID(int=number), GrantKind.PAID, Units(remaining), 50, NOW)
    return replace(grant, **terms)  # type: ignore[arg-type]


def _charge(amount: int, model: str = "tiny") -> Charge:
    owner = UUID(int=7)
    return Charge(
        call_id=uuid7(NOW),
        organization_id=owner,
        project_id=owner,
        api_key_id=owner,
        currency="USD",
        endpoint="/v1/chat/completions",
        model=model,
        deployment="local",
        streamed=True,
        ending=Ending.FINISHED,
        usage_source=UsageSource.BACKEND,
        input_tokens=1,
        cached_tokens=0,
        cache_write_tokens=0,
        output_tokens=1,
        reasoning_tokens=0,
        amount=amount,
        hold=amount,
        price_version_ids=(),
        created_at=NOW,
        ended_at=NOW,
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(_grant(9, scope=GrantScope(frozenset({"tiny"})), priority=99), _grant(1), id="limited ones first"),
        pytest.param(_grant(9, priority=1), _grant(1, expires_at=NOW + DAY), id="then the lower priority number"),
        pytest.param(
            _grant(9, expires_at=NOW + DAY), _grant(1, expires_at=NOW + 2 * DAY), id="then the sooner to expire"
        ),
        pytest.param(_grant(9, expires_at=NOW + DAY), _grant(1, kind=GrantKind.PROMO), id="never comes last"),
        pytest.param(_grant(9, kind=GrantKind.PROMO), _grant(1, effective_at=NOW - DAY), id="then what was given"),
        pytest.param(_grant(9, effective_at=NOW - DAY), _grant(1), id="then the older one"),
        pytest.param(_grant(1), _grant(9), id="then the id"),
    ],
)
def test_order_of_grants(first: Grant, second: Grant) -> None:
    assert draw_order([second, first]) == [first, second]


def test_a_grant_may_pay_for_several_charges_and_a_charge_be_paid_by_several() -> None:
    promo, paid = _grant(1, 30, kind=GrantKind.PROMO), _grant(2, 100)
    plan = plan_booking([_charge(20), _charge(20), _charge(0), _charge(100)], [paid, promo])
    assert [funded.funding for funded in plan.funded] == [
        ((str(promo.id), 20),),
        ((str(promo.id), 10), (str(paid.id), 10)),
        (),
        ((str(paid.id), 90), ("unbilled", 10)),
    ]
    assert plan.draws == {promo.id: 30, paid.id: 100}
    assert plan.by_account == {
        AccountKind.CUSTOMER_PROMO: 30,
        AccountKind.CUSTOMER_PREPAID: 100,
        AccountKind.UNBILLED: 10,
    }
    assert plan.total == 140


def test_a_limited_grant_pays_only_for_what_it_is_limited_to() -> None:
    limited = _grant(1, scope=GrantScope(models=frozenset({"tiny"}), project_ids=frozenset({UUID(int=7)})))
    elsewhere = _grant(2, scope=GrantScope(project_ids=frozenset({UUID(int=8)})))
    plan = plan_booking([_charge(20, "big"), _charge(20)], [limited, elsewhere])
    assert [funded.funding for funded in plan.funded] == [(("unbilled", 20),), ((str(limited.id), 20),)]


_grants = st.lists(
    st.builds(
        _grant,
        st.integers(1, 2**64),
        st.integers(1, 200),
        kind=st.sampled_from(GrantKind),
        priority=st.integers(0, 3),
        expires_at=st.sampled_from([None, NOW + DAY, NOW + 2 * DAY]),
        scope=st.sampled_from([GrantScope(), GrantScope(frozenset({"tiny"}))]),
    ),
    unique_by=lambda grant: grant.id,
    max_size=6,
)
_charges = st.lists(st.builds(_charge, st.integers(0, 300), st.sampled_from(["tiny", "big"])), max_size=8)


@given(_charges, _grants)
def test_every_unit_is_paid_for_once(charges: list[Charge], grants: list[Grant]) -> None:
    plan = plan_booking(charges, grants)
    assert [funded.charge for funded in plan.funded] == charges
    for funded in plan.funded:
        assert sum(amount for _, amount in funded.funding) == funded.charge.amount
        assert all(amount > 0 for _, amount in funded.funding)
    remaining = {grant.id: grant.remaining for grant in grants}
    assert all(0 < amount <= remaining[grant_id] for grant_id, amount in plan.draws.items())
    unbilled = plan.by_account.get(AccountKind.UNBILLED, 0)
    assert plan.total == sum(charge.amount for charge in charges) == sum(plan.draws.values()) + unbilled


@given(_charges, _grants, st.integers(0, 8))
def test_splitting_a_batch_changes_nothing(charges: list[Charge], grants: list[Grant], at: int) -> None:
    whole = plan_booking(charges, grants)
    first = plan_booking(charges[:at], grants)
    left = [replace(grant, remaining=Units(grant.remaining - first.draws.get(grant.id, 0))) for grant in grants]
    second = plan_booking(charges[at:], [grant for grant in left if grant.remaining])
    assert whole.funded == first.funded + second.funded


@pytest.mark.parametrize(
    ("change", "currency", "reason"),
    [
        pytest.param({}, "USD", None, id="a sound one"),
        pytest.param({}, None, "unknown organization", id="of nobody"),
        pytest.param({"currency": "EUR"}, "USD", "currency EUR", id="in another currency"),
        pytest.param({"corrects": UUID(int=1)}, "USD", "a correction", id="a correction"),
        pytest.param({"call_id": UUID(int=1)}, "USD", "no UUIDv7", id="an id of another kind"),
    ],
)
def test_charges_that_cannot_be_booked(change: dict[str, object], currency: str | None, reason: str | None) -> None:
    found = refusal(replace(_charge(5), **change), currency)  # type: ignore[arg-type]
    assert (found is None) if reason is None else (found is not None and reason in found)


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param(GrantScope(), id="without limits"),
        pytest.param(GrantScope(models=frozenset({"a", "b"})), id="models"),
        pytest.param(GrantScope(models=frozenset(), project_ids=frozenset({UUID(int=3)})), id="projects"),
    ],
)
def test_scopes_survive_storage(scope: GrantScope) -> None:
    assert scope_from(scope_json(scope)) == scope


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param({"colours": []}, id="an unknown limit"),
        pytest.param({"models": "tiny"}, id="a text where a list belongs"),
        pytest.param({"project_ids": ["x"]}, id="an id that is none"),
    ],
)
def test_scopes_that_are_not_understood_are_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        scope_from(stored)
