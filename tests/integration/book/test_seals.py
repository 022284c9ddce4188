"""The chain of seals over postings: documented byte by byte, sealed in order, and every change found."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.sealing import seal_postings
from billing.settlement import book_shard
from billing.store.seals import head
from billing.verify import Report, verify
from models.ledger import GrantKind
from models.tables import account, posting, posting_seal, transfer
from tests.integration.book.shop import Shop

pytestmark = pytest.mark.anyio

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def _busy(shop: Shop) -> None:
    """Four postings of three kinds; the third has two transfers."""
    tenant = await shop.tenant(paid=30_000, mode="hybrid", credit_limit=5_000_000_000)
    await shop.grant(tenant, 20_000, GrantKind.PROMO, key='of "Ω", 3:x,\n')
    await shop.project(tenant)
    for _ in range(2):
        await shop.call(tenant)
        await book_shard(shop.engine, shop.hot, tenant.shard)


async def _wrong(shop: Shop) -> tuple[Report, dict[str, str]]:
    report = await verify(shop.engine, shop.hot)
    return report, {check.name: " ".join(map(str, check.findings)) for check in report.checks if not check.ok}


def _field(value: object) -> bytes:
    """As docs/ledger.md says: the length in bytes, a colon, the bytes, a comma; `~` for what is not there."""
    if value is None:
        return b"~"
    raw = str(value).encode()
    return b"%d:%b," % (len(raw), raw)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _jsonb(source: dict[str, Any]) -> str:
    """As Postgres writes it: keys by length, then by bytes."""
    keys = sorted(source, key=lambda key: (len(key.encode()), key.encode()))
    return json.dumps({key: source[key] for key in keys}, ensure_ascii=False)


async def test_a_stranger_can_recompute_the_chain(shop: Shop) -> None:
    await _busy(shop)
    assert await seal_postings(shop.engine) == 4
    async with shop.engine.connect() as connection:
        accounts = {row.id: row for row in await connection.execute(select(account))}
        rows = (await connection.execute(select(posting).order_by(posting.c.id))).all()
        moved = (await connection.execute(select(transfer).order_by(transfer.c.posting_id, transfer.c.seq))).all()
        seals = (await connection.execute(select(posting_seal).order_by(posting_seal.c.seq))).all()
    previous = bytes(32)
    for seq, (row, seal) in enumerate(zip(rows, seals, strict=True), start=1):
        mine = [each for each in moved if each.posting_id == row.id]
        content = b"".join(
            _field(value)
            for value in (
                *(row.id, row.organization_id, row.idempotency_key, row.kind, _micros(row.effective_at)),
                *(_micros(row.booked_at), row.reverses, _jsonb(row.source), row.billing_month, len(mine)),
            )
        )
        for each in mine:
            debit, credit = accounts[each.debit_account], accounts[each.credit_account]
            sides = (debit.organization_id, debit.kind, debit.currency, credit.organization_id, credit.kind)
            content += b"".join(map(_field, (each.seq, *sides, credit.currency, int(each.amount))))
        digest = sha256(previous + content).digest()
        assert (seal.seq, seal.posting_id, seal.format, seal.previous, seal.digest) == (
            seq,
            row.id,
            1,
            previous,
            digest,
        )
        previous = digest
    assert [len([each for each in moved if each.posting_id == row.id]) for row in rows] == [1, 1, 3, 1]
    report, failed = await _wrong(shop)
    assert failed == {}
    assert report.head is not None
    assert (report.head.seq, report.head.digest) == (4, previous.hex())
    assert report.as_json()["chain_head"]["posting_id"] == rows[-1].id


async def test_sealing_goes_on_where_it_stopped(shop: Shop) -> None:
    assert await seal_postings(shop.engine) == 0
    await _busy(shop)
    assert await seal_postings(shop.engine, limit=3) == 3
    # Whoever meets another leaves it to them.
    at_once = sum(await asyncio.gather(*(seal_postings(shop.engine) for _ in range(3))))
    assert at_once + await seal_postings(shop.engine) == 1
    assert await seal_postings(shop.engine) == 0
    await _busy(shop)
    assert await seal_postings(shop.engine) == 4
    assert (await _wrong(shop))[1] == {}


async def test_a_posting_that_commits_late_is_not_left_out(shop: Shop) -> None:
    """An id is given before its transaction commits: one with a higher id must not be sealed first."""
    early, late = await shop.tenant(), await shop.tenant()
    async with shop.engine.connect() as slow:
        transaction = await slow.begin()
        await slow.execute(text("select closed_until from book for share"))
        inserted = await slow.execute(
            text(
                "insert into posting (organization_id, idempotency_key, kind, effective_at)"
                " values (:organization, 'slow', 'topup', now()) returning id"
            ),
            {"organization": early.organization_id},
        )
        first = inserted.scalar_one()
        await shop.grant(late, 5)
        sealing = asyncio.create_task(seal_postings(shop.engine))
        done, _ = await asyncio.wait({sealing}, timeout=0.3)
        assert not done, "it waits for whoever posts"
        await transaction.commit()
    assert await sealing == 2
    async with shop.engine.connect() as connection:
        last = await head(connection)
        ids = (await connection.execute(select(posting_seal.c.posting_id).order_by(posting_seal.c.seq))).scalars().all()
    assert last is not None
    assert ids == [first, last.posting_id]


async def test_seals_are_only_added(shop: Shop, owner: AsyncEngine) -> None:
    await _busy(shop)
    await seal_postings(shop.engine)
    for change in ("update posting_seal set seq = seq + 10", "delete from posting_seal", "truncate posting_seal"):
        with pytest.raises(DBAPIError, match="append-only"):
            async with owner.begin() as connection:
                await connection.execute(text(change))


_THIRD = "(select posting_id from posting_seal where seq = 3)"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *(
            pytest.param(f"update posting set {column} = {value} where id = {_THIRD}", "seal 3", id=column)
            for column, value in (
                ("idempotency_key", "'x'"),
                ("kind", "'topup'"),
                ("effective_at", "effective_at + interval '1 microsecond'"),
                ("booked_at", "booked_at + interval '1 microsecond'"),
                ("source", "source || '{\"calls\": 2}'"),
                ("billing_month", "null"),
                ("organization_id", "null"),
            )
        ),
        pytest.param(f"update transfer set amount = amount + 1 where posting_id = {_THIRD}", "seal 3", id="an amount"),
        pytest.param(
            "update transfer set debit_account = (select id from account where kind = 'receivable')"
            f" where posting_id = {_THIRD} and seq = 0",
            "seal 3",
            id="an account of a transfer",
        ),
        pytest.param("update account set kind = 'promo' where kind = 'customer_promo'", "seal 3", id="an account"),
        pytest.param(f"delete from transfer where posting_id = {_THIRD} and seq = 2", "seal 3", id="no transfer"),
        pytest.param(f"delete from posting where id = {_THIRD}", "found no such posting", id="a posting deleted"),
        pytest.param(
            "insert into posting (id, idempotency_key, kind, effective_at, booked_at)"
            " values (0, 'x', 'topup', now(), now())",
            "posting 0: expected a seal, found none",
            id="a posting inserted before",
        ),
        pytest.param(
            "insert into posting (idempotency_key, kind, effective_at, booked_at)"
            " values ('x', 'topup', now(), now() - interval '6 minutes')",
            "expected a seal, found none: it was added later, or no worker seals",
            id="a posting that nobody seals",
        ),
        pytest.param("delete from posting_seal where seq = 2", "a seal 3 that follows the one before", id="no seal"),
        pytest.param("delete from posting_seal where seq = 1", "a seal 2 that follows the one before", id="no first"),
        pytest.param("update posting_seal set digest = sha256('') where seq = 3", "seal 4", id="a digest"),
        pytest.param("update posting_seal set previous = sha256('') where seq = 3", "seal 3", id="what it follows"),
        pytest.param("update posting_seal set format = 2 where seq = 3", "seal 3", id="the format"),
    ],
)
async def test_every_change_is_found(shop: Shop, owner: AsyncEngine, change: str, told: str) -> None:
    await _busy(shop)
    await seal_postings(shop.engine)
    async with owner.begin() as connection:
        for table in ("posting", "transfer", "posting_seal", "account"):
            await connection.execute(text(f"alter table {table} disable trigger user"))
        for table, column in (("transfer", "posting_id"), ("grant_draw", "posting_id"), ("posting_seal", "posting_id")):
            await connection.execute(text(f"alter table {table} drop constraint {table}_{column}_fk"))
        assert (await connection.execute(text(change))).rowcount >= 1
    assert told in (await _wrong(shop))[1]["seals"]


async def test_a_chain_that_was_made_anew_has_another_head(shop: Shop, owner: AsyncEngine) -> None:
    """Who owns the database can seal it all again; a head that was noted elsewhere tells."""
    await _busy(shop)
    await seal_postings(shop.engine)
    noted = (await _wrong(shop))[0].head
    async with owner.begin() as connection:
        for table in ("posting", "posting_seal"):
            await connection.execute(text(f"alter table {table} disable trigger user"))
        await connection.execute(text("delete from posting_seal"))
        await connection.execute(text("update posting set effective_at = effective_at - interval '1 second'"))
    await seal_postings(shop.engine)
    report, failed = await _wrong(shop)
    assert failed == {}
    assert report.head != noted
