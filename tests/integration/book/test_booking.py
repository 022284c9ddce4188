"""Charges on their way from the stream into the book: once, whole, and paid for by the right money."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from billing.hot.connection import HotConnection
from billing.hot.entries import encode_charge
from billing.hot.keys import SHARD_KEYS
from billing.hot.store import StreamEntry
from billing.settlement import book_entries, book_shard
from billing.store.shards import lease
from billing.verify import verify
from gateway.embedded.redis import Redis
from models.call import Hold
from models.ids import uuid7
from models.ledger import GrantKind
from models.tables import account, account_balance, charge, credit_grant, dead_entry, organization_balance, posting
from tests.integration.book.shop import HOLD, Shop, now

pytestmark = pytest.mark.anyio


async def _clean(shop: Shop) -> None:
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]


async def test_a_batch_is_booked_once(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    charges = [await shop.call(tenant) for _ in range(10)]
    total = sum(charge.amount for charge in charges)

    booked = await book_shard(shop.engine, shop.hot, tenant.shard)

    assert (booked.read, booked.charges, booked.dead) == (10, 10, 0)
    assert await shop.charged() == {charge.call_id: charge.amount for charge in charges}
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).read == 0
    assert await shop.hot.read(tenant.shard, "0-0", 10) == []
    balance = await shop.hot.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    assert (balance.balance, balance.held) == (10_000_000_000 - total, 0)
    async with shop.engine.connect() as connection:
        assert len((await connection.execute(select(posting).where(posting.c.kind == "charge_batch"))).all()) == 1
        row = (await connection.execute(select(organization_balance))).one()
    assert (int(row.posted), int(row.booked_total)) == (10_000_000_000 - total, total)
    await _clean(shop)


async def test_every_column_survives(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    hold = await shop.hold(tenant)
    sent = replace(
        shop.charge(hold),
        end_user='Zoë "Ω" \\N\t\n',
        reported={"a": [1, None, "\u2028"]},
        counted={"output": 3},
        flags=("clamped",),
    )
    await shop.hot.settle(hold, sent)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    async with shop.engine.connect() as connection:
        row = (await connection.execute(select(charge))).one()._mapping
    for name in (
        "call_id",
        "project_id",
        "model",
        "ending",
        "end_user",
        "reported",
        "counted",
        "created_at",
        "ended_at",
    ):
        assert row[name] == getattr(sent, name), name
    assert row["flags"] == ["clamped"]
    assert tuple(row["price_version_ids"]) == sent.price_version_ids


async def test_grants_pay_in_their_order_and_the_rest_is_owed(shop: Shop) -> None:
    tenant = await shop.tenant(mode="hybrid", credit_limit=5_000_000_000)
    paid = await shop.grant(tenant, 30_000)
    promo = await shop.grant(tenant, 20_000, GrantKind.PROMO)
    await shop.project(tenant)
    sent = await shop.call(tenant, tokens=1_000)

    await book_shard(shop.engine, shop.hot, tenant.shard)

    async with shop.engine.connect() as connection:
        funding = (await connection.execute(select(charge.c.funding))).scalar_one()
        left = {row.id: int(row.remaining) for row in await connection.execute(select(credit_grant))}
        kinds = select(account.c.kind, account_balance.c.debits, account_balance.c.credits).join(account_balance)
        rows = {row.kind: (int(row.debits), int(row.credits)) for row in await connection.execute(kinds)}
    owed = sent.amount - 50_000
    assert funding == [[str(promo), 20_000], [str(paid), 30_000], ["unbilled", owed]]
    assert left == {paid: 0, promo: 0}
    assert rows["customer_promo"] == (20_000, 20_000)
    assert rows["customer_prepaid"] == (30_000, 30_000)
    assert rows["unbilled"] == (owed, 0)
    assert rows["revenue"] == (0, sent.amount)
    await _clean(shop)


async def test_free_and_late_calls_are_booked(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    free = await shop.call(tenant, tokens=0)
    late = await shop.call(tenant, held=False)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    async with shop.engine.connect() as connection:
        rows = await connection.execute(select(charge.c.call_id, charge.c.amount, charge.c.flags))
        found = {row.call_id: (row.amount, row.flags) for row in rows}
    assert found == {free.call_id: (0, []), late.call_id: (late.amount, ["late"])}
    await _clean(shop)


async def test_a_call_that_comes_twice_is_charged_once_and_the_money_returns(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    hold = await shop.hold(tenant)
    sent = shop.charge(hold)
    raw = await HotConnection.connect(redis.url)
    for _ in range(3):
        assert await shop.hot.settle(hold, sent)
        # As if the mark had been forgotten, an hour later.
        await raw.execute("DEL", f"{SHARD_KEYS[tenant.shard].done}{sent.call_id}")
    await raw.close()
    assert (await book_shard(shop.engine, shop.hot, tenant.shard, limit=2)).charges == 1
    assert (await book_shard(shop.engine, shop.hot, tenant.shard, limit=2)).charges == 0
    balance = await shop.hot.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    assert balance.balance == 10_000_000_000 - sent.amount
    await _clean(shop)


async def test_poison_is_set_aside_and_blocks_nobody(shop: Shop, redis: Redis) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    good = [await shop.call(tenant) for _ in range(3)]
    base = shop.charge(Hold(shop.request(tenant)))
    stranger = replace(base, call_id=uuid7(now()), organization_id=uuid7(now()))
    bad = [
        b"",
        b"{",
        encode_charge(stranger),
        encode_charge(replace(base, call_id=uuid7(now()), currency="KRW")),
        encode_charge(replace(base, call_id=uuid7(now()), amount=base.hold + 1)),
        encode_charge(replace(base, call_id=uuid7(now()), amount=2**62, hold=2**63 - 1)),
        encode_charge(replace(base, call_id=uuid7(now()), input_tokens=2**31)),
        encode_charge(replace(base, call_id=uuid7(now()), corrects=base.call_id)),
    ]
    raw = await HotConnection.connect(redis.url)
    for payload in bad:
        await raw.execute("XADD", SHARD_KEYS[tenant.shard].stream, "*", "charge", payload, "settled", "much")
    await raw.close()
    good += [await shop.call(tenant) for _ in range(3)]

    booked = await book_shard(shop.engine, shop.hot, tenant.shard)

    assert (booked.charges, booked.dead) == (6, len(bad))
    assert await shop.charged() == {charge.call_id: charge.amount for charge in good}
    async with shop.engine.connect() as connection:
        payloads = (await connection.execute(select(dead_entry.c.payload))).scalars().all()
    assert sorted(payloads) == sorted(bad)
    report = await verify(shop.engine, shop.hot)
    assert [check.name for check in report.checks if not check.ok] == ["dead_entries"]


async def test_a_row_that_only_the_database_refuses_is_found_by_halving(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, other = await shop.tenant(paid=10_000_000_000), await shop.tenant(paid=10_000_000_000)
    flaws: list[dict[str, Any]] = [
        {"end_user": "\0"},
        {"end_user": "\ud800"},
        {"input_tokens": 2**31},
        {"cached_tokens": 2**20},
        {"deployment": None},
        {"amount": 2 * HOLD},
    ]
    sound = [shop.charge(Hold(shop.request(who))) for who in (tenant, other) * 10]
    flawed = [replace(shop.charge(Hold(shop.request(tenant))), **flaw) for flaw in flaws]
    mixed = [*sound[:7], *flawed[:3], *sound[7:], *flawed[3:]]
    payloads = {str(charge.call_id).encode(): charge for charge in mixed}
    # Past the checks that would have caught these: the database is the last line, and must not be a wall.
    monkeypatch.setattr("billing.settlement.decode_charge", payloads.__getitem__)
    entries = [StreamEntry(f"1-{number}", payload, None, late=False) for number, payload in enumerate(payloads, 1)]

    async with shop.engine.begin() as connection:
        held = await lease(connection, tenant.shard)
        assert held is not None
        booked = await book_entries(connection, held, entries)

    assert (booked.charges, booked.dead) == (len(sound), len(flawed))
    assert await shop.charged() == {charge.call_id: charge.amount for charge in sound}
    report = await verify(shop.engine, None)
    assert [check.name for check in report.checks if not check.ok] == ["dead_entries"]


async def test_a_shard_in_other_hands_is_left_alone(shop: Shop) -> None:
    tenant = await shop.tenant(paid=10_000_000_000)
    await shop.call(tenant)
    async with shop.engine.begin() as connection:
        assert await lease(connection, tenant.shard) is not None
        assert (await book_shard(shop.engine, shop.hot, tenant.shard)).busy
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).charges == 1
