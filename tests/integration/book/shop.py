"""A shop to try the book with: organizations with credit, one model with prices, and calls that reach the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.charges import Measured
from billing.charges import charge as close
from billing.hot.keys import shard_of
from billing.hot.store import HotStore
from billing.projection import project_balance
from billing.settlement import grant_credit, open_accounts
from billing.store.shards import epochs
from models.call import CallOrigin, Charge, Endpoint, Hold, HoldRequest
from models.catalog import Rates
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import MilliUnits, Units
from models.tables import charge, model, organization, price_version, project
from models.usage import Ending, TokenUsage, UsageSource

MODEL = "tiny"
RATES = Rates(
    input=MilliUnits(150_000),
    output=MilliUnits(600_000),
    cached_input=MilliUnits(75_000),
    cache_write=MilliUnits(150_000),
    reasoning=MilliUnits(600_000),
)
HOLD = Units(1_000_000_000)


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization of the shop."""

    organization_id: UUID
    project_id: UUID
    api_key_id: UUID = field(default_factory=lambda: uuid7(now()))

    @property
    def shard(self) -> int:
        """Where it lives in Redis."""
        return shard_of(self.organization_id)


class Shop:
    """Rows that a booking needs, and calls that end on the stream."""

    def __init__(self, engine: AsyncEngine, hot: HotStore | None = None) -> None:
        self.engine = engine
        self._hot = hot
        self.rates = RATES

    @property
    def hot(self) -> HotStore:
        """The hot store, where the test has one."""
        assert self._hot is not None
        return self._hot

    async def open(self) -> None:
        """Put the model and its prices on sale."""
        prices = {"input": RATES.input, "output": RATES.output, "cached_input": RATES.cached_input}
        version_ids = tuple(uuid7(now()) for _ in prices)
        async with self.engine.begin() as connection:
            await connection.execute(insert(model).values(id=MODEL, context_length=4_096))
            for version_id, (meter, price) in zip(version_ids, prices.items(), strict=True):
                await connection.execute(
                    insert(price_version).values(
                        id=version_id,
                        book="default",
                        model_id=MODEL,
                        meter=meter,
                        currency="USD",
                        price=price,
                        effective=Range(now() - timedelta(days=70), None),
                        created_by="test",
                    )
                )
        self.rates = replace(RATES, version_ids=tuple(sorted(version_ids)))

    async def tenant(self, paid: int = 0, *, mode: str = "prepaid", credit_limit: int = 0) -> Tenant:
        """A new organization with a paid grant, projected where there is a Redis."""
        tenant = Tenant(uuid7(now()), uuid7(now()))
        async with self.engine.begin() as connection:
            await connection.execute(
                insert(organization).values(
                    id=tenant.organization_id,
                    name="Test",
                    currency="USD",
                    billing_mode=mode,
                    credit_limit=credit_limit,
                    shard=tenant.shard,
                )
            )
            await connection.execute(
                insert(project).values(id=tenant.project_id, organization_id=tenant.organization_id, name="Test")
            )
            await open_accounts(connection, tenant.organization_id, "USD")
        if paid:
            await self.grant(tenant, paid)
        if self._hot is not None:
            await self.project(tenant)
        return tenant

    async def grant(
        self,
        tenant: Tenant,
        amount: int,
        kind: GrantKind = GrantKind.PAID,
        *,
        key: str | None = None,
        priority: int = 50,
        expires_at: datetime | None = None,
        scope: dict[str, Any] | None = None,
        rollover_max: int = 0,
    ) -> UUID:
        """Give credit, in a transaction of its own."""
        moment = now()
        async with self.engine.begin() as connection:
            return await grant_credit(
                connection,
                organization_id=tenant.organization_id,
                currency="USD",
                kind=kind,
                amount=Units(amount),
                priority=priority,
                effective_at=moment,
                expires_at=expires_at,
                scope=scope,
                idempotency_key=key or str(uuid7(moment)),
                now=moment,
                rollover_max=Units(rollover_max),
            )

    async def project(self, tenant: Tenant) -> None:
        """Bring its balance to Redis."""
        async with self.engine.connect() as connection:
            await project_balance(connection, self.hot, tenant.organization_id)

    async def hold(self, tenant: Tenant, amount: int = HOLD, *, batch: bool = False) -> Hold:
        """A hold that Redis has taken."""
        async with self.engine.connect() as connection:
            epoch = (await epochs(connection))[tenant.shard]
        taken = await self.hot.hold(self.request(tenant, amount, batch=batch), epoch)
        assert isinstance(taken, Hold), taken
        return taken

    def request(self, tenant: Tenant, amount: int = HOLD, *, batch: bool = False) -> HoldRequest:
        """What a hold of this tenant asks for."""
        origin = CallOrigin(
            call_id=uuid7(now()),
            organization_id=tenant.organization_id,
            project_id=tenant.project_id,
            api_key_id=tenant.api_key_id,
            shard=tenant.shard,
            currency="USD",
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model=MODEL,
            streamed=True,
            created_at=now(),
            batch=batch,
        )
        return HoldRequest(origin, Units(amount), self.rates, 4_096, 4_096)

    def charge(self, hold: Hold, tokens: int = 100) -> Charge:
        """The charge of a call with as many tokens in as out."""
        usage = TokenUsage(input=tokens, output=tokens, cached=tokens // 2)
        measured = Measured(usage, UsageSource.BACKEND, reported={"prompt_tokens": tokens})
        return close(hold, measured, ending=Ending.FINISHED, deployment="local", ended_at=now())

    async def call(self, tenant: Tenant, tokens: int = 100, *, held: bool = True) -> Charge:
        """A whole call, settled; without a hold (as a replayed one) where `held` is false."""
        hold = await self.hold(tenant) if held else Hold(self.request(tenant))
        charge = self.charge(hold, tokens)
        assert await self.hot.settle(hold, charge)
        return charge

    async def charged(self) -> dict[UUID, int]:
        """Amounts of the booked charges, by call."""
        async with self.engine.connect() as connection:
            rows = await connection.execute(select(charge.c.call_id, charge.c.amount))
            return {row.call_id: row.amount for row in rows}


def now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Wait until a condition holds; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what changes is in another program
            await asyncio.sleep(0.02)
