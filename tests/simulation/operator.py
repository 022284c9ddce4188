"""The operator of a simulated Tollgate: sells, grants, takes back, limits and changes prices while calls run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.hot.store import HotStore
from billing.projection import project_balance
from billing.settlement import grant_credit, open_accounts, set_credit_limit, void_grant
from billing.store.audit import write_audit
from billing.store.prices import NewPrice, publish
from models.account import Limits, Principal
from models.catalog import BackendKind, Meter
from models.errors import Conflict, NotFound, Unavailable
from models.ids import uuid7
from models.ledger import GrantKind
from models.money import MilliUnits, Units
from models.tables import backend, deployment, model, organization, project
from tests.simulation.faults import CALM
from tests.simulation.tally import Sold

if TYPE_CHECKING:
    from tests.simulation.world import World

BOOK: Final = "default"
CURRENCY: Final = "USD"
NOTICE_SECONDS: Final = 10
"""Time between the publication of a price and its beginning: every gateway has looked at the catalog until then."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on sale: the engines that serve it, whose count is billed, and whether we have its tokenizer."""

    name: str
    kinds: tuple[BackendKind, ...]
    billed_count: str = "backend"
    tokenizer: str | None = None


OFFERS: Final = (
    Offer("llama", (BackendKind.LLAMACPP,)),
    Offer("pair", (BackendKind.VLLM, BackendKind.LLAMACPP)),
    Offer("vllm", (BackendKind.VLLM, BackendKind.VLLM), tokenizer="cl100k_base"),
    Offer("ollama", (BackendKind.OLLAMA,)),
    Offer("plain", (BackendKind.OPENAI, BackendKind.OPENAI)),
    Offer("lower", (BackendKind.VLLM,), "lower", "cl100k_base"),
    Offer("counted", (BackendKind.SGLANG, BackendKind.OLLAMA), "tiktoken", "cl100k_base"),
)


