"""`verify` finds whoever changes the past, says where, and never cries wolf while calls run."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.connection import HotConnection
from billing.hot.keys import SHARD_KEYS
from billing.settlement import book_shard, set_credit_limit, void_grant
from billing.verify import Report, hot_store, snapshot, verify
from gateway.embedded.redis import Redis
from models.call import Charge
from models.ledger import GrantKind
from models.money import Units
from tests.integration.book.shop import Shop, Tenant, now

pytestmark = pytest.mark.anyio

_PAID = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Scene:
    """A booked ledger: one who paid before, and one whose gifts did not reach."""

    tenant: Tenant
    victim: Charge
    grant_id: UUID
    hybrid: Tenant
    shared: Charge


async def _open(shop: Shop) -> Scene:
    tenant = await shop.tenant()
    grant_id = await shop.grant(tenant, _PAID)
    await shop.project(tenant)
    hybrid = await shop.tenant(mode="hybrid", credit_limit=5_000_000_000)
    await shop.grant(hybrid, 30_000)
    await shop.grant(hybrid, 20_000, GrantKind.PROMO)
    await shop.project(hybrid)
    calls = [await shop.call(tenant) for _ in range(5)]
    shared = await shop.call(hybrid, tokens=1_000)
    for shard in {tenant.shard, hybrid.shard}:
        await book_shard(shop.engine, shop.hot, shard)
    return Scene(tenant, calls[2], grant_id, hybrid, shared)


async def _tamper(owner: AsyncEngine, scene: Scene, change: str) -> None:
    """What only an owner of the tables can do, and only on purpose."""
    values = {
        "call": scene.victim.call_id,
        "shared": scene.shared.call_id,
        "organization": scene.tenant.organization_id,
        "hybrid": scene.hybrid.organization_id,
        "grant": scene.grant_id,
    }
    tables = "charge, transfer, posting, grant_draw, credit_grant, price_version, organization_balance, account_balance"
    async with owner.begin() as connection:
        for table in tables.split(", "):
            await connection.execute(text(f"alter table {table} disable trigger user"))
        for constraint in ("pk", "amount_check", "within_hold_check", "tokens_check"):
            await connection.execute(text(f"alter table charge drop constraint charge_{constraint}"))
        used = {name: value for name, value in values.items() if f":{name}" in change}
        done = await connection.execute(text(change), used)
        assert done.rowcount >= 1, "the tampering must hit a row"


async def _verified(shop: Shop) -> tuple[Report, dict[str, str]]:
    """The report, and what the checks that failed say."""
    report = await verify(shop.engine, shop.hot)
    failed = {check.name: " ".join(map(str, check.findings)) for check in report.checks if not check.ok}
    assert report.ok == (not failed)
    assert all(check.wrong >= len(check.findings) >= min(check.wrong, 1) for check in report.checks)
    return report, failed


async def _failed(shop: Shop) -> dict[str, str]:
    return (await _verified(shop))[1]


async def test_an_untouched_book_is_clean(shop: Shop) -> None:
    await _open(shop)
    report, failed = await _verified(shop)
    assert failed == {}
    assert report.charges == 6
    assert [check.claim.promise for check in report.checks] == sorted(check.claim.promise for check in report.checks)
    assert {check.claim.promise for check in report.checks} == {"P1", "P2", "P3", "P4", "P5", "P6", "P7"}
    rows = {check.name: check.rows for check in report.checks}
    assert rows | {"prices": 6, "funding": 6, "charged_once": 6, "calls_booked": 2, "hot_store": 2} == rows
    assert report.as_json()["checks"][0]["sentence"]


_COPY = "insert into charge select * from charge where call_id = :call"
_LINE = "call_id, organization_id, project_id, api_key_id, currency, endpoint, model, deployment, streamed, ending,\
 usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, amount, hold,\
 price_version_ids, created_at, ended_at, posting_id, funding, flags"
_ANOTHER = f"insert into charge ({_LINE}) select {{}} from charge where call_id = :call"
_CALL = "update charge set {} where call_id = :call"
_SUMS = {"charges_posted", "draws", "conservation", "usage"}


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        # P1
        pytest.param("delete from charge where call_id = :call", {"calls_booked"} | _SUMS, "5 charges", id="lost"),
        pytest.param(
            _ANOTHER.format(_LINE.replace("call_id", "cast(overlay(call_id::text placing '77' from 35) as uuid)", 1)),
            {"calls_booked"} | _SUMS,
            "found 6 charges",
            id="a charge of no call",
        ),
        pytest.param(
            _CALL.format("posting_id = posting_id + 100"),
            {"calls_booked", "charges_posted", "draws"},
            "expected a posting of charges of organization",
            id="a charge in no posting",
        ),
        pytest.param(
            "update posting set organization_id = :hybrid where kind = 'charge_batch'"
            " and organization_id = :organization",
            {"calls_booked", "transfers"},
            "0 charges",
            id="a posting of another",
        ),
        pytest.param(
            "insert into dead_entry (shard, entry_id, payload, reason) values (1, '7-7', '', 'a NUL character')",
            {"dead_entries"},
            "entry 7-7 of shard 1: expected a booked charge, found a NUL character",
            id="an entry set aside",
        ),
        # P2
        pytest.param(_COPY, {"charged_once", "calls_booked"} | _SUMS, "found 2 charges", id="charged twice"),
        # P3
        pytest.param(_CALL.format("hold = amount - 1"), {"within_hold", "prices"}, "found 71250", id="above its hold"),
        pytest.param(
            _CALL.format("amount = -1"),
            {"within_hold", "prices", "funding", "charges_posted", "conservation", "usage"},
            "found -1",
            id="below zero",
        ),
        pytest.param(
            "update organization_balance set posted = -1 where organization_id = :organization",
            {"overdrafts", "conservation", "balances", "hot_store"},
            "expected at least 0, found -1",
            id="below nothing",
        ),
        pytest.param(
            "update organization_balance set posted = -5000000001 where organization_id = :hybrid",
            {"overdrafts", "conservation", "balances", "hot_store"},
            "expected at least -5000000000, found -5000000001",
            id="below the credit limit",
        ),
        # P4
        pytest.param(
            _CALL.format("ended_at = created_at - interval '2 minutes'"),
            {"moments"},
            "found ended at",
            id="ended first",
        ),
        pytest.param(
            _CALL.format("created_at = created_at + interval '25 hours', ended_at = ended_at + interval '25 hours'"),
            {"moments"},
            "its id of",
            id="made after its id",
        ),
        pytest.param(
            "update charge set created_at = created_at - interval '71 days' where call_id = :call",
            {"moments", "prices"},
            "versions in force at",
            id="made before its id and its price",
        ),
        # P5
        *(
            pytest.param(
                f"update organization_balance set posted = posted {sign} 1 where organization_id = :organization",
                {"conservation", "balances", "hot_store"},
                "found 9999643751" if sign == "+" else "found 9999643749",
                id=f"a balance {sign} 1",
            )
            for sign in "+-"
        ),
        *(
            pytest.param(
                f"update account_balance set {side} = {side} {sign} 1"
                " where account_id = (select id from account where kind = 'revenue' and currency = 'USD')",
                {"account_balances"},
                "(revenue): expected",
                id=f"{side} of an account {sign} 1",
            )
            for side, sign in (("credits", "+"), ("credits", "-"), ("debits", "+"))
        ),
        pytest.param(
            "update account_balance set debits = debits + 1 where account_id ="
            " (select id from account where kind = 'customer_prepaid' and organization_id = :organization)",
            {"account_balances", "balances"},
            "(customer_prepaid)",
            id="a customer's account",
        ),
        pytest.param(
            "update transfer set credit_account = (select id from account where kind = 'breakage')"
            " from posting where posting.id = posting_id and posting.kind = 'charge_batch'"
            " and posting.organization_id = :organization",
            {"charges_posted", "account_balances"},
            "expected 356250, found 0",
            id="revenue elsewhere",
        ),
        pytest.param(
            "update transfer set debit_account = (select id from account where kind = 'customer_prepaid'"
            " and organization_id = :hybrid) from posting where posting.id = posting_id"
            " and posting.kind = 'charge_batch' and posting.organization_id = :organization",
            {"transfers", "account_balances"},
            "USD of organization",
            id="another's money",
        ),
        pytest.param(
            "with euros as (insert into account (kind, currency) values ('revenue', 'EUR') returning id)"
            " update transfer set credit_account = euros.id from euros, posting where posting.id = posting_id"
            " and posting.kind = 'charge_batch' and posting.organization_id = :organization",
            {"transfers", "account_balances"},
            "to EUR",
            id="another currency",
        ),
        *(
            pytest.param(
                f"update transfer set amount = amount {sign} 1 from posting where posting.id = posting_id"
                " and posting.kind = 'charge_batch' and posting.organization_id = :organization",
                {"charges_posted", "account_balances"},
                f"expected 356250, found {356250 + int(sign + '1')}",
                id=f"a transfer {sign} 1",
            )
            for sign in "+-"
        ),
        pytest.param(
            _CALL.format("amount = amount - 1"),
            {"charges_posted", "funding", "prices", "conservation", "usage"},
            "expected 71250, found 71249",
            id="an amount",
        ),
        pytest.param(_CALL.format("funding = '[]'"), {"funding", "draws"}, "found []", id="nobody paid"),
        *(
            pytest.param(
                f"update charge set funding = jsonb_set(funding, '{{1,1}}', '{30_000 + more}') where call_id = :shared",
                {"funding", "draws"},
                f"expected {30_000 + more}, found 30000",
                id=f"one of three paid {more:+}",
            )
            for more in (1, -1)
        ),
        pytest.param(
            _CALL.format("funding = jsonb_set(funding, '{0,0}', '\"unbilled\"')"),
            {"draws"},
            "source unbilled: expected 71250, found 0",
            id="who paid",
        ),
        *(
            pytest.param(
                f"update grant_draw set amount = amount {sign} 1 where grant_id = :grant",
                {"draws", "grants"},
                f"expected 356250, found {356250 + int(sign + '1')}",
                id=f"a draw {sign} 1",
            )
            for sign in "+-"
        ),
        pytest.param(
            "update credit_grant set remaining = remaining - 1 where id = :grant",
            {"grants", "balances"},
            "expected 9999643750, found 9999643749",
            id="a grant",
        ),
        pytest.param(
            "update credit_grant set voided_at = now() where id = :grant", {"grants"}, "expected 0", id="a voided grant"
        ),
        pytest.param(
            "update credit_grant set kind = 'promo' where id = :grant",
            {"balances"},
            "grants of 0 prepaid",
            id="the kind of a grant",
        ),
        # P6
        *(
            pytest.param(
                _CALL.format(f"input_tokens = input_tokens {sign} 10"),
                {"prices", "usage"},
                f"expected {units},",
                id=name,
            )
            for sign, units, name in (("+", 72_750, "tokens too many"), ("-", 69_750, "tokens too few"))
        ),
        pytest.param(
            _CALL.format("cached_tokens = 101"), {"prices", "usage"}, "found tokens 100, 101", id="impossible tokens"
        ),
        pytest.param(_CALL.format("price_version_ids = '{}'"), {"prices"}, "versions of tiny in USD", id="no price"),
        pytest.param(
            _CALL.format("price_version_ids = price_version_ids[1:2] || array[gen_random_uuid()]"),
            {"prices"},
            "versions of tiny in USD",
            id="an unknown price",
        ),
        pytest.param(_CALL.format("model = 'dear'"), {"prices"}, "versions of dear in USD", id="the model"),
        pytest.param(_CALL.format("currency = 'EUR'"), {"prices"}, "versions of tiny in EUR", id="the currency"),
        *(
            pytest.param(
                f"update price_version set price = price {sign} 1000 where meter = 'output'",
                {"prices"},
                f"expected {71_250 + int(sign + '100')}, found 71250",
                id=f"a price {sign} 1",
            )
            for sign in "+-"
        ),
        pytest.param(
            "update price_version set effective = tstzrange(lower(effective), now() - interval '2 hours')"
            " where meter = 'output'",
            {"prices"},
            "expected price versions in force at",
            id="a price that had ended",
        ),
        pytest.param(
            "update price_version set effective = tstzrange(now() + interval '1 minute', null) where meter = 'output'",
            {"prices"},
            "expected price versions in force at",
            id="a price that had not begun",
        ),
    ],
)
async def test_tampering_is_found(shop: Shop, owner: AsyncEngine, change: str, names: set[str], told: str) -> None:
    scene = await _open(shop)
    await _tamper(owner, scene, change)
    failed = await _failed(shop)
    assert failed.keys() == names
    assert any(told in findings for findings in failed.values()), failed


async def test_all_wrong_rows_are_counted_and_the_first_are_shown(
    shop: Shop, owner: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHARGES_A_SLICE", 10)
    tenant = await shop.tenant(paid=_PAID)
    for _ in range(5):
        for _ in range(5):
            await shop.call(tenant)
        await book_shard(shop.engine, shop.hot, tenant.shard)
    async with owner.begin() as connection:
        await connection.execute(text("alter table charge disable trigger user"))
        await connection.execute(text("update charge set output_tokens = output_tokens + 1"))
    report, failed = await _verified(shop)
    assert failed.keys() == {"prices", "usage"}
    [check] = [check for check in report.checks if check.name == "prices"]
    assert (check.rows, check.wrong, len(check.findings)) == (25, 25, 20)
    rows = {check.name: check.rows for check in report.checks}
    assert rows | {"funding": 25, "calls_booked": 5, "charges_posted": 5, "transfers": 6, "draws": 5} == rows


# Redis ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def raw(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> HotConnection:
    """A connection to tamper with; what stays wrong is looked at again at once."""
    monkeypatch.setattr(hot_store, "PAUSES_SECONDS", (0.01, 0.01))
    return await HotConnection.connect(redis.url)


@pytest.mark.parametrize(
    ("field", "by", "names"),
    [
        *(pytest.param("balance", by, {"hot_store"}, id=f"a balance {by:+}") for by in (1, -1)),
        *(pytest.param("held", by, {"hot_store"}, id=f"held {by:+}") for by in (1, -1)),
        *(pytest.param("credit_limit", by, {"hot_store"}, id=f"a limit {by:+}") for by in (1, -1)),
        *(pytest.param("settled", by, {"hot_store", "hot_stream"}, id=f"a total {by:+}") for by in (1, -1)),
        *(pytest.param("version", by, {"hot_store"}, id=f"a version {by:+}") for by in (1, -1)),
        pytest.param("balance", -_PAID, {"hot_store", "hot_overdrafts"}, id="less than nothing"),
        pytest.param("held", _PAID, {"hot_store", "hot_overdrafts"}, id="more held than there is"),
    ],
)
async def test_a_changed_redis_is_found(shop: Shop, raw: HotConnection, field: str, by: int, names: set[str]) -> None:
    scene = await _open(shop)
    await shop.hold(scene.tenant)
    assert await _failed(shop) == {}
    key = f"{SHARD_KEYS[scene.tenant.shard].organization}{scene.tenant.organization_id}"
    await raw.execute("HINCRBY", key, field, by)
    failed = await _failed(shop)
    assert failed.keys() == names
    assert all(str(scene.tenant.organization_id) in findings for findings in failed.values())
    await raw.close()


async def test_a_lost_redis_is_found(shop: Shop, raw: HotConnection) -> None:
    scene = await _open(shop)
    keys = SHARD_KEYS[scene.tenant.shard]
    await raw.execute("DEL", f"{keys.organization}{scene.tenant.organization_id}")
    assert "expected a balance in Redis, found none" in (await _failed(shop))["hot_store"]
    await raw.execute("HSET", f"{keys.holds}{scene.tenant.organization_id}", "x", "{")
    assert "open holds that can be read" in (await _failed(shop))["hot_store"]
    await raw.execute("FLUSHALL")
    assert "epoch None" in (await _failed(shop))["hot_store"]
    await raw.close()


async def test_a_charge_that_left_the_stream_unbooked_is_found(shop: Shop, raw: HotConnection) -> None:
    scene = await _open(shop)
    for _ in range(3):
        await shop.call(scene.tenant)
    assert await _failed(shop) == {}
    stream = SHARD_KEYS[scene.tenant.shard].stream
    _, middle, _ = [entry.id for entry in await shop.hot.read(scene.tenant.shard, "0-0", 10)]
    await raw.execute("XDEL", stream, middle)
    failed = await _failed(shop)
    assert failed.keys() == {"hot_stream"}
    assert "expected entries with totals 356250 to 570000" in failed["hot_stream"]
    await raw.execute("XTRIM", stream, "MAXLEN", 0)
    assert "found none on the stream" in (await _failed(shop))["hot_stream"]
    await raw.close()


async def test_a_charge_that_nobody_books_is_found(shop: Shop, raw: HotConnection) -> None:
    tenant = await shop.tenant(paid=_PAID)
    old_ms = await shop.hot.clock_ms() - 61_000
    await raw.execute("XADD", SHARD_KEYS[tenant.shard].stream, f"{old_ms}-0", "charge", "not a charge")
    failed = await _failed(shop)
    assert failed.keys() == {"hot_stream"}
    assert f"entry {old_ms}-0 waits for 61 seconds; does a worker run?" in failed["hot_stream"]
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).dead == 1
    assert (await _failed(shop)).keys() == {"dead_entries"}
    await raw.close()


async def test_what_may_go_below_the_limit_is_no_overdraft(shop: Shop, raw: HotConnection) -> None:
    late = await shop.tenant(paid=1)
    charge = await shop.call(late, held=False)
    voided = await shop.tenant()
    grant_id = await shop.grant(voided, _PAID)
    await shop.project(voided)
    hold = await shop.hold(voided)
    async with shop.engine.begin() as connection:
        await void_grant(connection, grant_id, now())
    await shop.project(voided)
    assert await _failed(shop) == {}, "while they wait"
    assert await shop.hot.settle(hold, shop.charge(hold))
    for tenant in (late, voided):
        await book_shard(shop.engine, shop.hot, tenant.shard)
    assert await _failed(shop) == {}, "when they are booked"
    shown = await shop.hot.balance(late.shard, late.organization_id)
    assert shown is not None
    assert shown.available == 1 - charge.amount
    await raw.close()


async def test_a_lowered_limit_is_no_overdraft_where_it_was_asked_for(shop: Shop, raw: HotConnection) -> None:
    tenant = await shop.tenant(mode="postpaid", credit_limit=5_000_000_000)
    await shop.call(tenant)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    async with shop.engine.begin() as connection:
        await set_credit_limit(connection, tenant.organization_id, Units(1))
    await shop.project(tenant)
    assert (await _failed(shop)).keys() == {"overdrafts", "hot_overdrafts"}
    async with shop.engine.begin() as connection:
        await connection.execute(
            text(
                "insert into audit_log (actor, action, object, organization_id, detail)"
                " values ('operator', 'organization.updated', 'organization', :organization, '{\"credit_limit\": {}}')"
            ),
            {"organization": tenant.organization_id},
        )
    assert await _failed(shop) == {}
    await raw.close()


# While calls run -----------------------------------------------------------------------------------------------------


async def test_charges_on_their_way_are_no_difference(shop: Shop) -> None:
    scene = await _open(shop)
    await shop.call(scene.tenant)
    assert await _failed(shop) == {}


async def test_no_false_alarm_while_calls_run_and_are_booked(shop: Shop) -> None:
    """Some organizations call, a worker books, an operator grants and voids, all at once; nothing is ever wrong."""
    tenants = [await shop.tenant(paid=100 * _PAID) for _ in range(3)]
    is_over = asyncio.Event()

    async def traffic() -> None:
        for turn in itertools.count():
            if is_over.is_set():
                return
            some = tenants[turn % 3]
            await asyncio.gather(
                *(shop.call(tenant, held=number > 0) for number, tenant in enumerate(tenants * 4)),
                book_shard(shop.engine, shop.hot, some.shard, limit=100),
                shop.hot.hold(shop.request(some, 10**14), 1),
                _grant_and_void(shop, some) if turn % 5 == 0 else asyncio.sleep(0),
            )

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(traffic())
        for _ in range(10):
            report, failed = await _verified(shop)
            assert failed == {}
        is_over.set()
    assert report.charges > 100


async def _grant_and_void(shop: Shop, tenant: Tenant) -> None:
    grant_id = await shop.grant(tenant, 1_000_000, GrantKind.PROMO)
    await shop.project(tenant)
    async with shop.engine.begin() as connection:
        await void_grant(connection, grant_id, now())
    await shop.project(tenant)
