"""March 2026 of four organizations in two currencies: calls, grants that expire, corrections, invoices, payments.

Calls are booked by the rooms that do it for real ones. Documents are written here, straight into the tables and by
postings of their own, so that what exports say of them is compared with what this file did.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.charges import Measured
from billing.charges import charge as close
from billing.hot.entries import encode_charge
from billing.hot.keys import shard_of
from billing.hot.store import HotStore, StreamEntry
from billing.months import bounds_of
from billing.rounding import divide_half_even
from billing.settlement import book_entries, correct, expire_grants, grant_credit, open_accounts, void_grant
from billing.store import ledger, shards
from billing.store.ledger import Posting
from models.call import CallOrigin, Charge, Endpoint, Hold, HoldRequest
from models.catalog import Catalog, Meter, PriceVersion
from models.ids import uuid7
from models.ledger import Account, AccountKind, GrantKind, PostingKind, Transfer
from models.money import CURRENCIES, MilliUnits, Units
from models.tables import (
    allocation,
    invoice,
    invoice_line,
    model,
    organization,
    payment,
    price_version,
    project,
    seller,
    usage_day,
)
from models.usage import Ending, TokenUsage, UsageSource

MARCH: Final = date(2026, 3, 1)
BEGIN: Final = datetime(2026, 3, 1, tzinfo=UTC)
CHANGE: Final = datetime(2026, 3, 16, tzinfo=UTC)
"""When prices change."""
MODELS: Final = ("tiny", "=large")
DOLLAR: Final = 10**9
WON: Final = 10**6
ISSUED: Final = datetime(2026, 4, 2, 9, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Customer:
    """An organization of the month."""

    name: str
    currency: str
    mode: str
    timezone: str
    id: UUID = field(default_factory=lambda: uuid7(BEGIN))
    project_id: UUID = field(default_factory=lambda: uuid7(BEGIN))
    api_key_id: UUID = field(default_factory=lambda: uuid7(BEGIN))


@dataclass(frozen=True, slots=True)
class Document:
    """An invoice or credit note as it was written."""

    id: UUID
    number: str
    owner: Customer
    subtotal: int
    tax: int
    posting_id: int

    @property
    def total(self) -> int:
        """What is to be paid."""
        return self.subtotal + self.tax


class Month:
    """The month as it is made, step by step."""

    def __init__(self, engine: AsyncEngine, hot: HotStore, seed: int = 1) -> None:
        self.engine = engine
        self.hot = hot
        self.chance = random.Random(seed)
        self.prepaid = Customer("Ada, Inc.", "USD", "prepaid", "UTC")
        self.postpaid = Customer('=cmd|"Evil"', "USD", "postpaid", "America/New_York")
        self.hybrid = Customer("Hybrid\nLtd", "USD", "hybrid", "UTC")
        self.korean = Customer("한국 주식회사", "KRW", "postpaid", "Asia/Seoul")
        self.customers = (self.prepaid, self.postpaid, self.hybrid, self.korean)
        self.catalog = Catalog(prices=_prices())
        self.numbers = 0

    async def make(self, calls: int = 400) -> None:
        """All of the month, and what follows it in April."""
        await self.open()
        await self.grant(self.prepaid, GrantKind.PAID, 50 * DOLLAR, BEGIN)
        await self.grant(self.prepaid, GrantKind.PROMO, DOLLAR // 100, BEGIN)
        await self.grant(
            self.prepaid, GrantKind.PAID, DOLLAR, BEGIN, expires_at=BEGIN + timedelta(days=20), priority=90
        )
        await self.grant(
            self.prepaid, GrantKind.PROMO, DOLLAR, BEGIN, expires_at=BEGIN + timedelta(days=9), priority=95
        )
        await self.grant(self.hybrid, GrantKind.PROMO, DOLLAR // 50, BEGIN)
        mistaken = await self.grant(self.hybrid, GrantKind.PAID, 3 * DOLLAR, BEGIN, priority=99)
        async with self.engine.begin() as connection:
            await void_grant(connection, mistaken, BEGIN + timedelta(hours=1))
        step = timedelta(days=31) / calls
        made = [
            self.call(self.customers[number % len(self.customers)], BEGIN + step * number) for number in range(calls)
        ]
        # Began in March and ended in April, on every clock.
        turn = BEGIN + timedelta(days=30, hours=12)
        made += [self.call(one, turn, lasts=timedelta(hours=20)) for one in self.customers]
        for first in range(0, len(made), 40):
            await self.book(made[first : first + 40])
        await self.correct_some(made)
        await expire_grants(self.engine, BEGIN + timedelta(days=31))

    async def open(self) -> None:
        """Prices, organizations and partitions."""
        async with self.engine.begin() as connection:
            await ledger.ensure_partitions(connection, BEGIN)
            await connection.execute(insert(model), [{"id": name, "context_length": 4_096} for name in MODELS])
            versions = [version for prices in self.catalog.prices.values() for version in prices]
            await connection.execute(insert(price_version), [_price_row(version) for version in versions])
            await connection.execute(insert(seller).values(id=1, legal_name="Tollgate Test GmbH", country="DE"))
            for one in self.customers:
                await connection.execute(
                    insert(organization).values(
                        id=one.id,
                        name=one.name,
                        currency=one.currency,
                        timezone=one.timezone,
                        billing_mode=one.mode,
                        credit_limit=0 if one.mode == "prepaid" else 1_000 * DOLLAR,
                        shard=shard_of(one.id),
                        created_at=BEGIN,
                    )
                )
                await connection.execute(insert(project).values(id=one.project_id, organization_id=one.id, name="=p"))
                await open_accounts(connection, one.id, one.currency)

    async def grant(self, one: Customer, kind: GrantKind, units: int, at: datetime, **terms: Any) -> UUID:
        """Give credit."""
        async with self.engine.begin() as connection:
            return await grant_credit(
                connection,
                organization_id=one.id,
                currency=one.currency,
                kind=kind,
                amount=Units(units),
                effective_at=at,
                scope=None,
                idempotency_key=str(uuid7(at)),
                now=at,
                **{"priority": 50, "expires_at": None} | terms,
            )

    def call(self, one: Customer, moment: datetime, lasts: timedelta = timedelta(seconds=3)) -> Charge:
        """A call as a gateway closes it."""
        chance, name = self.chance, self.chance.choice(MODELS)
        rates = self.catalog.rates("default", one.currency, name, moment)
        assert rates is not None
        whole = chance.randrange(1, 4_000)
        cached, output = chance.randrange(whole), chance.randrange(1, 2_000)
        images, seconds = (whole % 3, whole % 60) if name == "=large" else (0, 0)
        usage = TokenUsage(whole, output, cached, (whole - cached) // 3, output // 4, images, seconds)
        origin = CallOrigin(
            call_id=uuid7(moment),
            organization_id=one.id,
            project_id=one.project_id,
            api_key_id=one.api_key_id,
            shard=shard_of(one.id),
            currency=one.currency,
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model=name,
            streamed=True,
            created_at=moment,
            end_user=chance.choice(["@user", None]),
        )
        hold = Hold(HoldRequest(origin, Units(10**14), rates, 4_096, 4_096))
        ending = Ending.RECOVERED if chance.random() < 0.05 else Ending.FINISHED
        source = UsageSource.CHECKPOINT if ending is Ending.RECOVERED else UsageSource.BACKEND
        return close(hold, Measured(usage, source), ending=ending, deployment="gpu", ended_at=moment + lasts)

    async def book(self, made: Iterable[Charge]) -> None:
        """Book calls as a worker does, one transaction a shard."""
        by_shard: dict[int, list[StreamEntry]] = {}
        for one in made:
            self.numbers += 1
            entry = StreamEntry(f"{self.numbers}-0", encode_charge(one), None, False)
            by_shard.setdefault(shard_of(one.organization_id), []).append(entry)
        for number, entries in by_shard.items():
            async with self.engine.begin() as connection:
                lease = await shards.lease(connection, number)
                assert lease is not None
                booked = await book_entries(connection, lease, entries)
                assert booked.dead == 0

    async def correct_some(self, made: Iterable[Charge]) -> None:
        """Calls that a sweeper ended had gone on for longer, or not as long."""
        for one in made:
            if one.ending is not Ending.RECOVERED:
                continue
            factor = self.chance.choice([1, 3])
            await correct(
                self.engine,
                self.hot,
                replace(
                    one,
                    ending=Ending.FINISHED,
                    usage_source=UsageSource.BACKEND,
                    output_tokens=one.output_tokens * factor if factor > 1 else one.reasoning_tokens,
                    amount=one.amount * factor if factor > 1 else one.amount // 2,
                ),
            )

    # Documents -------------------------------------------------------------------------------------------------------

    async def invoice(self, one: Customer, *, rate_ppm: int = 0, at: datetime = ISSUED, number: int = 1) -> Document:
        """Bill the month by its sums, which no export reads: rounded once, with tax on top."""
        async with self.engine.begin() as connection:
            rows = (
                await connection.execute(
                    select(usage_day).where(usage_day.c.organization_id == one.id, usage_day.c.billing_month == MARCH)
                )
            ).all()
            exact = sum(int(row.unbilled) for row in rows)
            minor = 10 ** (CURRENCIES[one.currency].ledger_scale - CURRENCIES[one.currency].minor_digits)
            subtotal = divide_half_even(exact, minor) * minor
            tax = divide_half_even(subtotal * rate_ppm, 1_000_000 * minor) * minor
            invoice_id, text = uuid7(at), f"INV-{number:06d}"
            parts = {
                AccountKind.UNBILLED: exact,
                AccountKind.ROUNDING: subtotal - exact,
                AccountKind.TAX_PAYABLE: tax,
            }
            posting_id = await self._post(
                connection, one, PostingKind.INVOICE, at, {"invoice_id": str(invoice_id)}, AccountKind.RECEIVABLE, parts
            )
            starts_at, ends_at = bounds_of(MARCH, one.timezone)
            await connection.execute(
                insert(invoice).values(
                    id=invoice_id,
                    organization_id=one.id,
                    kind="invoice",
                    state="draft",
                    series="INV",
                    currency=one.currency,
                    month=MARCH,
                    starts_at=starts_at,
                    ends_at=ends_at,
                    buyer={"legal_name": one.name},
                    seller={"legal_name": "Tollgate Test GmbH"},
                )
            )
            used, lines = sum(int(row.amount) for row in rows), []
            lines.append({"kind": "usage", "description": "=usage", "amount": used, "project_id": one.project_id})
            if used != exact:
                lines.append({"kind": "credit", "description": "paid by credit", "amount": exact - used})
            left = subtotal
            for seq, each in enumerate(lines):
                rounded = left if seq == len(lines) - 1 else divide_half_even(int(str(each["amount"])), minor) * minor
                left -= rounded
                await connection.execute(
                    insert(invoice_line).values(invoice_id=invoice_id, seq=seq, rounded=rounded, **each)
                )
            await connection.execute(
                invoice.update()
                .where(invoice.c.id == invoice_id)
                .values(
                    state="open",
                    number=number,
                    issued_on=at.date(),
                    due_on=at.date() + timedelta(days=14),
                    subtotal=subtotal,
                    tax=tax,
                    total=subtotal + tax,
                    rounding=subtotal - exact,
                    posting_id=posting_id,
                    finalized_at=at,
                )
            )
        return Document(invoice_id, text, one, subtotal, tax, posting_id)

    async def credit_note(self, billed: Document, subtotal: int, tax: int, at: datetime, number: int = 1) -> Document:
        """Take something of an invoice back, and set it against it."""
        one, note_id = billed.owner, uuid7(at)
        async with self.engine.begin() as connection:
            posting_id = await self._post(
                connection,
                one,
                PostingKind.CREDIT_NOTE,
                at,
                {"invoice_id": str(billed.id), "credit_note_id": str(note_id)},
                AccountKind.RECEIVABLE,
                {AccountKind.REVENUE: -subtotal, AccountKind.TAX_PAYABLE: -tax},
            )
            await connection.execute(
                insert(invoice).values(
                    id=note_id,
                    organization_id=one.id,
                    kind="credit_note",
                    corrects=billed.id,
                    state="draft",
                    month=MARCH,
                    starts_at=bounds_of(MARCH, one.timezone)[0],
                    ends_at=bounds_of(MARCH, one.timezone)[1],
                    series="CN",
                    currency=one.currency,
                    issued_on=at.date(),
                    subtotal=subtotal,
                    tax=tax,
                    total=subtotal + tax,
                    buyer={"legal_name": one.name},
                    seller={"legal_name": "Tollgate Test GmbH"},
                    posting_id=posting_id,
                    finalized_at=at,
                )
            )
            await connection.execute(
                insert(invoice_line).values(
                    invoice_id=note_id, seq=0, kind="adjustment", description="-10%", amount=subtotal, rounded=subtotal
                )
            )
            issued = {"state": "paid", "number": number}
            await connection.execute(invoice.update().where(invoice.c.id == note_id).values(issued))
            await connection.execute(
                insert(allocation).values(invoice_id=billed.id, credit_note_id=note_id, amount=subtotal + tax)
            )
        return Document(note_id, f"CN-{number:06d}", one, subtotal, tax, posting_id)

    async def void(self, billed: Document, at: datetime) -> None:
        """Take an invoice back as a whole: what it moved is moved back."""
        one = billed.owner
        async with self.engine.begin() as connection:
            row = (await connection.execute(select(invoice).where(invoice.c.id == billed.id))).one()
            exact = int(row.subtotal - row.rounding)
            parts = {
                AccountKind.UNBILLED: -exact,
                AccountKind.ROUNDING: -int(row.rounding),
                AccountKind.TAX_PAYABLE: -billed.tax,
            }
            source = {"invoice_id": str(billed.id)}
            await self._post(connection, one, PostingKind.VOID_INVOICE, at, source, AccountKind.RECEIVABLE, parts)
            await connection.execute(invoice.update().where(invoice.c.id == billed.id).values(state="void"))

    async def pay(self, billed: Document, units: int, at: datetime, reference: str) -> None:
        """Money comes in for an invoice."""
        one, payment_id = billed.owner, uuid7(at)
        async with self.engine.begin() as connection:
            posting_id = await self._post(
                connection,
                one,
                PostingKind.PAYMENT,
                at,
                {"payment_id": str(payment_id)},
                AccountKind.CASH_CLEARING,
                {AccountKind.RECEIVABLE: units},
            )
            await connection.execute(
                insert(payment).values(
                    id=payment_id,
                    organization_id=one.id,
                    provider="manual",
                    reference=reference,
                    amount=units,
                    currency=one.currency,
                    received_at=at,
                    posting_id=posting_id,
                )
            )
            await connection.execute(
                insert(allocation).values(
                    invoice_id=billed.id, payment_id=payment_id, amount=units, posting_id=posting_id
                )
            )

    async def _post(
        self,
        connection: AsyncConnection,
        one: Customer,
        kind: PostingKind,
        at: datetime,
        source: dict[str, str],
        debited: AccountKind,
        credited: dict[AccountKind, int],
    ) -> int:
        """A posting that debits one account and credits others; an amount below zero goes the other way."""
        accounts = await ledger.account_ids(connection, [one.id], [one.currency])

        def account(kind: AccountKind) -> Account:
            own = Account(one.id, kind, one.currency)
            return own if own in accounts else Account(None, kind, one.currency)

        [posting_id] = await ledger.add_postings(connection, [Posting(one.id, str(uuid7(at)), kind, at, source)])
        moved = []
        for other, units in credited.items():
            if units:
                sides = (account(debited), account(other)) if units > 0 else (account(other), account(debited))
                moved.append((posting_id, Transfer(*sides, Units(abs(units)))))
        await ledger.add_transfers(connection, moved, accounts)
        return posting_id


def _prices() -> dict[tuple[str, str, str], tuple[PriceVersion, ...]]:
    """Two periods with other prices; the second model makes images and sound, and has no price for what is cached."""
    found: dict[tuple[str, str, str], tuple[PriceVersion, ...]] = {}
    for currency, factor in (("USD", 1), ("KRW", 1_400)):
        for size, name in enumerate(MODELS, 1):
            versions = []
            for start, end, percent in ((BEGIN - timedelta(days=1), CHANGE, 100), (CHANGE, None, 117)):
                meters = {Meter.INPUT: 1_501, Meter.OUTPUT: 6_007, Meter.REQUEST: 7}
                others = {Meter.IMAGE: 700_001, Meter.AUDIO_SECOND: 3_001}
                meters |= {Meter.CACHED_INPUT: 333} if size == 1 else others
                for meter, weight in meters.items():
                    price = MilliUnits(weight * size * percent * factor)
                    versions.append(PriceVersion(uuid7(start), "default", name, meter, currency, price, start, end))
            found["default", currency, name] = tuple(versions)
    return found


def _price_row(version: PriceVersion) -> dict[str, object]:
    return {
        "id": version.id,
        "book": version.book,
        "model_id": version.model,
        "meter": version.meter.value,
        "currency": version.currency,
        "price": version.price,
        "effective": Range(version.effective_from, version.effective_to),
        "created_by": "test",
    }
