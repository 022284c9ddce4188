"""`verify` finds whoever changes an invoice, a payment or what is owed, and says where."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import invoices
from billing.invoices import NewCreditNote
from billing.verify import verify
from models.money import Units
from tests.integration.book.desk import CENT, LATER, VAT, Desk
from tests.integration.book.shop import Shop

pytestmark = pytest.mark.anyio

_TABLES = ("invoice", "invoice_line", "allocation", "payment", "posting", "transfer", "account_balance")
_THE_INVOICE = "where kind = 'invoice' and number = 1"
_CONSTRAINTS = ("settled_check", "total_check", "series_number_key")


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        *(
            pytest.param(
                f"update invoice set subtotal = subtotal {sign} {CENT}, total = total {sign} {CENT} {_THE_INVOICE}",
                {"invoices", "invoice_lines", "receivables"},
                "rounded by",
                id=f"a total {sign} a cent",
            )
            for sign in "+-"
        ),
        *(
            pytest.param(
                f"update invoice set tax = tax {sign} {CENT}, total = total {sign} {CENT} {_THE_INVOICE}",
                {"invoices", "receivables"},
                "of tax",
                id=f"a tax {sign} a cent",
            )
            for sign in "+-"
        ),
        pytest.param(
            f"update invoice set rounding = rounding + 1 {_THE_INVOICE}",
            {"invoices", "invoice_lines"},
            "rounded by",
            id="what was rounded",
        ),
        pytest.param(
            "update invoice_line set amount = amount + 1 where seq = 1 and kind = 'usage'",
            {"invoice_lines"},
            "rounded",
            id="an exact line",
        ),
        pytest.param(
            f"update invoice_line set rounded = rounded - {CENT} where seq = 1 and kind = 'usage'",
            {"invoice_lines"},
            "rounded",
            id="a rounded line",
        ),
        pytest.param("delete from invoice_line where seq = 2", {"invoice_lines"}, "rounded", id="a line less"),
        pytest.param(
            "update posting set billing_month = billing_month - interval '1 month' where kind = 'charge_batch'",
            {"invoices", "billed_once"},
            "of tax",
            id="charges of another month",
        ),
        pytest.param(
            f"update invoice set settled = settled + {CENT} {_THE_INVOICE}",
            {"allocations", "receivables"},
            "settled, open",
            id="more settled than was paid",
        ),
        pytest.param(
            f"update allocation set amount = amount - {CENT} where payment_id is not null",
            {"allocations"},
            "settled",
            id="an allocation",
        ),
        pytest.param(
            f"update invoice set state = 'paid' {_THE_INVOICE}", {"allocations", "receivables"}, "paid", id="said paid"
        ),
        pytest.param(
            f"update invoice set state = 'void' {_THE_INVOICE}",
            {"allocations", "receivables", "billed_once"},
            "void",
            id="said void",
        ),
        pytest.param(
            "insert into invoice select gen_random_uuid(), organization_id, kind, corrects, state, series, 2, currency,"
            " month, starts_at, ends_at, issued_on, due_on, subtotal, tax, total, rounding, settled, buyer, seller,"
            " tax_detail, korea, language, purchase_order, reason, pdf_sha256, null, created_at, finalized_at,"
            f" closed_at from invoice {_THE_INVOICE}",
            {"invoice_months", "invoice_lines", "invoice_numbers", "receivables", "allocations"},
            "2 invoices",
            id="billed twice",
        ),
        pytest.param(
            f"update invoice set total = 100 * {CENT}, subtotal = 100 * {CENT} - tax where kind = 'credit_note'",
            {"credit_notes", "invoice_lines"},
            "at most",
            id="credited above the total",
        ),
        pytest.param(
            "update payment set refunded = amount + 1", {"payments"}, "refunded", id="refunded above what was paid"
        ),
        pytest.param(
            f"update payment set amount = {CENT}", {"payments"}, "set against invoices", id="paid with nothing"
        ),
        pytest.param(
            "update account_balance set debits = debits + 1 where account_id ="
            " (select id from account where kind = 'receivable')",
            {"receivables", "account_balances", "balances"},
            "expected",
            id="what is owed",
        ),
        pytest.param(
            "update account_balance set debits = debits + 1 where account_id ="
            " (select id from account where kind = 'unbilled')",
            {"billed_once", "account_balances", "balances"},
            "expected 0, found 1",
            id="what is unbilled",
        ),
        pytest.param(
            f"update invoice set number = 3 {_THE_INVOICE}", {"invoice_numbers"}, "up to 3", id="a number left out"
        ),
        pytest.param(
            "update invoice_series set last_number = 2 where id = 'INV'", {"invoice_numbers"}, "2 numbers", id="a gap"
        ),
    ],
)
async def test_tampering_is_found(shop: Shop, owner: AsyncEngine, change: str, names: set[str], told: str) -> None:
    desk = Desk(shop)
    await desk.open(VAT)
    await desk.use(tenant := await desk.customer(), 1_000_001)
    issued = await desk.bill(tenant)
    await desk.pay(tenant, 20 * CENT)
    async with desk.engine.begin() as connection:
        await invoices.credit_note(connection, issued.id, NewCreditNote("less", Units(10 * CENT)), "k", LATER)
    await desk.clean()

    async with owner.begin() as connection:
        for table in _TABLES:
            await connection.execute(text(f"alter table {table} disable trigger user"))
        for constraint in _CONSTRAINTS:
            await connection.execute(text(f"alter table invoice drop constraint invoice_{constraint}"))
        await connection.execute(text("alter table payment drop constraint payment_refunded_check"))
        await connection.execute(text("drop index invoice_one_a_month_key"))
        done = await connection.execute(text(change))
        assert done.rowcount >= 1, "the tampering must hit a row"

    report = await verify(shop.engine, None)
    failed = {check.name: " ".join(map(str, check.findings)) for check in report.checks if not check.ok}
    assert failed.keys() == names
    assert any(told in findings for findings in failed.values()), failed
