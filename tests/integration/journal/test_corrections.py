"""A gateway's journal knows better than the sweeper: one correction makes up the difference, in both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from billing.booking import UNBILLED, added_tokens, correction_id
from billing.charges import Measured
from billing.charges import charge as close
from billing.exports import KINDS, Wanted, begin_export
from billing.hot.connection import HotConnection
from billing.hot.store import HotStore, make_hot_store
from billing.journal.journal import Journal
from billing.journal.settles import settle_record
from billing.settlement import book_shard, correct, expire_grants, void_grant
from billing.store.balances import balance_of
from billing.store.charges import BookedCharge, ChargeFilter, find_charge, list_charges
from billing.store.pages import Page
from billing.verify import verify
from gateway.api.billing import receipt_json
from gateway.catalog import CatalogCache
from gateway.embedded.redis import Redis
from gateway.recovery import Recovery
from models.call import Charge, Checkpoint, Hold
from models.errors import Conflict, NotFound, Unavailable
from models.ledger import GrantKind
from models.usage import Ending, TokenUsage, UsageSource
from tests.charge_lines import csv_row
from tests.integration.book.conftest import engine, hot, owner, shop
from tests.integration.book.shop import Shop, Tenant, now, until
from tests.integration.journal.conftest import Opening
from tests.integration.sweeper.lives import silence, sweep

__all__ = ["engine", "hot", "owner", "shop"]

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PAID = 10_000_000_000


@pytest.fixture
async def gateway(redis: Redis) -> AsyncIterator[HotStore]:
    """The store of a gateway that has a name, so that its calls can be swept."""
    store = await make_hot_store(redis.url, instance="one")
    yield store
    await store.close()


@pytest.fixture
async def raw(redis: Redis) -> AsyncIterator[HotConnection]:
    """A connection to make a gateway's silence old."""
    connection = await HotConnection.connect(redis.url)
    yield connection
    await connection.close()


class Scene:
    """A gateway that is given up for dead in mid-call, and what its journal says of the call."""

    def __init__(self, shop: Shop, gateway: HotStore, raw: HotConnection) -> None:
        self.shop = shop
        self.calls = Shop(shop.engine, gateway)
        self.calls.rates = shop.rates
        self._gateway = gateway
        self._raw = raw

    async def recovered(self, tenant: Tenant, tokens: int, *, source: UsageSource = UsageSource.BACKEND) -> Hold:
        """A call that a sweeper has settled after so many tokens in and out."""
        hold = await self.calls.hold(tenant)
        usage = TokenUsage(tokens, tokens)
        await self._gateway.checkpoint([Checkpoint(hold.request.origin, usage, source, "local", accepted=True)])
        await silence(self._raw, self.shop.hot, tenant.shard, "one")
        assert len((await sweep(self.shop.hot, tenant.shard)).recovered) == 1
        return hold

    async def book(self, tenant: Tenant) -> None:
        """What a worker does."""
        assert (await book_shard(self.shop.engine, self.shop.hot, tenant.shard)).dead == 0

    async def recover(self, journal: Journal) -> Recovery:
        """What a gateway does at its start, and one look of its later life."""
        recovery = Recovery(
            journal, self.shop.hot, self.shop.engine, CatalogCache(self.shop.engine, 60), now, frozenset
        )
        await recovery._inherit()
        await recovery._confirm()
        return recovery

    async def rows(self, tenant: Tenant) -> list[BookedCharge]:
        """The tenant's charges, those that correct last."""
        async with self.shop.engine.connect() as connection:
            found, _ = await list_charges(
                connection, ChargeFilter(tenant.organization_id), Page(None, 100, newest_first=False)
            )
        return sorted(found, key=lambda row: row.charge.corrects is not None)

    async def spent(self, tenant: Tenant) -> int:
        """What is gone of the money the tenant had paid; the same in both stores, and every promise holds."""
        async with self.shop.engine.connect() as connection:
            balance = await balance_of(connection, tenant.organization_id)
        shown = await self.shop.hot.balance(tenant.shard, tenant.organization_id)
        assert balance is not None
        assert shown is not None
        assert (shown.balance, shown.held) == (balance.posted, 0)
        report = await verify(self.shop.engine, self.shop.hot)
        assert report.ok, [check for check in report.checks if not check.ok]
        return PAID - balance.posted


@pytest.fixture
def scene(shop: Shop, gateway: HotStore, raw: HotConnection) -> Scene:
    """A shop and a gateway that will be silent."""
    return Scene(shop, gateway, raw)


async def journaled(opened: Opening, *ends: tuple[Hold, Charge]) -> None:
    """The journal of a process that is dead."""
    journal = opened()
    for end in ends:
        await journal.append(settle_record(*end))
    await journal.close()


