"""Payments: what they pay, what is left of them, what goes back, and what never happens twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update

from billing import invoices, payments
from billing.invoices import NewCreditNote
from billing.payments_in import take_event
from billing.projection import project_all
from billing.receivables import Bucket, age, state
from billing.store.invoices import find_invoice
from billing.store.pages import Page
from billing.store.payments import account_entries, find_payment, open_items
from billing.store.webhook_events import list_events
from models.errors import Conflict, InvalidRequest, NotFound
from models.invoice import Invoice, InvoiceState, Payment
from models.money import LARGEST_BALANCE_UNITS, Units
from models.payment import PaymentEvent, PaymentEventState, PaymentKind
from models.tables import book, posting
from tests.integration.book.desk import CENT, DOLLAR, LATER, MONTH, VAT, Desk
from tests.integration.book.shop import Shop, Tenant

pytestmark = pytest.mark.anyio


@pytest.fixture
async def desk(shop: Shop) -> Desk:
    """A desk with a seller, and VAT for all."""
    desk = Desk(shop)
    await desk.open(VAT)
    return desk


async def billed(desk: Desk, tokens: int = 1_000_000) -> tuple[Tenant, Invoice]:
    """A customer with an open invoice."""
    await desk.use(tenant := await desk.customer(), tokens)
    return tenant, await desk.bill(tenant)


async def shown(desk: Desk, invoice_id: UUID) -> Invoice:
    async with desk.engine.connect() as connection:
        found = await find_invoice(connection, invoice_id)
    assert found is not None
    return found


async def refund(desk: Desk, paid: Payment, amount: int, key: str = "r", **more: Any) -> Payment:
    async with desk.engine.begin() as connection:
        return await payments.refund(connection, paid.id, Units(amount), key, LATER, **more)


async def grants(desk: Desk) -> list[tuple[str, int]]:
    async with desk.engine.connect() as connection:
        rows = await connection.execute(text("select kind, remaining from credit_grant order by id"))
        return [(row.kind, int(row.remaining)) for row in rows]


async def test_a_partial_payment_and_the_rest(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    part = await desk.pay(tenant, 50 * CENT)
    assert part.is_new
    assert [each.amount for each in part.payment.allocations] == [50 * CENT]
    assert part.payment.grant_id is None
    left = await shown(desk, issued.id)
    assert (left.state, left.due) == (InvoiceState.OPEN, issued.total - 50 * CENT)
    await desk.pay(tenant, issued.total - 50 * CENT, "bank-2")
    paid = await shown(desk, issued.id)
    assert (paid.state, paid.settled, paid.closed_at) == (InvoiceState.PAID, issued.total, LATER)
    accounts = await desk.accounts(tenant)
    assert accounts["cash_clearing"] == issued.total
    assert "receivable" not in accounts
    assert await desk.posted(tenant) == 0
    await desk.clean()


async def test_what_is_paid_too_much_is_credit(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    recorded = await desk.pay(tenant, issued.total + 3 * DOLLAR)
    assert recorded.payment.allocated == issued.total
    assert await grants(desk) == [("paid", 3 * DOLLAR)]
    assert await desk.posted(tenant) == 3 * DOLLAR
    await desk.clean()


async def test_without_an_invoice_all_is_credit(desk: Desk) -> None:
    tenant = await desk.customer()
    await desk.pay(tenant, 5 * DOLLAR)
    assert await grants(desk) == [("paid", 5 * DOLLAR)]
    await desk.clean()


async def test_what_is_due_first_is_paid_first_unless_told(desk: Desk) -> None:
    tenant = await desk.customer()
    await desk.use(tenant, 1_000_000, at=datetime.combine(MONTH, datetime.min.time(), UTC) - timedelta(days=1))
    await desk.use(tenant, 1_000_000)
    earlier = await desk.draft(tenant, month=(MONTH - timedelta(days=1)).replace(day=1))
    assert earlier is not None
    newer = await desk.bill(tenant)
    await desk.change(tenant, payment_terms_days=60)
    older = await desk.finalize(earlier)
    assert older.due_on is not None
    assert newer.due_on is not None
    assert newer.due_on < older.due_on
    first = await desk.pay(tenant, CENT)
    assert [each.invoice_id for each in first.payment.allocations] == [newer.id]
    told = await desk.pay(tenant, CENT, "bank-2", invoice_ids=(older.id,))
    assert [each.invoice_id for each in told.payment.allocations] == [older.id]
    await desk.clean()


async def test_a_payment_is_recorded_once(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    one, two = await asyncio.gather(desk.pay(tenant, issued.total), desk.pay(tenant, issued.total))
    assert one.payment == two.payment
    assert {one.is_new, two.is_new} == {True, False}
    with pytest.raises(Conflict, match="recorded before"):
        await desk.pay(tenant, issued.total + CENT)
    with pytest.raises(Conflict, match="recorded before"):
        await desk.pay(await desk.customer(), issued.total)
    assert (await desk.accounts(tenant))["cash_clearing"] == issued.total
    await desk.clean()


@pytest.mark.parametrize(
    ("amount", "more", "told"),
    [
        pytest.param(0, {}, "above zero", id="nothing"),
        pytest.param(-DOLLAR, {}, "above zero", id="less than nothing"),
        pytest.param(CENT + 1, {}, "smallest coin", id="a part of a cent"),
        pytest.param(10**17, {}, "larger than the ledger can hold", id="too much"),
        pytest.param(CENT, {"currency": "EUR"}, "must be in USD", id="another currency"),
        pytest.param(CENT, {"invoice_ids": (uuid4(),)}, "not an open invoice", id="an unknown invoice"),
        pytest.param(CENT, {"received_at": datetime(1926, 11, 3, tzinfo=UTC)}, "in 1926", id="long before all books"),
    ],
)
async def test_impossible_payments_are_refused(desk: Desk, amount: int, more: dict[str, Any], told: str) -> None:
    tenant, _ = await billed(desk)
    before = await desk.accounts(tenant)
    with pytest.raises(InvalidRequest, match=told):
        await desk.pay(tenant, amount, **more)
    assert await desk.accounts(tenant) == before


async def test_another_customers_invoice_is_not_paid(desk: Desk) -> None:
    tenant, _ = await billed(desk)
    _, other = await billed(desk)
    with pytest.raises(InvalidRequest, match="not an open invoice of this organization"):
        await desk.pay(tenant, CENT, invoice_ids=(other.id,))


async def test_credit_of_a_payment_pays_a_later_invoice(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    recorded = await desk.pay(tenant, 5 * DOLLAR)
    issued = await desk.bill(tenant)
    async with desk.engine.begin() as connection:
        for _ in range(2):
            paid = await payments.allocate(connection, recorded.payment.id, issued.id, None, "k", LATER)
        assert await find_payment(connection, paid.id) == paid
        with pytest.raises(Conflict, match="nothing is owed"):
            await payments.allocate(connection, recorded.payment.id, issued.id, None, "l", LATER)
        with pytest.raises(NotFound):
            await payments.allocate(connection, recorded.payment.id, uuid4(), None, "m", LATER)
    assert paid.allocated == issued.total
    assert (await shown(desk, issued.id)).state is InvoiceState.PAID
    assert await grants(desk) == [("paid", 5 * DOLLAR - issued.total)]
    await desk.clean()


async def test_a_refund_takes_what_is_still_credit(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    paid = (await desk.pay(tenant, issued.total + 2 * DOLLAR)).payment
    back = await refund(desk, paid, DOLLAR)
    assert await refund(desk, paid, DOLLAR) == back
    assert back.refunded == DOLLAR
    with pytest.raises(Conflict, match="another amount"):
        await refund(desk, paid, CENT)
    with pytest.raises(Conflict, match=r"1\.0+ USD can be refunded"):
        await refund(desk, paid, 150 * CENT, "s")
    with pytest.raises(InvalidRequest, match="no more than was paid"):
        await refund(desk, paid, issued.total + 2 * DOLLAR, "s")
    assert (await desk.accounts(tenant))["cash_clearing"] == issued.total + DOLLAR
    assert await desk.posted(tenant) == DOLLAR
    await desk.clean()


async def test_a_refund_after_a_credit_note_takes_its_credit(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    paid = (await desk.pay(tenant, issued.total)).payment
    async with desk.engine.begin() as connection:
        await invoices.credit_note(connection, issued.id, NewCreditNote("all"), "k", LATER)
    await refund(desk, paid, issued.total)
    assert await grants(desk) == [("refund", 0)]
    accounts = await desk.accounts(tenant)
    assert "cash_clearing" not in accounts
    assert "tax_payable" not in accounts
    await desk.clean()


async def test_a_payment_that_is_taken_away_opens_its_invoice_again(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    paid = (await desk.pay(tenant, issued.total)).payment
    back = await refund(desk, paid, issued.total, reopens=True)
    assert (back.refunded, back.allocated) == (issued.total, 0)
    opened = await shown(desk, issued.id)
    assert (opened.state, opened.due, opened.closed_at) == (InvoiceState.OPEN, issued.total, None)
    assert await desk.posted(tenant) == -issued.total
    await desk.clean()


async def test_what_came_in_in_a_closed_period_is_posted_in_the_open_one(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    opened = LATER + timedelta(days=1)
    async with desk.engine.begin() as connection:
        await connection.execute(update(book).values(closed_until=opened))
    paid = (await desk.pay(tenant, issued.total)).payment
    assert paid.received_at == LATER
    async with desk.engine.connect() as connection:
        query = select(posting.c.effective_at).where(posting.c.id == paid.posting_id)
        assert (await connection.execute(query)).scalar_one() == opened


def told(tenant: Tenant, event_id: str, kind: PaymentKind, minor: int) -> PaymentEvent:
    return PaymentEvent(
        provider="stripe",
        event_id=event_id,
        kind=kind,
        type=kind.value,
        reference="pi_1",
        organization_id=tenant.organization_id,
        invoice_id=None,
        amount_minor=minor,
        currency="USD",
        at=LATER,
        digest=sha256(event_id.encode()).digest(),
    )


async def test_a_refund_that_waits_is_not_settled_by_a_smaller_one(desk: Desk) -> None:
    tenant = await desk.customer()
    await take_event(desk.engine, told(tenant, "evt_1", PaymentKind.SUCCEEDED, 1_000), LATER)
    await desk.use(tenant, 1_000_000)
    assert (await take_event(desk.engine, told(tenant, "evt_3", PaymentKind.REFUNDED, 950), LATER)).state == "unbooked"
    assert (await take_event(desk.engine, told(tenant, "evt_2", PaymentKind.REFUNDED, 400), LATER)).state == "booked"
    async with desk.engine.connect() as connection:
        waiting, _ = await list_events(connection, Page(None, 10), PaymentEventState.UNBOOKED)
    assert [event.event_id for event in waiting] == ["evt_3"]


async def test_a_balance_beyond_the_largest_stops_no_worker(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    for amount in (LARGEST_BALANCE_UNITS, issued.total):
        await desk.shop.grant(tenant, amount)
    await desk.pay(tenant, issued.total)
    assert await desk.posted(tenant) == LARGEST_BALANCE_UNITS + issued.total
    await project_all(desk.engine, desk.shop.hot, tenant.shard)
    balance = await desk.shop.hot.balance(tenant.shard, tenant.organization_id)
    assert balance is not None
    assert balance.balance == LARGEST_BALANCE_UNITS


# What is owed --------------------------------------------------------------------------------------------------------


async def test_a_statement_ends_with_what_the_ledger_says(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    paid = (await desk.pay(tenant, 50 * CENT)).payment
    async with desk.engine.begin() as connection:
        await invoices.credit_note(connection, issued.id, NewCreditNote("less", Units(10 * CENT)), "k", LATER)
    await refund(desk, paid, 20 * CENT, reopens=True)
    async with desk.engine.connect() as connection:
        entries = await account_entries(connection, tenant.organization_id)
    statement = state(entries, date(2000, 1, 1), LATER.date())
    assert [(entry.kind.value, entry.reference, entry.amount) for entry in statement.entries] == [
        ("invoice", "INV-000001", issued.total),
        ("payment", "bank-1", -50 * CENT),
        ("credit_note", "CN-000001", -10 * CENT),
        ("refund", "bank-1", 20 * CENT),
    ]
    assert statement.closing == (await desk.accounts(tenant))["receivable"] == issued.total - 40 * CENT
    assert (
        state(entries, LATER.date() + timedelta(days=1), LATER.date() + timedelta(days=9)).opening == statement.closing
    )
    async with desk.engine.begin() as connection:
        await invoices.write_off(connection, issued.id, "gone", LATER)
        entries = await account_entries(connection, tenant.organization_id)
    assert state(entries, date(2000, 1, 1), LATER.date()).closing == 0


async def test_ageing_is_of_the_day_that_is_asked_for(desk: Desk) -> None:
    tenant, issued = await billed(desk)
    assert issued.due_on is not None
    await desk.pay(tenant, CENT)
    owed = issued.total - CENT

    async def buckets(day: date) -> list[tuple[Bucket, int]]:
        async with desk.engine.connect() as connection:
            items = await open_items(connection, day, tenant.organization_id)
        return [(bucket, amount) for each in age(items, day) for bucket, amount in each.buckets.items() if amount]

    assert await buckets(LATER.date() - timedelta(days=1)) == []
    assert await buckets(issued.due_on) == [(Bucket.NOT_DUE, owed)]
    assert await buckets(issued.due_on + timedelta(days=31)) == [(Bucket.UP_TO_60, owed)]
    async with desk.engine.begin() as connection:
        await invoices.write_off(connection, issued.id, "gone", LATER + timedelta(days=100))
    assert await buckets(issued.due_on + timedelta(days=10)) == [(Bucket.UP_TO_30, owed)]
    assert await buckets(LATER.date() + timedelta(days=100)) == []
