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