class Operator:
    """Writes the rows that the program reads, and tells the auditor what it meant by them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._engine = cast("Any", world.book)
        self._hot = HotStore("", cast("Any", world.line(self)))
        self._grants: list[tuple[UUID, UUID]] = []
        self.principals: list[Principal] = []

    async def go_on(self) -> None:
        """Its process is never stopped."""

    # Before the first call -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Put models on sale and make organizations with some money."""
        async with self._engine.begin() as connection:
            for offer in OFFERS:
                await self._sell(connection, offer)
            for offer in OFFERS:
                for meter, price in self._prices():
                    await self._publish(connection, offer.name, meter, price, self._now() - timedelta(hours=1))
        for _ in range(self._world.random.randrange(3, 9)):
            await self._admit()

    async def _sell(self, connection: AsyncConnection, offer: Offer) -> None:
        now = self._now()
        await connection.execute(
            insert(model).values(
                id=offer.name,
                context_length=4_096,
                billed_count=offer.billed_count,
                tokenizer=offer.tokenizer,
            )
        )
        for number, kind in enumerate(offer.kinds):
            name = f"{offer.name}-{number}"
            backend_id = uuid7(now)
            await connection.execute(
                insert(backend).values(
                    id=backend_id, name=name, kind=kind.value, url=f"http://{name}:8000",
                    max_in_flight=self._world.random.choice((None, 8, 16)),
                )
            )  # fmt: skip
            await connection.execute(
                insert(deployment).values(
                    id=uuid7(now), model_id=offer.name, backend_id=backend_id, backend_model=offer.name
                )
            )

    def _prices(self) -> list[tuple[Meter, int]]:
        random = self._world.random
        fresh = random.randrange(1, 400_000)
        prices = [(Meter.INPUT, fresh), (Meter.OUTPUT, random.randrange(1, 900_000))]
        if random.random() < 0.7:
            prices.append((Meter.CACHED_INPUT, random.randrange(fresh + 1)))
        if random.random() < 0.3:
            prices.append((Meter.REASONING, random.randrange(900_000)))
        if random.random() < 0.3:
            prices.append((Meter.REQUEST, random.randrange(50_000_000)))
        return prices

    async def _admit(self) -> None:
        """A new organization on one of the shards of this run."""
        world, now = self._world, self._now()
        random = world.random
        shard = random.choice(world.shards)
        # The shard of an organization follows from its id.
        organization_id = UUID(int=uuid7(now).int >> 4 << 4 | shard)
        limit = random.choice((0, 0, random.randrange(3_000_000)))
        principal = Principal(
            organization_id=organization_id,
            project_id=uuid7(now),
            api_key_id=uuid7(now),
            shard=shard,
            currency=CURRENCY,
            price_book=BOOK,
            organization_limits=Limits(max_in_flight=random.choice((None, None, 30))),
            key_limits=random.choice((Limits(), Limits(), Limits(3_000, 5_000_000))),
        )
        async with self._engine.begin() as connection:
            await connection.execute(
                insert(organization).values(
                    id=organization_id, name="Test", currency=CURRENCY, billing_mode="hybrid", credit_limit=limit,
                    shard=shard,
                )
            )  # fmt: skip
            await connection.execute(
                insert(project).values(id=principal.project_id, organization_id=organization_id, name="Test")
            )
            await open_accounts(connection, organization_id, CURRENCY)
        world.auditor.limited(organization_id, limit)
        self.principals.append(principal)
        await self._grant(organization_id, random.choice((3_000_000, 10**9, 10**10, 10**10)))

    # While calls run -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Change something every few seconds."""
        world = self._world
        random = world.random
        acts = (self._grant_some, self._grant_some, self._void_one, self._change_limit, self._change_price)
        while world.weather is not CALM:
            await asyncio.sleep(random.expovariate(1 / 4))
            try:
                await random.choice(acts)()
            except OSError:
                # Postgres is away: somebody tries again another time.
                continue

    async def _grant_some(self) -> None:
        await self._grant(self._one().organization_id, self._world.random.randrange(1, 8_000_000))

    async def _grant(self, owner: UUID, amount: int) -> None:
        random, now = self._world.random, self._now()
        kind = random.choice((GrantKind.PAID, GrantKind.PROMO))
        expires_at = now + timedelta(seconds=random.randrange(5, 200)) if random.random() < 0.2 else None
        scope = {"models": [random.choice(OFFERS).name]} if random.random() < 0.1 else None
        async with self._engine.begin() as connection:
            grant_id = await grant_credit(
                connection,
                organization_id=owner,
                currency=CURRENCY,
                kind=kind,
                amount=Units(amount),
                priority=random.randrange(3),
                effective_at=now,
                expires_at=expires_at,
                scope=scope,
                idempotency_key=str(uuid7(now)),
                now=now,
            )
        self._world.auditor.granted(owner, amount)
        self._grants.append((owner, grant_id))
        await self._project(owner)

    async def _void_one(self) -> None:
        if len(self._grants) < 4:
            return
        owner, grant_id = self._grants.pop(self._world.random.randrange(len(self._grants)))
        try:
            async with self._engine.begin() as connection:
                taken = await void_grant(connection, grant_id, self._now())
        except NotFound:
            return
        self._world.auditor.taken_back(owner, taken)
        await self._project(owner)

    async def _change_limit(self) -> None:
        owner, limit = self._one().organization_id, self._world.random.randrange(3_000_000)
        async with self._engine.begin() as connection:
            await set_credit_limit(connection, owner, Units(limit))
            # As the operator's API does: verify looks there for the reason of a debt beyond the limit.
            await write_audit(
                connection, now=self._now(), actor="operator", action="organization.updated",
                object=f"organization:{owner}", organization_id=owner, detail={"credit_limit": str(limit)},
            )  # fmt: skip
        self._world.auditor.limited(owner, limit)
        await self._project(owner)

    async def _change_price(self) -> None:
        random = self._world.random
        offer = random.choice(OFFERS)
        begins = self._now() + timedelta(seconds=NOTICE_SECONDS + random.randrange(10))
        try:
            async with self._engine.begin() as connection:
                meter = random.choice((Meter.INPUT, Meter.OUTPUT))
                await self._publish(connection, offer.name, meter, random.randrange(1, 900_000), begins)
        except Conflict:
            return

    async def _publish(
        self, connection: AsyncConnection, name: str, meter: Meter, price: int, begins: datetime
    ) -> None:
        auditor, clock = self._world.auditor, self._world.clock
        since_us = (begins - clock.now()) // timedelta(microseconds=1) + clock.us
        latest = [one.since_us for one in auditor.versions.values() if (one.model, one.meter) == (name, meter)]
        if latest and max(latest) >= since_us:
            # A price that begins later has been published already.
            return
        new = NewPrice(BOOK, name, meter, CURRENCY, MilliUnits(price), begins)
        version = await publish(connection, new, "operator", self._now())
        auditor.priced(version.id, Sold(name, meter, price, since_us))

    async def _project(self, owner: UUID) -> None:
        try:
            async with self._engine.connect() as connection:
                await project_balance(connection, self._hot, owner)
        except (Unavailable, OSError):
            # A worker does it some seconds later.
            return

    def _one(self) -> Principal:
        return self._world.random.choice(self.principals)

    def _now(self) -> datetime:
        return self._world.clock.now()