def finished(hold: Hold, usage: TokenUsage) -> Charge:
    """How the gateway saw the call end."""
    measured = Measured(usage, UsageSource.BACKEND, reported={"completion_tokens": usage.output})
    return close(hold, measured, ending=Ending.FINISHED, deployment="local", ended_at=now())


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(TokenUsage(100, 900), id="more was delivered"),
        pytest.param(TokenUsage(100, 20), id="less was delivered"),
        pytest.param(TokenUsage(100, 100, cached=80), id="the input was cached, as only the backend's last word said"),
        pytest.param(TokenUsage(100, 3_000, cached=50, reasoning=700), id="some of it was thought"),
        pytest.param(TokenUsage(300, 50, reasoning=50), id="more of one meter and less of another"),
        pytest.param(TokenUsage(0, 0), id="nothing was owed at all"),
    ],
)
async def test_both_rows_are_what_the_journal_says(opened: Opening, scene: Scene, usage: TokenUsage) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    truth = finished(hold, usage)
    await journaled(opened, (hold, truth))

    journal = opened()
    await scene.recover(journal)
    first, second = await scene.rows(tenant)
    assert (first.charge.ending, first.charge.output_tokens) == (Ending.RECOVERED, 100)
    assert first.charge.amount + second.charge.amount == truth.amount
    assert second.charge.corrects == truth.call_id
    assert second.charge.call_id == correction_id(truth.call_id)
    assert second.charge.created_at == first.charge.created_at, "both are in one period"
    assert second.charge.output_tokens == max(0, usage.output - 100)
    assert (second.charge.ending, second.charge.usage_source) == (Ending.FINISHED, UsageSource.BACKEND)
    assert second.charge.counted is not None
    assert second.charge.counted["difference"]["output"] == usage.output - 100
    assert await scene.spent(tenant) == truth.amount
    assert journal.unconfirmed() == frozenset(), "what was compared is forgotten"

    # The same journal again, as from a backup of the disk: nothing changes.
    await journaled(opened, (hold, truth))
    journal = opened()
    await scene.recover(journal)
    assert await scene.rows(tenant) == [first, second]
    assert await scene.spent(tenant) == truth.amount
    assert journal.unconfirmed() == frozenset()


