"""Shares of the revenue, posted with the charges: whole to the last unit, by rules that are ended and never edited."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.months import bounds_of, month_of
from billing.settlement import book_shard
from billing.store.shares import NewRule, end_rule, hold_rules, publish_rule, statement_of
from billing.verify import verify
from models.errors import Conflict, InvalidRequest, NotFound
from models.ids import uuid7
from models.ledger import ShareRole
from models.tables import account, account_balance, revenue_share, share
from tests.integration.book.shop import MODEL, Shop, Tenant, now

pytestmark = pytest.mark.anyio

_PAID = 10_000_000_000
OWNER, MACHINES, RESELLER = ShareRole.MODEL_OWNER, ShareRole.INFRASTRUCTURE_OWNER, ShareRole.RESELLER


async def publish(
    shop: Shop,
    role: ShareRole,
    party: str,
    ppm: int,
    *,
    model: str | None = None,
    tenant: Tenant | None = None,
    starts: datetime | None = None,
    ends: datetime | None = None,
) -> Any:
    """Publish a share from now on."""
    async with shop.engine.begin() as connection:
        await hold_rules(connection)
        owner = None if tenant is None else tenant.organization_id
        new = NewRule(role, party, model, owner, ppm, starts, ends)
        return await publish_rule(connection, new, "somebody", now())


async def end(shop: Shop, rule_id: Any, moment: datetime | None = None) -> None:
    """End a share."""
    async with shop.engine.begin() as connection:
        await hold_rules(connection)
        await end_rule(connection, rule_id, moment, now())


async def given(shop: Shop) -> dict[tuple[str, str], list[int]]:
    """What parties got, by role and party, posting after posting."""
    async with shop.engine.connect() as connection:
        rows = await connection.execute(select(share).order_by(share.c.posting_id))
        found: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            assert row.model == MODEL
            found.setdefault((row.role, row.party), []).append(int(row.amount))
        return found


async def balances(shop: Shop) -> dict[str, int]:
    """Credits less debits of the seller's accounts that moved."""
    async with shop.engine.connect() as connection:
        rows = await connection.execute(
            select(account.c.kind, account_balance.c.credits - account_balance.c.debits)
            .join(account_balance)
            .where(account.c.organization_id.is_(None))
        )
        return {kind: int(amount) for kind, amount in rows}


async def wrong(shop: Shop) -> dict[str, str]:
    """What verify finds, by check."""
    report = await verify(shop.engine, shop.hot)
    return {check.name: " ".join(map(str, check.findings)) for check in report.checks if not check.ok}


async def test_charges_are_divided_in_their_own_posting(shop: Shop) -> None:
    tenant, other = await shop.tenant(paid=_PAID), await shop.tenant(paid=_PAID)
    await shop.call(tenant, tokens=7)
    await publish(shop, OWNER, "Maker", 333_333)
    await publish(shop, MACHINES, "Rack & Co", 100_000, model=MODEL)
    await publish(shop, RESELLER, "Friend", 50_000, tenant=tenant)
    calls = [await shop.call(tenant, tokens=tokens) for tokens in (1, 3, 101)]
    await shop.call(other, tokens=3)
    for shard in {tenant.shard, other.shard}:
        await book_shard(shop.engine, shop.hot, shard)

    # The call from before the rules is in the same posting, and is not divided.
    amounts = [charge.amount for charge in calls]
    assert amounts == [750, 2_175, 72_000]
    shares = await given(shop)
    assert {who: sum(parts) for who, parts in shares.items()} == {
        ("model_owner", "Maker"): 250 + 725 + 24_000 + 725,
        ("infrastructure_owner", "Rack & Co"): 75 + 217 + 7_200 + 217,
        ("reseller", "Friend"): 37 + 109 + 3_600,
    }
    sums = await balances(shop)
    assert (sums["model_owner_payable"], sums["infrastructure_payable"], sums["reseller_payable"]) == (
        25_700,
        7_709,
        3_746,
    )
    charged = sum((await shop.charged()).values())
    assert sums["revenue"] == charged - 25_700 - 7_709 - 3_746
    assert await wrong(shop) == {}
    starts_at, ends_at = bounds_of(month_of(now(), "UTC"), "UTC")
    async with shop.engine.connect() as connection:
        lines = await statement_of(connection, "Friend", starts_at, ends_at)
        assert [(line.role, line.organization_id, int(line.amount)) for line in lines] == [
            ("reseller", tenant.organization_id, 3_746)
        ]
        assert await statement_of(connection, "Friend", ends_at, ends_at + timedelta(days=1)) == []


