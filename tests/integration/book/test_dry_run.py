"""Prices in steps from the catalog to `verify`, and a dry run that tells what drafts would have brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.charges import Measured
from billing.charges import charge as close
from billing.pricing import ceiling, price
from billing.repricing import Repriced, Sums, dry_run, latest, moved, overlaid
from billing.settlement import book_shard, correct
from billing.store.catalog import load_catalog
from billing.store.price_books import create_book, set_batch_book
from billing.store.prices import publish
from billing.verify import verify
from models.call import Charge, Hold
from models.catalog import Meter, PriceDraft, PriceVersion, Rates, Scheme, Tier, TiersOver
from models.errors import InvalidRequest
from models.money import MilliUnits
from models.tables import organization
from models.usage import Ending, TokenUsage, UsageSource
from tests.integration.book.shop import MODEL, Shop, Tenant, now

pytestmark = pytest.mark.anyio

PAID = 10_000_000_000
TIERS = (Tier(100, MilliUnits(600_000)), Tier(None, MilliUnits(300_000)))
ANY = PriceDraft("default", MODEL, Meter.INPUT, "USD", MilliUnits(200_000))


def draft(meter: Meter, price: int, *, book: str = "default", **terms: Any) -> PriceDraft:
    return PriceDraft(book, MODEL, meter, "USD", MilliUnits(price), **terms)


async def sell(shop: Shop, *drafts: PriceDraft) -> None:
    async with shop.engine.begin() as connection:
        for one in drafts:
            await publish(connection, one, "test", now())


async def partner(shop: Shop, tenant: Tenant) -> None:
    """Move a tenant into a book that inherits from the default one."""
    async with shop.engine.begin() as connection:
        await create_book(connection, "partners", "default", "test", now())
        await connection.execute(
            update(organization).where(organization.c.id == tenant.organization_id).values(price_book="partners")
        )


async def rates(shop: Shop, book: str) -> Rates:
    async with shop.engine.connect() as connection:
        found = (await load_catalog(connection)).rates(book, "USD", MODEL, now())
    assert found is not None
    return found


async def called(
    shop: Shop, tenant: Tenant, *usages: TokenUsage, ending: Ending = Ending.FINISHED, batch: bool = False
) -> list[Charge]:
    """Calls, held at their ceiling, settled and booked."""
    charges = []
    for usage in usages:
        hold = await shop.hold(tenant, ceiling(4_096, 4_096, shop.rates), batch=batch)
        measured = Measured(usage, UsageSource.BACKEND)
        charges.append(close(hold, measured, ending=ending, deployment="local", ended_at=now()))
        assert await shop.hot.settle(hold, charges[-1])
    assert (await book_shard(shop.engine, shop.hot, tenant.shard)).dead == 0
    return charges


async def tried(
    shop: Shop, *drafts: PriceDraft, hours: int = 1, batch_books: dict[str, str | None] | None = None
) -> dict[UUID, Repriced]:
    moment = now()
    async with shop.engine.connect() as connection:
        span = (moment - timedelta(hours=hours), moment + timedelta(hours=1))
        found = await dry_run(connection, drafts, *span, now=moment, batch_books=batch_books)
    return {one.organization_id: one for one in found}


def figures(one: Sums) -> tuple[int, int, int]:
    return one.calls, one.charged, one.would_be


# Steps in the book ---------------------------------------------------------------------------------------------------


async def test_steps_and_inherited_prices_are_charged_and_verified(shop: Shop, owner: AsyncEngine) -> None:
    tenant = await shop.tenant(PAID)
    await partner(shop, tenant)
    await sell(
        shop,
        draft(Meter.OUTPUT, 600_000, book="partners", scheme=Scheme.GRADUATED, tiers=TIERS),
        draft(Meter.CACHED_INPUT, 1_000_000, book="partners", scheme=Scheme.PACKAGE, package_size=50),
        draft(Meter.MINIMUM, 20_000_000, book="partners"),
    )
    shop.rates = await rates(shop, "partners")
    usages = (TokenUsage(100, 150, cached=51, reasoning=120), TokenUsage(1, 1), TokenUsage(0, 0))
    charges = await called(shop, tenant, *usages)
    # 49 fresh at 150, two packages of 1000; 100 output at 600 and 50 at 300. Then twice the minimum.
    assert [charge.amount for charge in charges] == [49 * 150 + 2 * 1_000 + 100 * 600 + 50 * 300, 20_000, 20_000]
    report = await verify(shop.engine, shop.hot)
    assert report.ok, [finding for check in report.checks for finding in check.findings]

    async with owner.begin() as connection:
        await connection.execute(text("alter table charge disable trigger user"))
        await connection.execute(
            text("update charge set output_tokens = output_tokens + 1 where call_id = :call"),
            {"call": charges[0].call_id},
        )
    checks = {check.claim.name: check for check in (await verify(shop.engine, shop.hot)).checks if not check.ok}
    assert checks.keys() == {"prices", "usage"}
    assert f"expected {charges[0].amount + 300}" in str(checks["prices"].findings[0])


async def test_prices_of_two_books_without_a_line_between_them_are_found(shop: Shop, owner: AsyncEngine) -> None:
    tenant = await shop.tenant(PAID)
    await sell(shop, draft(Meter.OUTPUT, 600_000, book="strangers"))
    async with owner.connect() as connection:
        rows = await connection.execute(
            text("select id from price_version where book = 'strangers' or meter = 'input'")
        )
        mixed = tuple(sorted(rows.scalars()))
    shop.rates = replace(shop.rates, version_ids=mixed)
    await called(shop, tenant, TokenUsage(10, 0))
    failed = {check.claim.name for check in (await verify(shop.engine, shop.hot)).checks if not check.ok}
    assert failed == {"prices"}


# The dry run ---------------------------------------------------------------------------------------------------------


async def test_a_draft_that_changes_nothing_makes_no_difference(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    charges = await called(shop, tenant, TokenUsage(100, 10, cached=3), TokenUsage(7, 9))
    charged = sum(charge.amount for charge in charges)
    same = draft(Meter.INPUT, 150_000)
    elsewhere = replace(draft(Meter.INPUT, 1), currency="EUR")
    for drafts in ([same], [same, elsewhere], [replace(ANY, book="strangers")]):
        found = await tried(shop, *drafts)
        assert figures(found[tenant.organization_id]) == (2, charged, charged)


async def test_each_call_is_priced_and_rounded_by_itself(shop: Shop) -> None:
    tenant, other = await shop.tenant(PAID), await shop.tenant(PAID)
    usages = [TokenUsage(number, number * 2, cached=number // 3) for number in range(1, 30)]
    charges = await called(shop, tenant, *usages)
    await called(shop, other, TokenUsage(5, 5))
    drafts = (
        draft(Meter.INPUT, 150_500),
        draft(Meter.OUTPUT, 0, scheme=Scheme.VOLUME, tiers=(Tier(20, MilliUnits(700_125)), TIERS[1])),
        draft(Meter.MINIMUM, 5_000_000),
    )
    found = await tried(shop, *drafts)
    await sell(shop, *drafts)
    drafted = await rates(shop, "default")
    expected = sum(price(usage, drafted) for usage in usages)
    assert figures(found[tenant.organization_id]) == (29, sum(charge.amount for charge in charges), expected)
    assert found[tenant.organization_id].name == "Test"
    assert found.keys() == {tenant.organization_id, other.organization_id}


async def test_nothing_is_written(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    await called(shop, tenant, TokenUsage(5, 5))
    async with shop.engine.connect() as connection:
        assert await dry_run(connection, [ANY], now() - timedelta(hours=1), now(), now=now())
        assert (await connection.execute(text("show transaction_read_only"))).scalar_one() == "on"
    async with shop.engine.connect() as connection:
        assert (await connection.execute(text("show transaction_read_only"))).scalar_one() == "off"
        ids = await connection.execute(text("select id from price_version order by id"))
        assert tuple(ids.scalars()) == shop.rates.version_ids


async def test_a_nearer_book_keeps_the_last_word(shop: Shop) -> None:
    tenant, plain = await shop.tenant(PAID), await shop.tenant(PAID)
    await partner(shop, tenant)
    await sell(shop, draft(Meter.INPUT, 100_000, book="partners"))
    [ordinary] = await called(shop, plain, TokenUsage(10, 10))
    shop.rates = await rates(shop, "partners")
    [special] = await called(shop, tenant, TokenUsage(10, 10))
    found = await tried(shop, draft(Meter.INPUT, 300_000), draft(Meter.OUTPUT, 0))
    assert figures(found[plain.organization_id]) == (1, ordinary.amount, 3_000)
    assert figures(found[tenant.organization_id]) == (1, special.amount, 1_000)
    found = await tried(shop, draft(Meter.INPUT, 50_000, book="partners"))
    assert figures(found[plain.organization_id]) == (1, ordinary.amount, ordinary.amount)
    assert found[tenant.organization_id].difference == -500


async def name_night(shop: Shop, batch_book: str | None = "night") -> None:
    async with shop.engine.begin() as connection:
        await set_batch_book(connection, "default", batch_book)


async def night(shop: Shop) -> None:
    """A book with cheaper input, and all else as usual."""
    async with shop.engine.begin() as connection:
        await create_book(connection, "night", "default", "test", now())
    await sell(shop, draft(Meter.INPUT, 50_000, book="night"))


async def test_a_batch_is_priced_again_by_its_own_book(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    await night(shop)
    await name_night(shop)
    [plain] = await called(shop, tenant, TokenUsage(100, 10))
    shop.rates = await rates(shop, "night")
    [in_batch] = await called(shop, tenant, TokenUsage(100, 10), batch=True)
    assert (plain.amount, in_batch.amount) == (100 * 150 + 10 * 600, 100 * 50 + 10 * 600)
    for drafts, would_be in (
        ([draft(Meter.INPUT, 300_000)], (100 * 300 + 6_000, in_batch.amount)),
        ([draft(Meter.INPUT, 10_000, book="night")], (plain.amount, 100 * 10 + 6_000)),
        ([draft(Meter.OUTPUT, 100_000)], (100 * 150 + 1_000, 100 * 50 + 1_000)),
    ):
        found = (await tried(shop, *drafts))[tenant.organization_id]
        assert figures(found) == (2, plain.amount + in_batch.amount, sum(would_be))
        assert figures(found.batches) == (1, in_batch.amount, would_be[1])


async def test_a_batch_book_is_tried_before_it_is_named(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    await night(shop)
    [plain] = await called(shop, tenant, TokenUsage(100, 10))
    [in_batch] = await called(shop, tenant, TokenUsage(100, 10), batch=True)
    found = (await tried(shop, batch_books={"default": "night"}))[tenant.organization_id]
    assert figures(found) == (2, 2 * plain.amount, plain.amount + 100 * 50 + 6_000)
    assert figures(found.batches) == (1, in_batch.amount, 100 * 50 + 6_000)
    cheaper = draft(Meter.OUTPUT, 300_000, book="night")
    found = (await tried(shop, cheaper, batch_books={"default": "night"}))[tenant.organization_id]
    assert figures(found.batches) == (1, in_batch.amount, 100 * 50 + 3_000)
    assert found.would_be == plain.amount + found.batches.would_be
    # And what it would be without, once it is named.
    await name_night(shop)
    shop.rates = await rates(shop, "night")
    await called(shop, tenant, TokenUsage(100, 10), batch=True)
    found = (await tried(shop, batch_books={"default": None}))[tenant.organization_id]
    assert figures(found.batches) == (2, 21_000 + 11_000, 2 * 21_000)


async def test_a_batch_book_that_does_not_sell_the_model_changes_nothing(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    async with shop.engine.begin() as connection:
        await create_book(connection, "other", None, "test", now())
    [in_batch] = await called(shop, tenant, TokenUsage(100, 10), batch=True)
    found = (await tried(shop, batch_books={"default": "other"}))[tenant.organization_id]
    assert figures(found.batches) == (1, in_batch.amount, in_batch.amount)
    found = (await tried(shop, draft(Meter.INPUT, 10_000, book="other"), batch_books={"default": "other"}))[
        tenant.organization_id
    ]
    assert figures(found.batches) == (1, in_batch.amount, 100 * 10), "what it has no price for is free"


@pytest.mark.parametrize(
    ("books", "says"),
    [
        pytest.param({"default": "none"}, "no price book 'none'", id="an unknown batch book"),
        pytest.param({"none": "default"}, "no price book 'none'", id="an unknown book"),
        pytest.param({"default": "default"}, "cannot name itself", id="itself"),
    ],
)
async def test_what_no_batch_book_can_be(book: Shop, books: dict[str, str | None], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await tried(book, batch_books=books)


async def test_a_correction_counts_with_its_call(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    hold = await shop.hold(tenant)
    seen = Measured(TokenUsage(10, 10), UsageSource.CHECKPOINT)
    swept = close(hold, seen, ending=Ending.RECOVERED, deployment="local", ended_at=now())
    assert await shop.hot.settle(hold, swept)
    await book_shard(shop.engine, shop.hot, tenant.shard)
    correction = await correct(shop.engine, shop.hot, _journaled(hold, TokenUsage(10, 40)))
    assert correction is not None
    charged = swept.amount + correction.amount
    assert charged == 10 * 150 + 40 * 600
    found = (await tried(shop, draft(Meter.MINIMUM, 10_000_000), draft(Meter.OUTPUT, 100_000)))[tenant.organization_id]
    # The minimum is that of the whole call, once: not of what was first charged, nor of the difference.
    assert figures(found) == (1, charged, 10_000)
    untouched = (await tried(shop, draft(Meter.REQUEST, 0)))[tenant.organization_id]
    assert figures(untouched) == (1, charged, charged)


def _journaled(hold: Hold, usage: TokenUsage) -> Charge:
    measured = Measured(usage, UsageSource.BACKEND)
    return close(hold, measured, ending=Ending.FINISHED, deployment="local", ended_at=now())


async def test_tiers_over_a_month_count_with_what_the_invoice_gives_back(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    async with shop.engine.begin() as connection:
        await connection.execute(update(organization).values(timezone="Asia/Seoul"))
    charges = await called(shop, tenant, TokenUsage(90, 1, cached=90), TokenUsage(70, 1))
    charged = sum(charge.amount for charge in charges)
    monthly: dict[str, Any] = {"scheme": Scheme.VOLUME, "tiers": TIERS, "tiers_over": TiersOver.MONTH}
    found = (await tried(shop, draft(Meter.OUTPUT, 600_000, **monthly)))[tenant.organization_id]
    assert (figures(found), found.rebate, found.difference) == ((2, charged, charged), 0, 0), "within the dearest tier"
    # All 160 tokens of input, cached or not, reach the second tier together: 300 of 600 come back for each.
    everything = (draft(Meter.INPUT, 600_000, **monthly), draft(Meter.CACHED_INPUT, 600_000, **monthly))
    found = (await tried(shop, everything[0]))[tenant.organization_id]
    assert (found.would_be, found.rebate) == (70 * 600 + 90 * 75 + 2 * 600, 0), "cached tokens have their own price"
    few = (Tier(50, MilliUnits(600_000)), Tier(None, MilliUnits(300_000)))
    drafts = [replace(one, tiers=few) for one in everything]
    found = (await tried(shop, *drafts))[tenant.organization_id]
    assert (found.would_be, found.rebate) == (160 * 600 + 2 * 600, 160 * 300)
    assert found.difference == 160 * 300 + 2 * 600 - charged
    requests = draft(
        Meter.REQUEST, 4_000, **{**monthly, "tiers": (Tier(1, MilliUnits(4_000)), Tier(None, MilliUnits(1_000)))}
    )
    found = (await tried(shop, requests))[tenant.organization_id]
    assert (found.would_be - charged, found.rebate, found.difference) == (8, 6, 2)


async def test_a_month_that_is_priced_by_tiers_already_is_compared_with_its_rebate(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    monthly: dict[str, Any] = {"scheme": Scheme.VOLUME, "tiers": TIERS, "tiers_over": TiersOver.MONTH}
    await sell(shop, draft(Meter.INPUT, 600_000, **monthly))
    shop.rates = await rates(shop, "default")
    await called(shop, tenant, TokenUsage(80, 0), TokenUsage(80, 0))
    untouched = (await tried(shop, draft(Meter.REASONING, 1)))[tenant.organization_id]
    assert (untouched.rebate, untouched.difference) == (0, 0)
    plain = (await tried(shop, draft(Meter.INPUT, 300_000)))[tenant.organization_id]
    assert (figures(plain), plain.rebate, plain.difference) == ((2, 160 * 600, 160 * 300), -160 * 300, 0)


async def test_calls_outside_the_span_do_not_count(shop: Shop) -> None:
    tenant = await shop.tenant(PAID)
    await called(shop, tenant, TokenUsage(10, 10))
    moment = now()
    async with shop.engine.connect() as connection:
        assert (
            await dry_run(connection, [ANY], moment + timedelta(seconds=1), moment + timedelta(days=9), now=moment)
            == []
        )
    async with shop.engine.connect() as connection:
        assert (
            await dry_run(connection, [ANY], moment - timedelta(days=9), moment - timedelta(minutes=5), now=moment)
            == []
        )
    assert figures((await tried(shop, ANY, hours=24 * 300))[tenant.organization_id])[0] == 1


@pytest.mark.parametrize(
    ("drafts", "span", "says"),
    [
        pytest.param([ANY], timedelta(0), "ends after it begins", id="an empty span"),
        pytest.param([ANY], timedelta(days=401), "400 days at most", id="too long a span"),
        pytest.param([replace(ANY, model="none")], timedelta(days=1), "no model 'none'", id="an unknown model"),
        pytest.param([ANY, replace(ANY, price=MilliUnits(1))], timedelta(days=1), "Two drafts price", id="twice"),
    ],
)
async def test_what_no_dry_run_can_be(book: Shop, drafts: list[PriceDraft], span: timedelta, says: str) -> None:
    moment = now()
    async with book.engine.connect() as connection:
        with pytest.raises(InvalidRequest, match=says):
            await dry_run(connection, drafts, moment - span, moment, now=moment)


# What is laid over what ----------------------------------------------------------------------------------------------


def pinned(*drafts: PriceDraft) -> dict[Meter, PriceVersion]:
    return {
        one.meter: PriceVersion(UUID(int=9), one.book, one.model, one.meter, one.currency, one.price, now())
        for one in drafts
    }


@pytest.mark.parametrize(
    ("there", "drafts", "price", "name"),
    [
        ("default", ["default"], 200_000, "its own book"),
        ("default", ["partners"], 200_000, "a nearer book"),
        ("partners", ["default"], 1, "a book further away"),
        ("left", ["default"], 200_000, "a book that the organization left"),
        ("default", ["strangers"], 1, "a book of others"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_draft_takes_the_place_of_what_is_as_near_or_further(
    there: str, drafts: Sequence[str], price: int, name: str
) -> None:
    found = overlaid(
        pinned(draft(Meter.INPUT, 1, book=there)), ["partners", "default"], [replace(ANY, book=one) for one in drafts]
    )
    assert found[Meter.INPUT].price == price, name


@pytest.mark.parametrize(
    ("there", "in_force", "book", "price"),
    [
        pytest.param("default", "night", "night", 200_000, id="what is nearer"),
        pytest.param("night", "default", "night", 1, id="not what is further away"),
        pytest.param("night", "night", "night", 1, id="what the call has from there stays"),
        pytest.param("left", "default", "default", 200_000, id="nothing stays from a book that is left"),
    ],
)
def test_what_comes_from_another_line_of_books(there: str, in_force: str, book: str, price: int) -> None:
    now_there = pinned(replace(ANY, book=in_force), draft(Meter.OUTPUT, 5, book="strangers"))
    found = moved(pinned(draft(Meter.INPUT, 1, book=there)), ["night", "default"], now_there.values())
    assert [(meter, one.book, one.price) for meter, one in found.items()] == [(Meter.INPUT, book, price)]


def test_of_a_list_with_its_history_the_last_counts() -> None:
    old, new = replace(ANY, effective_from=now() - timedelta(days=9)), replace(ANY, effective_from=now())
    assert list(latest([new, old]).values()) == [new]
    assert list(latest([old, ANY]).values()) == [ANY], "without a beginning it begins now"
    month = replace(ANY, meter=Meter.OUTPUT, tiers_over=TiersOver.MONTH, scheme=Scheme.VOLUME, tiers=TIERS)
    assert list(latest([old, month]).values()) == [old, month]
