"""Credit given, taken back and expired, and the limits of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.settlement import expire_grants, grant_credit, set_credit_limit, void_grant
from billing.store.balances import balance_of
from billing.verify import verify
from models.errors import Conflict, InvalidRequest, NotFound
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import LARGEST_BALANCE_UNITS, Units
from models.tables import account, account_balance, credit_grant
from tests.integration.book.shop import Shop, Tenant, now

pytestmark = pytest.mark.anyio


async def _posted(shop: Shop, tenant: Tenant) -> tuple[int, int]:
    async with shop.engine.connect() as connection:
        balance = await balance_of(connection, tenant.organization_id)
        report = await verify(shop.engine, None)
    assert report.ok, report
    assert balance is not None
    return balance.posted, balance.version


async def _accounts(engine: AsyncEngine) -> dict[str, tuple[int, int]]:
    kinds = select(account.c.kind, account_balance.c.debits, account_balance.c.credits).join(account_balance)
    async with engine.connect() as connection:
        return {row.kind: (int(row.debits), int(row.credits)) for row in await connection.execute(kinds)}


async def test_a_grant_is_given_once_by_its_key(book: Shop) -> None:
    tenant = await book.tenant()
    first = await book.grant(tenant, 500, key="a")
    assert await book.grant(tenant, 500, key="a") == first
    assert await _posted(book, tenant) == (500, 1)
    with pytest.raises(Conflict):
        await book.grant(tenant, 501, key="a")
    assert await book.grant(tenant, 500, key="b") != first
    assert await book.grant(await book.tenant(), 500, key="a") != first


@pytest.mark.parametrize(
    ("kind", "accounts"),
    [
        pytest.param(GrantKind.PAID, {"cash_clearing": (70, 0), "customer_prepaid": (0, 70)}, id="bought"),
        pytest.param(GrantKind.COMMIT, {"cash_clearing": (70, 0), "customer_prepaid": (0, 70)}, id="committed to"),
        pytest.param(GrantKind.REFUND, {"cash_clearing": (70, 0), "customer_prepaid": (0, 70)}, id="given back"),
        pytest.param(GrantKind.PROMO, {"promo_expense": (70, 0), "customer_promo": (0, 70)}, id="given"),
    ],
)
async def test_each_kind_of_grant_has_its_accounts(
    book: Shop, kind: GrantKind, accounts: dict[str, tuple[int, int]]
) -> None:
    await book.grant(await book.tenant(), 70, kind)
    assert await _accounts(book.engine) == accounts


async def test_voiding_takes_back_what_is_left(book: Shop) -> None:
    tenant = await book.tenant(paid=100)
    grant_id = await book.grant(tenant, 70, GrantKind.PROMO)
    async with book.engine.begin() as connection:
        assert await void_grant(connection, grant_id, now()) == 70
    assert await _posted(book, tenant) == (100, 3)
    assert (await _accounts(book.engine))["promo_expense"] == (70, 70)
    with pytest.raises(NotFound):
        async with book.engine.begin() as connection:
            await void_grant(connection, grant_id, now())


async def test_expiry_is_booked_after_a_grace(book: Shop) -> None:
    tenant = await book.tenant(paid=100)
    end = now() + timedelta(hours=1)
    await book.grant(tenant, 70, expires_at=end)
    await book.grant(tenant, 30, GrantKind.PROMO, expires_at=end)
    assert await expire_grants(book.engine, end) == frozenset()
    assert await expire_grants(book.engine, end + timedelta(minutes=2)) == {tenant.organization_id}
    assert await expire_grants(book.engine, end + timedelta(minutes=2)) == frozenset()
    assert (await _posted(book, tenant))[0] == 100
    accounts = await _accounts(book.engine)
    assert (accounts["breakage"], accounts["promo_expense"]) == ((0, 70), (30, 30))


@pytest.mark.parametrize(
    "terms",
    [
        pytest.param({"amount": Units(0)}, id="nothing"),
        pytest.param({"amount": Units(-5)}, id="less than nothing"),
        pytest.param({"amount": Units(LARGEST_BALANCE_UNITS + 1)}, id="more than a balance holds"),
        pytest.param({"amount": Units(LARGEST_BALANCE_UNITS)}, id="more than the balance has room for"),
        pytest.param({"currency": "EUR"}, id="another currency"),
        pytest.param({"expires_at": now() - timedelta(days=1)}, id="expired"),
        pytest.param({"effective_at": now() + timedelta(days=1)}, id="begins later"),
        pytest.param({"scope": {"colours": ["red"]}}, id="a scope nobody knows"),
        pytest.param({"scope": {"project_ids": ["no uuid"]}}, id="a scope that is no id"),
    ],
)
async def test_impossible_grants_are_refused(book: Shop, terms: dict[str, Any]) -> None:
    tenant = await book.tenant(paid=100)
    usual: dict[str, Any] = {
        "organization_id": tenant.organization_id,
        "currency": "USD",
        "kind": GrantKind.PAID,
        "amount": Units(10),
        "priority": 50,
        "effective_at": now(),
        "expires_at": None,
        "scope": None,
        "idempotency_key": "key",
        "now": now(),
    }
    with pytest.raises(InvalidRequest):
        async with book.engine.begin() as connection:
            await grant_credit(connection, **{**usual, **terms})
    assert (await _posted(book, tenant))[0] == 100


async def test_an_unknown_organization_gets_nothing(book: Shop) -> None:
    with pytest.raises(NotFound):
        await book.grant(Tenant(uuid7(now()), uuid7(now())), 10)


async def test_a_credit_limit_raises_the_version_only_when_it_changes(book: Shop) -> None:
    tenant = await book.tenant(mode="hybrid")
    for limit, version in ((500, 1), (500, 1), (0, 2)):
        async with book.engine.begin() as connection:
            await set_credit_limit(connection, tenant.organization_id, Units(limit))
        assert await _posted(book, tenant) == (0, version)
    with pytest.raises(InvalidRequest):
        async with book.engine.begin() as connection:
            await set_credit_limit(connection, tenant.organization_id, Units(-1))


async def test_the_program_may_change_of_a_grant_what_changes(book: Shop) -> None:
    tenant = await book.tenant(paid=100)
    async with book.engine.connect() as connection:
        with pytest.raises(Exception, match="permission denied"):
            await connection.execute(update(credit_grant).values(amount=10**9))
    assert (await _posted(book, tenant))[0] == 100


# What rolls over -----------------------------------------------------------------------------------------------------


async def _grants(shop: Shop) -> list[tuple[str, int, int, bool]]:
    async with shop.engine.connect() as connection:
        rows = await connection.execute(select(credit_grant).order_by(credit_grant.c.created_at, credit_grant.c.id))
        return [(row.kind, int(row.amount), int(row.remaining), row.rolled_from is not None) for row in rows]


@pytest.mark.parametrize(
    ("kind", "rollover_max", "rolled", "lost"),
    [
        pytest.param(GrantKind.PAID, 30, 30, 40, id="as much as may"),
        pytest.param(GrantKind.PAID, 70, 70, 0, id="all of it"),
        pytest.param(GrantKind.PROMO, 30, 30, 40, id="a gift"),
        pytest.param(GrantKind.COMMIT, 1, 1, 69, id="a commitment"),
    ],
)
async def test_what_is_left_at_the_expiry_rolls_over(
    book: Shop, kind: GrantKind, rollover_max: int, rolled: int, lost: int
) -> None:
    tenant = await book.tenant(paid=100)
    end = now() + timedelta(hours=1)
    grant_id = await book.grant(tenant, 70, kind, expires_at=end, priority=7, rollover_max=rollover_max)
    assert await expire_grants(book.engine, end + timedelta(minutes=2)) == {tenant.organization_id}
    assert await expire_grants(book.engine, end + timedelta(minutes=2)) == frozenset()
    assert (await _posted(book, tenant))[0] == 100 + rolled
    assert await _grants(book) == [
        ("paid", 100, 100, False),
        (kind.value, 70, 0, False),
        (kind.value, rolled, rolled, True),
    ]
    accounts = await _accounts(book.engine)
    sink = "promo_expense" if kind is GrantKind.PROMO else "breakage"
    given = 70 if kind is GrantKind.PROMO else 0
    assert accounts.get(sink, (0, 0)) == (given, lost)
    async with book.engine.connect() as connection:
        [row] = await connection.execute(select(credit_grant).where(credit_grant.c.rolled_from == grant_id))
    assert (row.effective_at, row.priority, int(row.rollover_max)) == (end, 7, 0)
    assert timedelta(minutes=59) < row.expires_at - end < timedelta(minutes=61), "as long as the one before"


async def test_what_rolled_over_does_not_roll_again(book: Shop) -> None:
    tenant = await book.tenant()
    end = now() + timedelta(hours=1)
    await book.grant(tenant, 70, expires_at=end, rollover_max=50)
    await expire_grants(book.engine, end + timedelta(minutes=2))
    await expire_grants(book.engine, end + timedelta(hours=2))
    assert (await _posted(book, tenant))[0] == 0
    assert (await _accounts(book.engine))["breakage"] == (0, 70)
    assert len(await _grants(book)) == 2


@pytest.mark.parametrize(
    ("rollover_max", "expires", "told"),
    [
        pytest.param(-1, True, "not below zero", id="less than nothing"),
        pytest.param(71, True, "at most the grant", id="more than it has"),
        pytest.param(5, False, "only a grant that expires", id="of one that never ends"),
    ],
)
async def test_impossible_rollovers_are_refused(book: Shop, rollover_max: int, expires: bool, told: str) -> None:
    tenant = await book.tenant()
    end = now() + timedelta(hours=1) if expires else None
    with pytest.raises(InvalidRequest, match=told):
        await book.grant(tenant, 70, expires_at=end, rollover_max=rollover_max)
    assert await _posted(book, tenant) == (0, 0)
