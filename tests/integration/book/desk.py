"""A desk to bill a shop's customers at: calls of last month, the month's end, and what the ledger then says."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import Range

from billing.charges import Measured
from billing.charges import charge as close
from billing.invoices import Policy, cut_off, draft, finalize
from billing.months import bounds_of, month_of
from billing.payments import NewPayment, Recorded, record_payment
from billing.settlement import book_shard, open_accounts
from billing.store.taxes import NewTaxRule, add_rule, set_seller
from billing.tax import TaxRule
from billing.verify import verify
from models.call import Charge, Hold
from models.catalog import Tier
from models.ids import uuid7
from models.invoice import Invoice, TaxTreatment
from models.money import LARGEST_BALANCE_UNITS, MilliUnits, Units
from models.tables import account, account_balance, organization, organization_balance, price_version
from models.usage import Ending, TokenUsage, UsageSource
from tests.integration.book.shop import MODEL, Shop, Tenant, now

CENT: Final = 10_000_000
DOLLAR: Final = 100 * CENT
WON: Final = 1_000_000
MONTH: Final = month_of(bounds_of(month_of(now(), "UTC"), "UTC")[0] - timedelta(days=1), "UTC")
"""Last month."""
BEGIN, END = bounds_of(MONTH, "UTC")
LATER: Final = END + timedelta(days=2)
"""When the month is billed."""
SELLER: Final = {"legal_name": "Models Ltd", "country": "DE", "tax_id": "DE123456789", "address": "Street 1"}
VAT: Final = TaxRule(TaxTreatment.STANDARD, 190_000, name="VAT 19 %")
POLICY: Final = Policy()


class Desk:
    """Calls of last month and the verbs of billing, each in a transaction of its own."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.engine = shop.engine

    async def open(self, rule: TaxRule | None = None, **seller: Any) -> None:
        """Name the seller, and a tax rule for everybody."""
        async with self.engine.begin() as connection:
            await set_seller(connection, SELLER | seller)
            if rule is not None:
                await add_rule(connection, NewTaxRule(None, rule, BEGIN - timedelta(days=40)), "test", now())

    async def customer(self, paid: int = 0, **columns: Any) -> Tenant:
        """A customer with a credit line, and with some credit."""
        tenant = await self.shop.tenant(mode="hybrid", credit_limit=1_000 * DOLLAR)
        if paid:
            await self.shop.grant(tenant, paid)
            await self.shop.project(tenant)
        if columns:
            await self.change(tenant, **columns)
        return tenant

    async def change(self, tenant: Tenant, **columns: Any) -> None:
        """Change columns of an organization."""
        async with self.engine.begin() as connection:
            await connection.execute(
                update(organization).where(organization.c.id == tenant.organization_id).values(**columns)
            )

    async def use(
        self,
        tenant: Tenant,
        tokens: int,
        *,
        at: datetime | None = None,
        version_ids: tuple[UUID, ...] | None = None,
        ending: Ending = Ending.FINISHED,
    ) -> Charge:
        """A call of last month with as many tokens in (half of them cached) as out: 712.5 units of each; booked."""
        ended = at or BEGIN + timedelta(days=3)
        request = self.shop.request(tenant, LARGEST_BALANCE_UNITS)
        async with self.engine.connect() as connection:
            owner = organization.c.id == tenant.organization_id
            code = (await connection.execute(select(organization.c.currency).where(owner))).scalar_one()
        origin = replace(request.origin, call_id=uuid7(ended), created_at=ended, currency=code)
        rates = request.rates if version_ids is None else await self._rates(version_ids)
        hold = Hold(replace(request, origin=origin, rates=rates))
        measured = Measured(TokenUsage(tokens, tokens, tokens // 2), UsageSource.BACKEND)
        charge = close(hold, measured, ending=ending, deployment="local", ended_at=ended)
        assert await self.shop.hot.settle(hold, charge)
        await book_shard(self.engine, self.shop.hot, tenant.shard)
        return charge

    async def _rates(self, version_ids: tuple[UUID, ...]) -> Any:
        async with self.engine.connect() as connection:
            rows = await connection.execute(select(price_version).where(price_version.c.id.in_(version_ids)))
            prices = {row.meter: MilliUnits(row.price) for row in rows}
        rates = self.shop.rates
        return replace(
            rates,
            input=prices["input"],
            output=prices["output"],
            cached_input=prices["cached_input"],
            cache_write=prices["input"],
            reasoning=prices["output"],
            version_ids=tuple(sorted(version_ids)),
        )

    async def new_output_price(self, price: int, since: datetime, tiers: tuple[Tier, ...] = ()) -> tuple[UUID, ...]:
        """Another price of output from a moment on, with tiers over the month; the price versions then in force."""
        version_id = uuid7(now())
        async with self.engine.begin() as connection:
            old = (await connection.execute(select(price_version).where(price_version.c.meter == "output"))).one()
            closed = Range(old.effective.lower, since, bounds="[)")
            await connection.execute(update(price_version).where(price_version.c.id == old.id).values(effective=closed))
            values: dict[str, Any] = {"book": "default", "model_id": MODEL, "meter": "output", "currency": "USD"}
            values["price"] = price
            if tiers:
                steps = [{"up_to": tier.up_to, "price": tier.price} for tier in tiers]
                values |= {"scheme": "graduated", "tiers": steps, "tiers_over": "month"}
            await connection.execute(
                insert(price_version).values(id=version_id, effective=Range(since, None), created_by="test", **values)
            )
        return (*(each for each in self.shop.rates.version_ids if each != old.id), version_id)

    async def korean(self) -> tuple[Tenant, tuple[UUID, ...]]:
        """A customer that pays in won, with the price versions for it: 75 won for a million tokens in, 300 out."""
        tenant = await self.shop.tenant()
        owner = tenant.organization_id
        prices = {"input": 75_000, "cached_input": 75_000, "output": 300_000}
        version_ids = tuple(uuid7(now()) for _ in prices)
        columns = {"currency": "KRW", "billing_mode": "postpaid", "credit_limit": 10**12, "timezone": "Asia/Seoul"}
        await self.change(tenant, **columns, country="KR", tax_id="2208162517", language="ko")
        async with self.engine.begin() as connection:
            await open_accounts(connection, owner, "KRW")
            for version_id, (meter, price) in zip(version_ids, prices.items(), strict=True):
                await connection.execute(
                    insert(price_version).values(
                        id=version_id,
                        book="default",
                        model_id=MODEL,
                        meter=meter,
                        currency="KRW",
                        price=price,
                        effective=Range(BEGIN - timedelta(days=5), None),
                        created_by="test",
                    )
                )
        await self.shop.project(tenant)
        return tenant, version_ids

    # The verbs.

    async def cut_off(self, tenant: Tenant, month: date = MONTH, at: datetime = LATER) -> None:
        """End a month."""
        async with self.engine.begin() as connection:
            await cut_off(connection, tenant.organization_id, month, at, POLICY.grace)

    async def draft(self, tenant: Tenant, policy: Policy = POLICY, month: date = MONTH) -> Invoice | None:
        """End a month and draft its invoice."""
        await self.cut_off(tenant, month)
        async with self.engine.begin() as connection:
            return await draft(connection, tenant.organization_id, month, LATER, policy)

    async def bill(self, tenant: Tenant) -> Invoice:
        """End last month and issue its invoice."""
        drafted = await self.draft(tenant)
        assert drafted is not None
        return await self.finalize(drafted)

    async def finalize(self, drafted: Invoice) -> Invoice:
        """Issue a draft."""
        async with self.engine.begin() as connection:
            return await finalize(connection, drafted.id, LATER)

    async def pay(self, tenant: Tenant, amount: int, reference: str = "bank-1", **more: Any) -> Recorded:
        """Record a payment."""
        code, moment = more.pop("currency", "USD"), more.pop("received_at", LATER)
        new = NewPayment("manual", reference, Units(amount), code, moment, **more)
        async with self.engine.begin() as connection:
            return await record_payment(connection, tenant.organization_id, new, LATER)

    # What the ledger says.

    async def accounts(self, tenant: Tenant) -> dict[str, int]:
        """Debits less credits of the accounts of an organization and of the seller, those that are not zero."""
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                select(account.c.kind, account_balance.c.debits - account_balance.c.credits)
                .join(account_balance, account_balance.c.account_id == account.c.id)
                .where(account.c.organization_id.is_(None) | (account.c.organization_id == tenant.organization_id))
            )
            return {kind: int(amount) for kind, amount in rows if amount}

    async def posted(self, tenant: Tenant) -> int:
        """The balance of an organization."""
        async with self.engine.connect() as connection:
            return int(
                (
                    await connection.execute(
                        select(organization_balance.c.posted).where(
                            organization_balance.c.organization_id == tenant.organization_id
                        )
                    )
                ).scalar_one()
            )

    async def parked(self, tenant: Tenant) -> str | None:
        """Why an organization is parked."""
        async with self.engine.connect() as connection:
            reason: str | None = (
                await connection.execute(
                    select(organization.c.parked_reason).where(organization.c.id == tenant.organization_id)
                )
            ).scalar_one()
            return reason

    async def clean(self) -> None:
        """Verify finds nothing in the book."""
        report = await verify(self.engine, None)
        assert report.ok, [(check.name, finding) for check in report.checks for finding in check.findings]
