"""A small world to read: two tenants with keys and money, and charges put straight into the book."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.hot.keys import SHARDS, shard_of
from billing.hot.store import HotStore, NewBalance
from billing.settlement import grant_credit, open_accounts
from billing.store.keys import create_admin_key, create_api_key
from gateway.clock import Clock
from gateway.keys import KeyKind, issue_operator_key, mint
from models.call import CallOrigin, Charge, Endpoint, Hold, HoldRequest
from models.catalog import Rates
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import MilliUnits, Units
from models.tables import charge as charges
from models.tables import organization, project, shard
from models.usage import Ending, UsageSource
from tests.rooms import PEPPER

EPOCH = 1
DOLLAR = 1_000_000_000
MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC)
_PRICE = MilliUnits(150_000)
RATES = Rates(_PRICE, _PRICE, _PRICE, _PRICE, _PRICE, version_ids=(uuid7(MONDAY),))


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization with two projects, a key of the first, an admin key and 5 dollars."""

    organization_id: UUID
    project_id: UUID
    other_project_id: UUID
    api_key_id: UUID
    api_key: str
    admin_key: str
    currency: str = "USD"

    @property
    def shard(self) -> int:
        """Where it lives in Redis."""
        return shard_of(self.organization_id)


@dataclass(frozen=True, slots=True)
class World:
    """What a test reads through `client`, and the stores behind it."""

    engine: AsyncEngine
    hot: HotStore
    client: httpx.AsyncClient
    clock: Clock
    ours: Tenant
    theirs: Tenant
    operator_key: str

    async def get(self, path: str, key: str, **params: Any) -> httpx.Response:
        """GET with a key."""
        return await self.client.get(path, params=params, headers={"authorization": f"Bearer {key}"})

    async def book(self, *booked: Charge, posting_id: int = 1) -> None:
        """Put charges into the book as one posting."""
        async with self.engine.begin() as connection:
            for charge in booked:
                funding = [["unbilled", charge.amount]]
                values = asdict(charge) | {"flags": list(charge.flags), "funding": funding, "posting_id": posting_id}
                values["price_version_ids"] = list(charge.price_version_ids)
                await connection.execute(insert(charges).values(values))

    async def settle(self, charge: Charge) -> None:
        """Settle a call in Redis, where it waits for a worker that these tests do not run."""
        origin = CallOrigin(
            call_id=charge.call_id,
            organization_id=charge.organization_id,
            project_id=charge.project_id,
            api_key_id=charge.api_key_id,
            shard=shard_of(charge.organization_id),
            currency=charge.currency,
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model=charge.model,
            streamed=charge.streamed,
            created_at=charge.created_at,
        )
        hold = await self.hot.hold(HoldRequest(origin, Units(charge.hold), RATES, 1, 1), EPOCH)
        assert isinstance(hold, Hold), hold
        assert await self.hot.settle(hold, charge)


def make_charge(tenant: Tenant, at: datetime = MONDAY, **changes: Any) -> Charge:
    """A charge of 700 units of the tenant's first project."""
    charge = Charge(
        call_id=uuid7(at),
        organization_id=tenant.organization_id,
        project_id=tenant.project_id,
        api_key_id=tenant.api_key_id,
        currency=tenant.currency,
        endpoint="/v1/chat/completions",
        model="tiny",
        deployment="tiny@gpu-1",
        streamed=True,
        ending=Ending.FINISHED,
        usage_source=UsageSource.BACKEND,
        input_tokens=10,
        cached_tokens=4,
        cache_write_tokens=0,
        output_tokens=5,
        reasoning_tokens=0,
        amount=700,
        hold=900,
        price_version_ids=RATES.version_ids,
        created_at=at,
        ended_at=at + timedelta(seconds=1),
        reported={"prompt_tokens": 10},
    )
    return replace(charge, **changes)


async def add_tenant(engine: AsyncEngine, name: str, now: datetime, currency: str = "USD") -> Tenant:
    """Store an organization with its projects, keys and a paid grant."""
    own, first, second = uuid7(now), uuid7(now), uuid7(now)
    api_key, admin_key = mint(KeyKind.API, PEPPER), mint(KeyKind.ADMIN, PEPPER)
    async with engine.begin() as connection:
        await connection.execute(
            insert(organization).values(
                id=own, name=name, currency=currency, billing_mode="prepaid", shard=shard_of(own), created_at=now
            )
        )
        for number, project_id in enumerate((first, second)):
            await connection.execute(
                insert(project).values(id=project_id, organization_id=own, name=f"{name} {number}", created_at=now)
            )
        api_key_id = await create_api_key(
            connection,
            organization_id=own,
            project_id=first,
            name="key",
            digest=api_key.digest,
            redacted_value=api_key.redacted_value,
            now=now,
        )
        await create_admin_key(
            connection,
            organization_id=own,
            name="admin",
            digest=admin_key.digest,
            redacted_value=admin_key.redacted_value,
            now=now,
        )
        await open_accounts(connection, own, currency)
        await grant_credit(
            connection,
            organization_id=own,
            currency=currency,
            kind=GrantKind.PAID,
            amount=Units(5 * DOLLAR),
            priority=50,
            effective_at=now,
            expires_at=None,
            scope=None,
            idempotency_key=f"first of {own}",
            now=now,
        )
    return Tenant(own, first, second, api_key_id, api_key.value, admin_key.value, currency)


async def open_shards(engine: AsyncEngine, hot: HotStore, *tenants: Tenant) -> None:
    """Give all shards the epoch of these tests in both stores, and the tenants their money."""
    for number in range(SHARDS):
        balances = [
            NewBalance(tenant.organization_id, 5 * DOLLAR, 0, 1) for tenant in tenants if tenant.shard == number
        ]
        assert await hot.install(number, EPOCH, "0-0", balances)
    async with engine.begin() as connection:
        await connection.execute(shard.update().values(epoch=EPOCH))


async def add_operator(engine: AsyncEngine, now: datetime) -> str:
    """Store an operator key; answers its value."""
    async with engine.begin() as connection:
        _, value = await issue_operator_key(connection, "test", PEPPER, now)
    return value