async def test_a_party_that_gets_all_leaves_nothing(shop: Shop) -> None:
    tenant = await shop.tenant(paid=_PAID)
    await publish(shop, OWNER, "a", 500_001)
    await publish(shop, RESELLER, "b", 499_999)
    charge = await shop.call(tenant, tokens=1)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    assert sum(sum(parts) for parts in (await given(shop)).values()) == charge.amount
    assert (await balances(shop))["revenue"] == 0
    assert await wrong(shop) == {}


async def test_the_narrower_rule_counts_until_it_ends(shop: Shop) -> None:
    tenant = await shop.tenant(paid=_PAID)
    await publish(shop, OWNER, "Maker", 500_000)
    narrow = await publish(shop, OWNER, "Maker", 0, tenant=tenant)
    await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    assert await given(shop) == {}
    await end(shop, narrow.id)
    await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    assert await given(shop) == {("model_owner", "Maker"): [35_625]}
    assert await wrong(shop) == {}


async def test_rules_never_take_more_than_all(shop: Shop) -> None:
    tenant = await shop.tenant()
    wide = await publish(shop, OWNER, "Maker", 700_000)
    with pytest.raises(InvalidRequest, match="add up to 1,100,000 parts per million"):
        await publish(shop, RESELLER, "Friend", 400_000, tenant=tenant)
    narrow = await publish(shop, OWNER, "Maker", 600_000, tenant=tenant)
    await publish(shop, RESELLER, "Friend", 400_000, tenant=tenant)
    with pytest.raises(InvalidRequest, match="add up to 1,100,000"):
        await end(shop, narrow.id)
    await end(shop, wide.id)
    await end(shop, narrow.id)
    async with shop.engine.connect() as connection:
        assert len((await connection.execute(select(revenue_share))).all()) == 3


async def test_two_rules_at_once_see_each_other(shop: Shop) -> None:
    results = await asyncio.gather(
        *(publish(shop, OWNER, party, 600_000) for party in ("a", "b", "c")), return_exceptions=True
    )
    assert sorted(isinstance(result, InvalidRequest) for result in results) == [False, True, True]


async def test_the_past_is_not_divided_again(shop: Shop) -> None:
    rule = await publish(shop, OWNER, "Maker", 1)
    hour = timedelta(hours=1)
    with pytest.raises(InvalidRequest, match="Let the share begin now or later"):
        await publish(shop, RESELLER, "x", 1, starts=now() - hour)
    with pytest.raises(InvalidRequest, match="later than effective_from"):
        await publish(shop, RESELLER, "x", 1, starts=now() + hour, ends=now() + hour / 2)
    with pytest.raises(InvalidRequest, match="Let the share end now or later"):
        await end(shop, rule.id, now() - hour)
    with pytest.raises(NotFound):
        await end(shop, uuid7(now()))
    await end(shop, rule.id)
    with pytest.raises(Conflict, match="has an end already"):
        await end(shop, rule.id)
    later = await publish(shop, OWNER, "Maker", 1, starts=now() + hour)
    assert later.effective.upper is None
    with pytest.raises(DBAPIError, match="revenue_share_no_overlap"):
        await publish(shop, OWNER, "Maker", 2, starts=now() + 2 * hour)


async def test_rules_are_ended_and_never_edited(shop: Shop, owner: AsyncEngine) -> None:
    await publish(shop, OWNER, "Maker", 1)
    for change in (
        "update revenue_share set ppm = 2",
        "update revenue_share set effective = tstzrange(now() - interval '1 day', null)",
        "update revenue_share set effective = 'empty'",
    ):
        with pytest.raises(DBAPIError, match="never edited"):
            async with owner.begin() as connection:
                await connection.execute(text(change))
    for change in ("delete from revenue_share", "truncate revenue_share"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with owner.begin() as connection:
                await connection.execute(text(change))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param("update share set amount = amount + 1", {"shares", "shares_posted"}, id="an amount"),
        pytest.param("update share set party = 'me'", {"shares"}, id="a party"),
        pytest.param("delete from share", {"shares", "shares_posted"}, id="a share deleted"),
        pytest.param("update revenue_share set ppm = ppm + 1000", {"shares"}, id="a rule"),
        pytest.param(
            "update transfer set amount = amount + 1 from account"
            " where account.id = credit_account and account.kind = 'model_owner_payable'",
            {"shares_posted", "account_balances"},
            id="a transfer",
        ),
    ],
)
async def test_tampering_is_found(shop: Shop, owner: AsyncEngine, change: str, names: set[str]) -> None:
    tenant = await shop.tenant(paid=_PAID)
    await publish(shop, OWNER, "Maker", 333_333)
    await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    assert await wrong(shop) == {}
    async with owner.begin() as connection:
        for table in ("share", "revenue_share", "transfer"):
            await connection.execute(text(f"alter table {table} disable trigger user"))
        assert (await connection.execute(text(change))).rowcount == 1
    assert (await wrong(shop)).keys() == names