async def test_a_sweeper_that_was_right_is_not_corrected(opened: Opening, scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    await journaled(opened, (hold, finished(hold, TokenUsage(100, 100))))
    journal = opened()
    await scene.recover(journal)
    assert len(await scene.rows(tenant)) == 1
    assert journal.unconfirmed() == frozenset()


async def test_the_journal_waits_until_the_sweepers_charge_is_booked(opened: Opening, scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    truth = finished(hold, TokenUsage(100, 500))
    await journaled(opened, (hold, truth))

    journal = opened()
    recovery = await scene.recover(journal)
    assert journal.unconfirmed() == {truth.call_id}
    assert await scene.rows(tenant) == []
    await scene.book(tenant)
    await recovery._confirm()
    assert [row.charge.corrects for row in await scene.rows(tenant)] == [None, truth.call_id]
    assert await scene.spent(tenant) == truth.amount
    assert journal.unconfirmed() == frozenset()


async def test_a_living_gateway_corrects_by_itself(opened: Opening, scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    truth = finished(hold, TokenUsage(100, 500))
    await journaled(opened, (hold, truth))
    journal, stop = opened(), asyncio.Event()
    recovery = Recovery(journal, scene.shop.hot, scene.shop.engine, CatalogCache(scene.shop.engine, 60), now, frozenset)
    running = asyncio.create_task(recovery.run(stop))

    async def inherited() -> bool:
        return journal.unconfirmed() == {truth.call_id}

    async def forgotten() -> bool:
        return journal.unconfirmed() == frozenset()

    await until(inherited)
    await scene.book(tenant)
    await until(forgotten)
    stop.set()
    await running
    assert await scene.spent(tenant) == truth.amount


async def test_a_gateway_that_was_only_slow_corrects_from_its_own_journal(opened: Opening, scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    journal = opened(segment_bytes=4_096)
    recovery = await scene.recover(journal)
    truth = finished(hold, TokenUsage(100, 500))
    await journal.append(settle_record(hold, truth))
    assert not await scene.calls.hot.settle(hold, truth)
    # Other calls fill its segment, so that it is sealed.
    while truth.call_id not in journal.unconfirmed():
        other = await scene.calls.hold(tenant)
        end = scene.calls.charge(other)
        await journal.append(settle_record(other, end))
        assert await scene.calls.hot.settle(other, end)
        await asyncio.sleep(0)
    await scene.book(tenant)
    await recovery._confirm()
    rows = await scene.rows(tenant)
    assert rows[-1].charge.corrects == truth.call_id
    assert sum(row.charge.amount for row in rows) == await scene.spent(tenant)
    assert journal.unconfirmed() == frozenset()


async def test_two_processes_at_once_write_it_once(scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    truth = finished(hold, TokenUsage(100, 500))
    written = await asyncio.gather(*(correct(scene.shop.engine, scene.shop.hot, truth) for _ in range(4)))
    assert len([one for one in written if one is not None]) == 1
    assert len(await scene.rows(tenant)) == 2
    assert await scene.spent(tenant) == truth.amount


async def test_money_goes_back_to_whom_it_came_from_the_last_first(scene: Scene) -> None:
    tenant = await scene.shop.tenant()
    small = await scene.shop.grant(tenant, 30_000, GrantKind.PROMO, priority=1)
    large = await scene.shop.grant(tenant, PAID)
    await scene.shop.project(tenant)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    [before] = await scene.rows(tenant)
    assert before.funding == ((str(small), 30_000), (str(large), 45_000))
    truth = finished(hold, TokenUsage(100, 0))
    await correct(scene.shop.engine, scene.shop.hot, truth)
    _, after = await scene.rows(tenant)
    assert after.funding == ((str(large), -45_000), (str(small), -15_000))
    assert await scene.spent(tenant) == truth.amount - 30_000


async def test_a_voided_grant_gets_nothing_back(scene: Scene) -> None:
    tenant = await scene.shop.tenant()
    voided = await scene.shop.grant(tenant, PAID)
    await scene.shop.project(tenant)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    async with scene.shop.engine.begin() as connection:
        await void_grant(connection, voided, now())
    truth = finished(hold, TokenUsage(100, 0))
    await correct(scene.shop.engine, scene.shop.hot, truth)
    _, after = await scene.rows(tenant)
    assert after.funding == ((UNBILLED, -60_000),)
    assert PAID - await scene.spent(tenant) == 60_000


async def test_a_grant_expires_once_though_money_came_back(scene: Scene) -> None:
    tenant = await scene.shop.tenant()
    soon = now().replace(microsecond=0).replace(year=now().year + 1)
    grant = await scene.shop.grant(tenant, PAID, expires_at=soon)
    await scene.shop.project(tenant)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    later = soon.replace(year=soon.year + 1)
    assert await expire_grants(scene.shop.engine, later) == {tenant.organization_id}
    await correct(scene.shop.engine, scene.shop.hot, finished(hold, TokenUsage(100, 0)))
    assert await expire_grants(scene.shop.engine, later) == frozenset()
    assert (await scene.rows(tenant))[1].funding == ((UNBILLED, -60_000),), str(grant)
    assert PAID - await scene.spent(tenant) == 60_000


async def test_what_is_owed_beyond_the_money_is_unbilled(scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=1_000_000_000)
    hold = await scene.recovered(tenant, 100)
    other = await scene.calls.hold(tenant, 999_925_000)
    truth = replace(finished(other, TokenUsage(100, 100)), amount=999_925_000)
    assert await scene.calls.hot.settle(other, truth)
    await scene.book(tenant)
    correction = await correct(scene.shop.engine, scene.shop.hot, finished(hold, TokenUsage(100, 200)))
    assert correction is not None
    row = next(row for row in await scene.rows(tenant) if row.charge.corrects)
    assert row.funding == ((UNBILLED, 60_000),)
    balance = await scene.shop.hot.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    assert balance.balance == -60_000


async def test_a_journal_that_contradicts_the_book_is_loud_and_stays(opened: Opening, scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    strange = replace(finished(hold, TokenUsage(100, 500)), model="another")
    with pytest.raises(Conflict):
        await correct(scene.shop.engine, scene.shop.hot, strange)
    await journaled(opened, (hold, strange))
    journal = opened()
    with capture_logs() as lines:
        recovery = await scene.recover(journal)
        first = len(lines)
        await recovery._confirm()
    assert {line["event"] for line in lines} == {"journal_contradicts_book"}
    assert len(lines) == first, "it is not read again every second"
    assert journal.unconfirmed() == {strange.call_id}
    assert len(await scene.rows(tenant)) == 1


async def test_only_what_is_booked_is_corrected(scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    charge = await scene.calls.call(tenant)
    with pytest.raises(NotFound):
        await correct(scene.shop.engine, scene.shop.hot, charge)
    await scene.book(tenant)
    assert await correct(scene.shop.engine, scene.shop.hot, replace(charge, amount=1)) is None
    assert len(await scene.rows(tenant)) == 1


async def test_a_projection_that_was_lost_is_made_up(scene: Scene, redis: Redis) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    truth = finished(hold, TokenUsage(100, 500))
    away = await make_hot_store(redis.url)
    await away.close()
    with pytest.raises(Unavailable):
        await correct(scene.shop.engine, away, truth)
    assert await correct(scene.shop.engine, scene.shop.hot, truth) is None
    await scene.shop.project(tenant)
    assert await scene.spent(tenant) == truth.amount


async def test_an_export_waits_for_a_correction_that_runs(scene: Scene) -> None:
    """Or a posting would appear below its watermark later, and the file would not be the same again."""
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    async with scene.shop.engine.begin() as connection:
        await connection.execute(text("select 1 from organization_balance for update"))
        running = asyncio.create_task(correct(scene.shop.engine, scene.shop.hot, finished(hold, TokenUsage(100, 500))))

        async def has_the_shard() -> bool:
            free = text("select 1 from shard where id = :shard for share skip locked")
            async with scene.shop.engine.connect() as other:
                return (await other.execute(free, {"shard": hold.request.origin.shard})).first() is None

        await until(has_the_shard)
        export = asyncio.create_task(begin_export(scene.shop.engine, KINDS["charges"], Wanted()))
        assert (await asyncio.wait({running, export}, timeout=0.3))[0] == set()
    correction, fixed = await running, await export
    assert correction is not None
    async with scene.shop.engine.connect() as connection:
        row = await find_charge(connection, correction.call_id, ChargeFilter())
    assert row is not None
    assert fixed.watermark == row.posting_id


async def test_receipt_and_csv_say_what_is_corrected(scene: Scene) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    await correct(scene.shop.engine, scene.shop.hot, finished(hold, TokenUsage(100, 0)))
    first, second = await scene.rows(tenant)
    receipt = receipt_json(second.charge, second)
    assert receipt["corrects"] == str(first.charge.call_id)
    assert receipt["amount"] == {"amount": "-0.000060000", "currency": "USD"}
    assert ",-0.000060000,USD,1.000000000," in csv_row(second)
    assert f",{first.charge.call_id}," in csv_row(second)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("amount = amount + 1", id="its amount"),
        pytest.param("output_tokens = output_tokens + 1", id="its tokens"),
        pytest.param("""counted = jsonb_set(counted, '{difference,output}', '7')""", id="its difference"),
        pytest.param("counted = null", id="its reason"),
        pytest.param("corrects = gen_random_uuid()", id="what it corrects"),
        pytest.param("hold = hold + 1", id="its terms"),
        pytest.param("call_id = gen_random_uuid()", id="its id"),
    ],
)
async def test_verify_finds_a_changed_correction(scene: Scene, owner: AsyncEngine, change: str) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    await correct(scene.shop.engine, scene.shop.hot, finished(hold, TokenUsage(100, 500)))
    await scene.spent(tenant)
    async with owner.begin() as connection:
        await connection.execute(text("alter table charge disable trigger user"))
        await connection.execute(text(f"update charge set {change} where corrects is not null"))
    report = await verify(scene.shop.engine, None)
    assert "corrections" in {check.name for check in report.checks if not check.ok}


async def test_verify_finds_a_call_that_is_corrected_twice(scene: Scene, owner: AsyncEngine) -> None:
    tenant = await scene.shop.tenant(paid=PAID)
    hold = await scene.recovered(tenant, 100)
    await scene.book(tenant)
    await correct(scene.shop.engine, scene.shop.hot, finished(hold, TokenUsage(100, 500)))
    again = "insert into charge select * from again"
    async with owner.begin() as connection:
        await connection.execute(
            text("create temporary table again as select * from charge where corrects is not null")
        )
        await connection.execute(text("update again set call_id = gen_random_uuid()"))
        await connection.execute(text(again))
    report = await verify(scene.shop.engine, None)
    told = {check.name: str(*check.findings) for check in report.checks if not check.ok}
    assert {"corrected_once", "corrections"} <= told.keys()
    assert f"call {hold.request.origin.call_id}: expected 1 correction, found 2" in told["corrected_once"]
    assert f"expected the id {correction_id(hold.request.origin.call_id)}" in told["corrections"]


_tokens = st.integers(0, 2_000)


@st.composite
def _usages(draw: st.DrawFn) -> TokenUsage:
    whole, output = draw(_tokens), draw(_tokens)
    cached = draw(st.integers(0, whole))
    return TokenUsage(whole, output, cached, draw(st.integers(0, whole - cached)), draw(st.integers(0, output)))


@given(before=_usages(), after=_usages())
def test_any_difference_fits_into_the_columns(before: TokenUsage, after: TokenUsage) -> None:
    difference = {meter: value - asdict(before)[meter] for meter, value in asdict(after).items()}
    added = added_tokens(difference)
    assert all(value <= max(0, difference[meter]) for meter, value in asdict(added).items())
    assert (added.input, added.output) == (max(0, difference["input"]), max(0, difference["output"]))


@given(call=st.uuids())
def test_the_id_of_a_correction_is_a_uuid7_of_the_calls_time(call: UUID) -> None:
    one = correction_id(call)
    assert one == correction_id(call) != call
    assert (one.version, one.variant, one.int >> 80) == (7, RFC_4122, call.int >> 80)
