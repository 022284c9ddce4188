"""A month from its calls to its invoice, and whatever is taken back of one: every total by two ways."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from billing import invoices
from billing.exports import KINDS, Wanted, begin_export, stream
from billing.exports.focus_check import check
from billing.invoices import NewCreditNote, Policy
from billing.months import bounds_of, next_month
from billing.pricing import price
from billing.rounding import divide_half_even
from billing.settlement import correct, void_grant
from billing.store.invoices import InvoiceFilter, all_invoices, find_invoice
from billing.tax import TaxRule
from models.catalog import Tier
from models.errors import Conflict, InvalidRequest
from models.invoice import AmendmentReason, Invoice, InvoiceState, LineKind, TaxTreatment
from models.ledger import GrantKind
from models.money import MilliUnits, Units, amount_text
from models.tables import invoice, organization_balance, usage_day
from models.usage import Ending, TokenUsage
from tests.integration.book.desk import BEGIN, CENT, DOLLAR, END, LATER, MONTH, VAT, WON, Desk
from tests.integration.book.shop import Shop, now

pytestmark = pytest.mark.anyio


@pytest.fixture
async def desk(shop: Shop) -> Desk:
    """A desk with a seller, and VAT for all."""
    desk = Desk(shop)
    await desk.open(VAT)
    return desk


def half_even_cents(units: int) -> int:
    return divide_half_even(units, CENT) * CENT


# From calls to an invoice --------------------------------------------------------------------------------------------


async def test_an_invoice_is_the_sum_of_its_calls_and_the_tax(desk: Desk) -> None:
    tenant = await desk.customer(legal_name="Acme GmbH", country="FR", address="Rue 1", purchase_order="PO-7")
    calls = [await desk.use(tenant, tokens) for tokens in (1_000_001, 777_777, 3)]
    exact = sum(call.amount for call in calls)

    issued = await desk.bill(tenant)

    subtotal = half_even_cents(exact)
    tax = divide_half_even(subtotal * 19, 100 * CENT) * CENT
    assert (issued.subtotal, issued.tax.amount, issued.total) == (subtotal, tax, subtotal + tax)
    assert issued.rounding == subtotal - exact != 0
    assert (issued.state, issued.number_text, issued.month) == (InvoiceState.OPEN, "INV-000001", MONTH)
    assert (issued.starts_at, issued.ends_at, issued.timezone) == (BEGIN, END, "UTC")
    assert issued.issued_on == LATER.date()
    assert issued.due_on == LATER.date() + timedelta(days=30)
    assert (issued.buyer.legal_name, issued.buyer.country, issued.purchase_order) == ("Acme GmbH", "FR", "PO-7")
    assert issued.seller is not None
    assert (issued.seller.legal_name, issued.seller.tax_id) == ("Models Ltd", "DE123456789")
    assert sum(line.amount for line in issued.lines) == exact
    assert sum(line.rounded for line in issued.lines) == subtotal
    tokens = sum(call.output_tokens for call in calls)
    assert [(line.meter, line.quantity, line.unit_price) for line in issued.lines] == [
        ("input", sum(call.input_tokens - call.cached_tokens for call in calls), 150_000),
        ("cached_input", sum(call.cached_tokens for call in calls), 75_000),
        ("output", tokens, 600_000),
    ]
    assert {(line.project_name, line.model) for line in issued.lines} == {("Test", "tiny")}
    assert await desk.accounts(tenant) == {
        "receivable": subtotal + tax,
        "revenue": -exact,
        "tax_payable": -tax,
        "rounding": exact - subtotal,
    }
    assert await desk.posted(tenant) == -(subtotal + tax)
    await desk.clean()


async def test_issuing_again_changes_nothing(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    issued = await desk.bill(tenant)
    accounts = await desk.accounts(tenant)
    assert await desk.bill(tenant) == issued
    assert await desk.accounts(tenant) == accounts


async def test_credit_pays_first_and_is_a_line(desk: Desk) -> None:
    tenant = await desk.customer(paid=DOLLAR)
    call = await desk.use(tenant, 2_000_000)
    assert call.amount > DOLLAR, "the call crosses from credit to what is owed"
    issued = await desk.bill(tenant)
    assert issued.lines[-1].kind is LineKind.CREDIT
    assert issued.lines[-1].amount == -DOLLAR
    assert sum(line.amount for line in issued.lines) == call.amount - DOLLAR
    assert issued.subtotal == half_even_cents(call.amount - DOLLAR)
    await desk.clean()


async def test_a_month_that_credit_paid_has_an_invoice_of_nothing_that_is_paid(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(paid=5 * DOLLAR), 1_000_000)
    issued = await desk.bill(tenant)
    assert (issued.state, issued.total, issued.number) == (InvoiceState.PAID, 0, 1)
    assert issued.posting_id is not None, "the book knows every document that was issued, and so do exports"
    assert [line.quantity for line in issued.lines] == [500_000, 500_000, 1_000_000, 0]
    assert sum(line.rounded for line in issued.lines) == 0
    await desk.clean()


async def test_a_month_without_usage_has_no_invoice(desk: Desk) -> None:
    assert await desk.draft(await desk.customer()) is None


async def test_what_is_less_than_half_a_cent_is_rounded_away(desk: Desk) -> None:
    call = await desk.use(tenant := await desk.customer(), 100)
    issued = await desk.bill(tenant)
    assert (issued.state, issued.total, issued.rounding) == (InvoiceState.PAID, 0, -call.amount)
    assert await desk.accounts(tenant) == {"revenue": -call.amount, "rounding": call.amount}
    assert await desk.posted(tenant) == 0
    await desk.clean()


async def test_a_new_price_in_the_month_is_a_line_of_its_own(desk: Desk) -> None:
    tenant = await desk.customer()
    turn = BEGIN + timedelta(days=10)
    one = await desk.use(tenant, 1_000_000, at=turn - timedelta(days=1))
    versions = await desk.new_output_price(1_200_000, turn)
    two = await desk.use(tenant, 1_000_000, at=turn + timedelta(days=1), version_ids=versions)
    issued = await desk.bill(tenant)
    output = [(line.quantity, line.unit_price, line.amount) for line in issued.lines if line.meter == "output"]
    assert sorted(output) == [(1_000_000, 600_000, 600_000_000), (1_000_000, 1_200_000, 1_200_000_000)]
    assert [line.quantity for line in issued.lines if line.meter == "input"] == [1_000_000], "its price is the same"
    assert sum(line.amount for line in issued.lines) == one.amount + two.amount
    await desk.clean()


# Months --------------------------------------------------------------------------------------------------------------


async def test_a_month_is_cut_off_after_its_end_and_the_grace(desk: Desk) -> None:
    tenant = await desk.customer()
    with pytest.raises(Conflict, match="is not over"):
        await desk.cut_off(tenant, at=END - timedelta(seconds=1))
    with pytest.raises(Conflict, match="waits for late calls until"):
        await desk.cut_off(tenant, at=END + timedelta(hours=23))
    async with desk.engine.begin() as connection:
        owner = tenant.organization_id
        grace = timedelta(hours=24)
        forced = await invoices.cut_off(connection, owner, MONTH, END, grace, is_forced=True)
        assert await invoices.cut_off(connection, owner, MONTH, LATER, grace) == forced
        assert (await connection.execute(select(organization_balance.c.open_month))).scalar_one() == next_month(MONTH)


async def test_a_late_call_is_on_the_next_invoice(desk: Desk) -> None:
    tenant = await desk.customer()
    await desk.use(tenant, 1_000_000)
    first = await desk.bill(tenant)
    late = await desk.use(tenant, 1_000_000, at=END - timedelta(seconds=1))
    assert (await desk.bill(tenant)) == first
    async with desk.engine.connect() as connection:
        months = await connection.execute(select(usage_day.c.billing_month, usage_day.c.day, usage_day.c.unbilled))
        assert (next_month(MONTH), (END - timedelta(seconds=1)).date(), late.amount) in {
            (row[0], row[1], int(row[2])) for row in months
        }
    await desk.clean()


async def test_a_month_is_drafted_when_it_is_cut_off_only(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000)
    async with desk.engine.begin() as connection:
        with pytest.raises(Conflict, match="was not cut off"):
            await invoices.draft(connection, tenant.organization_id, MONTH, LATER, Policy())


async def test_bounds_are_those_of_the_organizations_clocks(desk: Desk) -> None:
    tenant = await desk.customer(timezone="Asia/Seoul")
    begin, end = bounds_of(MONTH, "Asia/Seoul")
    await desk.use(tenant, 1_000_000, at=begin)
    await desk.use(tenant, 2_000_000, at=end)
    issued = await desk.bill(tenant)
    assert (issued.starts_at, issued.ends_at, issued.timezone) == (begin, end, "Asia/Seoul")
    assert [line.quantity for line in issued.lines if line.meter == "output"] == [1_000_000]
    await desk.change(tenant, timezone="UTC")
    async with desk.engine.connect() as connection:
        assert await find_invoice(connection, issued.id) == issued
    await desk.clean()


# Tax -----------------------------------------------------------------------------------------------------------------


async def test_prices_that_contain_the_tax(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(TaxRule(TaxTreatment.STANDARD, 190_000, is_inclusive=True, name="VAT"))
    calls = [await desk.use(tenant := await desk.customer(), 1_000_003)]
    calls.append(await desk.use(tenant, 77))
    exact = sum(call.amount for call in calls)
    issued = await desk.bill(tenant)
    assert issued.total == half_even_cents(exact)
    assert issued.tax.amount == divide_half_even(issued.total * 19, 119 * CENT) * CENT
    assert sum(line.rounded for line in issued.lines) == issued.subtotal
    assert await desk.accounts(tenant) == {
        "receivable": issued.total,
        "revenue": -(exact - issued.tax.amount),
        "tax_payable": -issued.tax.amount,
        "rounding": exact - issued.total,
    }
    await desk.clean()


async def test_reverse_charge_needs_the_buyers_number(desk: Desk) -> None:
    tenant = await desk.customer(tax_treatment="reverse_charge")
    await desk.use(tenant, 1_000_000)
    drafted = await desk.draft(tenant)
    assert drafted is not None
    with pytest.raises(Conflict, match="tax_id"):
        await desk.finalize(drafted)
    await desk.change(tenant, tax_id="FR12345678901")
    issued = await desk.finalize(drafted)
    assert (issued.tax.treatment, issued.tax.amount) == (TaxTreatment.REVERSE_CHARGE, 0)
    assert issued.buyer.tax_id == "FR12345678901"
    await desk.clean()


async def test_without_any_rule_there_is_no_tax_and_with_no_rate_none_can_be_charged(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open()
    await desk.use(tenant := await desk.customer(), 1_000_000)
    drafted = await desk.draft(tenant)
    assert drafted is not None
    assert (drafted.tax.treatment, drafted.tax.amount) == (TaxTreatment.NONE, 0)
    await desk.change(tenant, tax_treatment="standard")
    with pytest.raises(Conflict, match="no tax rule"):
        await desk.draft(tenant)


async def test_a_korean_invoice_says_what_it_must(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(TaxRule(TaxTreatment.STANDARD, 100_000, name="부가가치세"), country="KR", tax_id="1248100998")
    await desk.use(tenant := await desk.customer(country="KR", tax_id="2208162517"), 3_000_000)
    issued = await desk.bill(tenant)
    assert issued.korea is not None
    assert (issued.korea.supply_value, issued.korea.tax) == (issued.subtotal, issued.tax.amount)
    assert issued.korea.written_on == next_month(MONTH) - timedelta(days=1)
    assert (issued.korea.seller_registration, issued.korea.buyer_registration) == ("1248100998", "2208162517")

    approval = f"{MONTH:%Y%m%d}" + "1000000012345678"
    async with desk.engine.begin() as connection:
        with pytest.raises(InvalidRequest, match="24 characters"):
            await invoices.note_approval(connection, issued.id, "123")
        noted = await invoices.note_approval(connection, issued.id, approval)
        assert noted.korea is not None
        assert noted.korea.approval_number == approval
        with pytest.raises(Conflict, match="which stays"):
            await invoices.note_approval(connection, issued.id, approval[:-1] + "9")
        with pytest.raises(InvalidRequest, match="states its reason"):
            await invoices.credit_note(connection, issued.id, NewCreditNote("less"), "a", LATER)
        changed = NewCreditNote("less", Units(11 * CENT), AmendmentReason.VALUE_CHANGED)
        note = await invoices.credit_note(connection, issued.id, changed, "a", LATER)
        mistaken = NewCreditNote("wrong", Units(11 * CENT), AmendmentReason.MISTAKE)
        other = await invoices.credit_note(connection, issued.id, mistaken, "b", LATER)
    assert note.korea is not None
    assert (note.korea.supply_value, note.korea.tax) == (10 * CENT, CENT)
    assert note.korea.original_approval_number == approval
    assert note.korea.written_on == LATER.date(), "the day of the change"
    assert other.korea is not None
    assert other.korea.written_on == issued.korea.written_on, "the day of the original"
    await desk.clean()


async def test_a_customer_that_pays_in_won(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.open(TaxRule(TaxTreatment.STANDARD, 100_000, name="부가가치세"), country="KR", tax_id="1248100998")
    tenant, versions = await desk.korean()
    calls = [await desk.use(tenant, tokens, version_ids=versions) for tokens in (4_321_987, 77_000_001)]
    exact = sum(call.amount for call in calls)
    issued = await desk.bill(tenant)
    supply = divide_half_even(exact, WON) * WON
    tax = divide_half_even(supply, 10 * WON) * WON
    assert issued.korea is not None
    assert (issued.subtotal, issued.korea.supply_value, issued.korea.tax) == (supply, supply, tax)
    assert all(line.rounded % WON == 0 for line in issued.lines)
    assert (issued.starts_at, issued.ends_at) == bounds_of(MONTH, "Asia/Seoul")
    assert sum(line.rounded for line in issued.lines) == supply
    paid = await desk.pay(tenant, issued.total, currency="KRW")
    assert paid.payment.allocated == supply + tax
    assert await desk.posted(tenant) == 0
    await desk.clean()


async def test_tiers_over_the_month_give_back_what_its_quantity_saves(desk: Desk) -> None:
    owing, prepaid = await desk.customer(), await desk.customer(paid=5 * DOLLAR)
    since = BEGIN - timedelta(days=1)
    tiers = (Tier(1_000_000, MilliUnits(600_000)), Tier(None, MilliUnits(100_000)))
    versions = await desk.new_output_price(600_000, since, tiers)
    calls = [await desk.use(each, 1_500_000, version_ids=versions) for each in (owing, owing, prepaid)]
    owed = await desk.bill(owing)
    # 3,000,000 tokens: of each above a million half a thousandth of a dollar back for a thousand.
    back = 2_000_000 * 500
    assert [line.amount for line in owed.lines if line.kind is LineKind.REBATE] == [-back]
    assert sum(line.amount for line in owed.lines) == calls[0].amount + calls[1].amount - back
    assert owed.subtotal == half_even_cents(calls[0].amount + calls[1].amount - back)
    nothing = await desk.bill(prepaid)
    assert nothing.total == 0
    assert await desk.posted(prepaid) == 5 * DOLLAR - calls[2].amount + 500_000 * 500
    await desk.clean()
    assert await wrong_in_focus(desk, owed, nothing) == []

    async with desk.engine.begin() as connection:
        await invoices.void(connection, nothing.id, "once more", LATER)
    assert await desk.posted(prepaid) == 5 * DOLLAR - calls[2].amount
    await desk.clean()
    again = await desk.bill(prepaid)
    assert (again.number, await desk.posted(prepaid)) == (3, 5 * DOLLAR - calls[2].amount + 500_000 * 500)
    await desk.use(prepaid, 7_500_000, at=LATER, version_ids=versions)
    with pytest.raises(Conflict, match="some of it is spent"):
        await void(desk, again)
    await desk.clean()


async def wrong_in_focus(desk: Desk, *issued: Invoice) -> list[str]:
    """What is wrong in the file for cost management, whose rows sum to what is to be paid of each invoice."""
    export = await begin_export(desk.engine, KINDS["focus"], Wanted())
    body = b"".join([piece async for piece in stream(desk.engine, export)])
    due = {str(each.number_text): Decimal(amount_text(each.total, each.currency)) for each in issued}
    return list(check("focus", io.StringIO(body.decode(), newline=""), due))


async def void(desk: Desk, issued: Invoice) -> Invoice:
    async with desk.engine.begin() as connection:
        return await invoices.void(connection, issued.id, "no", LATER)


async def test_a_month_below_zero_is_credit(desk: Desk) -> None:
    """A journal knows of fewer tokens than a sweeper charged, after the month of the call was billed."""
    tenant = await desk.customer()
    call = await desk.use(tenant, 1_000_000, ending=Ending.RECOVERED)
    billed = await desk.bill(tenant)
    amount = price(TokenUsage(400_000, 400_000, 200_000), desk.shop.rates)
    fewer = replace(call, input_tokens=400_000, output_tokens=400_000, cached_tokens=200_000)
    journaled = replace(fewer, ending=Ending.FINISHED, amount=amount)
    correction = await correct(desk.engine, desk.shop.hot, journaled)
    assert correction is not None
    before = await desk.posted(tenant)

    following = next_month(MONTH)
    at = bounds_of(following, "UTC")[1] + timedelta(days=2)
    await desk.cut_off(tenant, following, at)
    async with desk.engine.begin() as connection:
        drafted = await invoices.draft(connection, tenant.organization_id, following, at, Policy())
        assert drafted is not None
        issued = await invoices.finalize(connection, drafted.id, at)
    assert (issued.state, issued.total) == (InvoiceState.PAID, 0)
    assert await desk.parked(tenant) is None
    assert await desk.posted(tenant) == before
    assert "unbilled" not in await desk.accounts(tenant)
    async with desk.engine.connect() as connection:
        rows = await connection.execute(text("select kind, remaining from credit_grant"))
        assert [(row.kind, int(row.remaining)) for row in rows] == [("refund", -correction.amount)]
    assert await wrong_in_focus(desk, billed, issued) == []
    await desk.clean()


# The safety stop -----------------------------------------------------------------------------------------------------


async def test_an_insane_invoice_parks_its_organization(desk: Desk) -> None:
    tenant = await desk.customer()
    await desk.use(tenant, 2_000_000)
    policy = Policy(largest_totals={"USD": DOLLAR})
    drafted = await desk.draft(tenant, policy)
    assert drafted is not None
    reason = await desk.parked(tenant)
    assert reason is not None
    assert "above the safety limit of 1.00 USD" in reason
    with pytest.raises(Conflict, match="above the safety limit"):
        await desk.finalize(drafted)
    async with desk.engine.begin() as connection:
        assert await invoices.release(connection, tenant.organization_id)
        assert not await invoices.release(connection, tenant.organization_id)
    await desk.draft(tenant, policy)
    assert await desk.parked(tenant) is None, "what was looked at is not stopped again"
    assert (await desk.finalize(drafted)).state is InvoiceState.OPEN
    await desk.clean()


async def test_without_a_seller_nothing_is_issued(shop: Shop) -> None:
    desk = Desk(shop)
    await desk.use(tenant := await desk.customer(), 1_000_000)
    drafted = await desk.draft(tenant)
    assert drafted is not None
    with pytest.raises(Conflict, match="tollgate seller set"):
        await desk.finalize(drafted)
    async with desk.engine.connect() as connection:
        assert (await connection.execute(text("select count(*) from invoice_series"))).scalar_one() == 0


# Numbers -------------------------------------------------------------------------------------------------------------


async def test_twenty_at_once_get_numbers_without_a_gap(desk: Desk) -> None:
    tenants = [await desk.customer() for _ in range(20)]
    for place, tenant in enumerate(tenants):
        await desk.use(tenant, 100_000 * (place + 1))
    drafts = [await desk.draft(tenant) for tenant in tenants]
    # One of them fails after it had its number, which must not leave a hole.
    failing = asyncio.create_task(_fail(desk, drafts.pop()))
    issued = await asyncio.gather(*(desk.finalize(each) for each in drafts if each is not None))
    await failing
    assert sorted(each.number or 0 for each in issued) == list(range(1, 20))
    await desk.clean()


async def _fail(desk: Desk, drafted: Invoice | None) -> None:
    assert drafted is not None
    async with desk.engine.connect() as connection:
        await invoices.finalize(connection, drafted.id, LATER)
        await connection.rollback()


async def test_one_invoice_finalized_twice_at_once_is_issued_once(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    drafted = await desk.draft(tenant)
    assert drafted is not None
    one, two = await asyncio.gather(desk.finalize(drafted), desk.finalize(drafted))
    assert one == two
    await desk.clean()


# Taking back ---------------------------------------------------------------------------------------------------------


async def test_void_and_reissue(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(legal_name="Acme"), 1_000_001)
    issued = await desk.bill(tenant)
    before = await desk.accounts(tenant)
    await desk.change(tenant, legal_name="Acme Holding", tax_treatment="exempt")
    async with desk.engine.begin() as connection:
        drafted = await invoices.reissue(connection, issued.id, "the name was wrong", LATER, Policy())
        again = await invoices.reissue(connection, issued.id, "the name was wrong", LATER, Policy())
    assert again == drafted
    assert drafted.state is InvoiceState.DRAFT
    assert await desk.accounts(tenant) == {"unbilled": -before["revenue"], "revenue": before["revenue"]}
    new = await desk.finalize(drafted)
    assert (new.number, new.buyer.legal_name, new.tax.amount) == (2, "Acme Holding", 0)
    async with desk.engine.connect() as connection:
        old = await find_invoice(connection, issued.id)
    assert old is not None
    assert (old.state, old.number, old.reason) == (InvoiceState.VOID, 1, "the name was wrong")
    assert (old.buyer.legal_name, old.total) == ("Acme", issued.total)
    await desk.clean()


async def test_what_was_paid_is_not_voided(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    issued = await desk.bill(tenant)
    await desk.pay(tenant, CENT)
    async with desk.engine.begin() as connection:
        with pytest.raises(Conflict, match="credit note"):
            await invoices.void(connection, issued.id, "no", LATER)


async def test_a_draft_is_neither_voided_nor_credited_nor_written_off(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    drafted = await desk.draft(tenant)
    assert drafted is not None
    async with desk.engine.begin() as connection:
        with pytest.raises(Conflict, match="is a draft"):
            await invoices.void(connection, drafted.id, "no", LATER)
        with pytest.raises(Conflict, match="is a draft"):
            await invoices.write_off(connection, drafted.id, "no", LATER)


async def test_a_credit_note_of_an_open_invoice_lessens_what_is_owed(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 2_000_000)
    issued = await desk.bill(tenant)
    async with desk.engine.begin() as connection:
        new = NewCreditNote("a bad hour", Units(100 * CENT))
        note = await invoices.credit_note(connection, issued.id, new, "k", LATER)
        assert await invoices.credit_note(connection, issued.id, new, "k", LATER) == note
        with pytest.raises(Conflict, match="credited something else"):
            await invoices.credit_note(connection, issued.id, NewCreditNote("other"), "k", LATER)
    assert (note.number_text, note.corrects, note.total, note.tax.amount) == ("CN-000001", issued.id, DOLLAR, 16 * CENT)
    assert sum(line.rounded for line in note.lines) == note.subtotal
    async with desk.engine.connect() as connection:
        left = await find_invoice(connection, issued.id)
    assert left is not None
    assert (left.state, left.due) == (InvoiceState.OPEN, issued.total - DOLLAR)
    assert (await desk.accounts(tenant))["receivable"] == issued.total - DOLLAR
    await desk.clean()


async def test_credit_notes_together_take_back_all_and_no_more(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_001)
    issued = await desk.bill(tenant)
    async with desk.engine.begin() as connection:
        for key in "abc":
            part = NewCreditNote("a part", Units(issued.total // 7 * 2 // CENT * CENT))
            await invoices.credit_note(connection, issued.id, part, key, LATER)
        more = NewCreditNote("too much", Units(issued.total))
        with pytest.raises(InvalidRequest, match="can still be credited"):
            await invoices.credit_note(connection, issued.id, more, "d", LATER)
        await invoices.credit_note(connection, issued.id, NewCreditNote("the rest"), "e", LATER)
        with pytest.raises(InvalidRequest, match=r"Of this invoice 0\.0+ USD can still be credited"):
            await invoices.credit_note(connection, issued.id, NewCreditNote("nothing"), "f", LATER)
        notes = await all_invoices(connection, InvoiceFilter(corrects=issued.id))
    assert sum(note.total for note in notes) == issued.total
    assert sum(note.tax.amount for note in notes) == issued.tax.amount
    assert await desk.posted(tenant) == 0
    accounts = await desk.accounts(tenant)
    assert accounts.keys() == {"revenue", "rounding"}
    assert accounts["revenue"] == -accounts["rounding"] == issued.rounding
    await desk.clean()


async def test_a_credit_note_of_a_paid_invoice_is_credit(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    issued = await desk.bill(tenant)
    await desk.pay(tenant, issued.total)
    async with desk.engine.begin() as connection:
        await invoices.credit_note(connection, issued.id, NewCreditNote("a gift", Units(20 * CENT)), "k", LATER)
        grants = (await connection.execute(text("select kind, remaining from credit_grant"))).all()
    assert [(row.kind, int(row.remaining)) for row in grants] == [("refund", 20 * CENT)]
    assert await desk.posted(tenant) == 20 * CENT
    await desk.clean()


async def test_a_write_off(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    issued = await desk.bill(tenant)
    await desk.pay(tenant, 10 * CENT)
    async with desk.engine.begin() as connection:
        lost = await invoices.write_off(connection, issued.id, "bankrupt", LATER)
        assert await invoices.write_off(connection, issued.id, "bankrupt", LATER) == lost
        with pytest.raises(Conflict, match="uncollectible"):
            await invoices.credit_note(connection, issued.id, NewCreditNote("x"), "k", LATER)
    assert (lost.state, lost.reason) == (InvoiceState.UNCOLLECTIBLE, "bankrupt")
    assert (await desk.accounts(tenant))["bad_debt"] == issued.total - 10 * CENT
    assert await desk.posted(tenant) == 0
    await desk.clean()


# What the database keeps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("update invoice set total = total + 1, subtotal = subtotal + 1", "is not changed"),
        ("update invoice set state = 'draft', number = null", "is not changed"),
        ("update invoice set buyer = '{}'", "is not changed"),
        ("delete from invoice", "is not deleted"),
        ("delete from invoice_line", "is not deleted"),
        (
            "insert into invoice_line (invoice_id, seq, kind, description, amount, rounded)"
            " select id, 99, 'item', 'more', 0, 0 from invoice",
            "gets no more lines",
        ),
    ],
)
async def test_what_was_issued_stays(desk: Desk, change: str, told: str) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    await desk.bill(tenant)
    with pytest.raises(DBAPIError, match=told):
        async with desk.engine.begin() as connection:
            await connection.execute(text(change))


async def test_what_is_void_stays_void(desk: Desk) -> None:
    await desk.use(tenant := await desk.customer(), 1_000_000)
    issued = await desk.bill(tenant)
    async with desk.engine.begin() as connection:
        await invoices.void(connection, issued.id, "no", LATER)
    with pytest.raises(DBAPIError, match="that is void stays it"):
        async with desk.engine.begin() as connection:
            await connection.execute(text("update invoice set state = 'open'"))


# Runs ----------------------------------------------------------------------------------------------------------------


async def test_a_run_bills_everybody_and_may_be_repeated(desk: Desk) -> None:
    used, unused, parked = [await desk.customer() for _ in range(3)]
    await desk.use(used, 1_000_000)
    await desk.use(parked, 9_000_000)
    policy = Policy(largest_totals={"USD": 5 * DOLLAR})
    wanted = invoices.Run(MONTH, "operator:test", policy, finalizes=True)
    owners: list[UUID] = [each.organization_id for each in (used, unused, parked)]

    async def run() -> dict[UUID, invoices.Outcome]:
        return {each.organization_id: each async for each in invoices.run(desk.engine, wanted, owners, LATER)}

    outcomes = await run()
    assert [outcomes[each].result for each in owners] == ["issued", "unused", "parked"]
    assert outcomes[owners[2]].message is not None
    assert await run() == outcomes
    async with desk.engine.connect() as connection:
        assert len((await connection.execute(select(invoice.c.id))).all()) == 2
        actions = (await connection.execute(text("select action from audit_log order by id"))).scalars().all()
    assert actions.count("invoice.finalized") == 1
    await desk.clean()


async def test_a_run_says_which_months_it_skips(desk: Desk) -> None:
    tenant = await desk.customer()
    await desk.use(tenant, 1_000_000, at=BEGIN - timedelta(days=2))
    await desk.use(tenant, 1_000_000)
    wanted = invoices.Run(MONTH, "operator:test", Policy())
    [outcome] = [each async for each in invoices.run(desk.engine, wanted, [tenant.organization_id], LATER)]
    assert outcome.skipped_months == ((BEGIN - timedelta(days=2)).date().replace(day=1),)


async def test_an_expired_or_voided_grant_leaves_its_month_alone(desk: Desk) -> None:
    tenant = await desk.customer()
    grant_id = await desk.shop.grant(tenant, 3 * DOLLAR, GrantKind.PROMO)
    await desk.shop.project(tenant)
    call = await desk.use(tenant, 1_000_000)
    async with desk.engine.begin() as connection:
        await void_grant(connection, grant_id, now())
    issued = await desk.bill(tenant)
    assert (issued.total, issued.lines[-1].amount) == (0, -call.amount)
    await desk.clean()
