"""Exports against the rooms that issue invoices and take payments: what they note on a row, postings say as well."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from billing import invoices, payments
from billing.exports import KINDS, Manifest, Wanted, begin_export, stream
from billing.exports.focus_check import check
from billing.hot.store import make_hot_store
from billing.store.engine import make_engine
from billing.store.taxes import NewTaxRule, add_rule
from billing.tax import TaxRule
from gateway.embedded.redis import Redis, command
from models.invoice import Invoice, TaxTreatment
from models.money import CURRENCIES, Units, amount_text
from models.tables import invoice, organization, payment
from tests.conftest import MakeDatabase
from tests.integration.books.conftest import File
from tests.integration.books.month import BEGIN, ISSUED, MARCH, Customer, Month
from tests.integration.books.test_ledgers import run
from tests.rooms import open_all_shards

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

DAY = timedelta(days=1)
MAY = datetime(2026, 5, 1, tzinfo=UTC)
RUN = invoices.Run(MARCH, "test", invoices.Policy(), finalizes=True)


@dataclass(frozen=True, slots=True)
class Scene:
    """The month, billed by the rooms that do it."""

    month: Month

    async def make(self, kind: str, **wanted: object) -> File:
        """A file."""
        engine = self.month.engine
        export = await begin_export(engine, KINDS[kind], Wanted(**wanted))  # type: ignore[arg-type]
        manifest = Manifest(export)
        return File(b"".join([piece async for piece in stream(engine, export, manifest)]), manifest)

    async def issue(self, one: Customer, at: datetime = ISSUED) -> Invoice:
        """Its invoice of March."""
        outcome = await invoices.bill(self.month.engine, RUN, one.id, at)
        assert outcome.result == "issued", outcome
        assert outcome.invoice is not None
        return outcome.invoice

    async def pay(self, one: Customer, units: int, at: datetime, invoice_ids: tuple[UUID, ...] | None = None) -> UUID:
        """Money comes in."""
        new = payments.NewPayment("manual", f"={uuid4()}", Units(units), one.currency, at, invoice_ids)
        async with self.month.engine.begin() as connection:
            return (await payments.record_payment(connection, one.id, new, at)).payment.id

    async def credit(self, billed: Invoice, units: int, at: datetime) -> Invoice:
        """A credit note."""
        new = invoices.NewCreditNote("=goodwill", Units(units))
        async with self.month.engine.begin() as connection:
            return await invoices.credit_note(connection, billed.id, new, str(uuid4()), at)


@pytest.fixture(scope="module")
async def scene(make_database: MakeDatabase, redis_server: Redis) -> AsyncIterator[Scene]:
    """Whatever can become of an invoice: voided and issued again, paid, paid too much, credited, refunded, given up."""
    engine = make_engine((await make_database("documents")).app_url)
    command(redis_server, "FLUSHALL")
    hot = await make_hot_store(redis_server.url)
    try:
        await open_all_shards(engine, hot)
        month = Month(engine, hot)
        await month.make()
        yield await _billed(Scene(month))
    finally:
        await hot.close()
        await engine.dispose()


async def _billed(scene: Scene) -> Scene:
    month = scene.month
    async with month.engine.begin() as connection:
        for country, rate_ppm, is_inclusive in (("KR", 100_000, False), ("US", 70_000, True)):
            rule = TaxRule(TaxTreatment.STANDARD, rate_ppm, is_inclusive, "VAT")
            await add_rule(connection, NewTaxRule(country, rule, BEGIN - DAY), "test", BEGIN)
        for one, country in ((month.korean, "KR"), (month.postpaid, "US")):
            await connection.execute(update(organization).where(organization.c.id == one.id).values(country=country))
    coin = 10**7
    hybrid = await scene.issue(month.hybrid)
    async with month.engine.begin() as connection:
        await invoices.reissue(connection, hybrid.id, "wrong buyer", ISSUED + DAY, RUN.policy)
    hybrid = await scene.issue(month.hybrid, ISSUED + 2 * DAY)
    postpaid, korean = await scene.issue(month.postpaid), await scene.issue(month.korean)
    await scene.issue(month.prepaid)
    # Three cents more than is owed: they become credit, of which one is given back.
    paid = await scene.pay(month.postpaid, postpaid.total + 3 * coin, ISSUED + 3 * DAY)
    async with month.engine.begin() as connection:
        await payments.refund(connection, paid, Units(coin), "refund", ISSUED + 4 * DAY)
    # What is credited of a paid invoice is credit, too; what is credited of an open one is owed no more.
    await scene.credit(postpaid, 2 * coin, ISSUED + 5 * DAY)
    won = 10 ** CURRENCIES["KRW"].ledger_scale
    await scene.credit(korean, 1_000 * won, ISSUED + 5 * DAY)
    await scene.pay(month.korean, 500 * won, ISSUED + 6 * DAY)
    async with month.engine.begin() as connection:
        await invoices.write_off(connection, hybrid.id, "gone", ISSUED + 9 * DAY)
    return scene


async def test_what_postings_say_is_what_the_rows_say(scene: Scene) -> None:
    files = {row["row_id"]: row for row in (await scene.make("invoices")).rows}
    async with scene.month.engine.connect() as connection:
        stored = (await connection.execute(select(invoice))).all()
    assert files.keys() == {str(row.id) for row in stored}
    assert Counter(row.state for row in stored) == {"void": 1, "paid": 4, "open": 1, "uncollectible": 1}
    for row in stored:
        file, sign = files[str(row.id)], -1 if row.kind == "credit_note" else 1
        assert file["status"] == row.state, row.number
        assert file["settled"] == amount_text(sign * int(row.settled), row.currency)
        assert file["number"] == f"{row.series}-{row.number:06d}"
        due = int(row.total - row.settled) if row.state == "open" else 0
        assert file["outstanding"] == amount_text(due, row.currency)
    paid = {row["row_id"]: row for row in (await scene.make("payments")).rows}
    async with scene.month.engine.connect() as connection:
        for row in await connection.execute(select(payment)):
            assert paid[str(row.id)]["refunded"] == amount_text(int(row.refunded), row.currency)


@pytest.mark.parametrize("kind", ["focus", "focus_1_4", "focus_invoice_detail"])
async def test_focus_sums_to_what_is_to_be_paid(scene: Scene, kind: str) -> None:
    file, rows = await scene.make(kind), (await scene.make("invoices")).rows
    due = {row["number"]: Decimal(row["total"]) for row in rows if row["status"] != "void"}
    assert list(check(kind, io.StringIO(file.body.decode(), newline=""), due)) == []
    assert file.manifest.rows > len(due)


async def test_all_that_focus_bills_is_cash_or_receivable(scene: Scene) -> None:
    """Invoices, credit notes and credit that was bought, less what is owed or given up, are the money that is there."""
    billed: Counter[str] = Counter()
    for row in (await scene.make("focus")).rows:
        if row["InvoiceId"] or row["ChargeCategory"] == "Purchase":
            billed[row["BillingCurrency"]] += Decimal(row["BilledCost"])  # type: ignore[assignment]
    balance = (await scene.make("trial_balance")).rows
    for row in balance:
        if row["account"] in ("cash_clearing", "receivable", "bad_debt"):
            billed[row["currency"]] -= Decimal(row["closing"])  # type: ignore[assignment]
    assert set(billed.values()) == {0}


async def test_lines_add_up_and_ageing_is_the_ledgers(scene: Scene) -> None:
    lines, documents = (await scene.make("invoice_lines")).rows, (await scene.make("invoices")).rows
    for document in documents:
        mine = [Decimal(row["rounded"]) for row in lines if row["invoice_id"] == document["row_id"]]
        assert sum(mine) == Decimal(document["subtotal"]), document["number"]
    rows = (await scene.make("ageing", end=MAY)).rows
    assert {row["organization_id"] for row in rows} == {str(scene.month.korean.id)}
    assert all(row["total"] == row["ledger_receivable"] != "0.000000" for row in rows)


@pytest.mark.skipif(shutil.which("hledger") is None, reason="hledger is not installed (Debian: hledger)")
async def test_hledger_accepts_it(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "book.journal"
    path.write_bytes((await scene.make("hledger")).body)
    assert run("hledger", "-f", path, "check", "ordereddates").stderr == ""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_watermark_does_not_see_what_came_later(scene: Scene, kind: str) -> None:
    span = {"end": MAY} if kind == "ageing" else {}
    first = (await scene.make(kind, **span)).manifest
    watermark = first.export.watermark
    await scene.pay(scene.month.korean, 10**6, ISSUED + 10 * DAY)
    again = (await scene.make(kind, watermark=watermark, **span)).manifest
    assert again.as_json() == first.as_json()
