"""Four days of trade: 10,000 calls of one organization, and some of a neighbour, booked as a worker books them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI
from sqlalchemy import insert, text
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.charges import Measured
from billing.charges import charge as close
from billing.hot.entries import encode_charge
from billing.hot.keys import shard_of
from billing.hot.store import HotStore, StreamEntry
from billing.settlement import book_entries, correct, open_accounts
from billing.store.keys import create_admin_key, create_api_key
from billing.store.shards import lease
from gateway.api import billing
from gateway.api import organization as control
from gateway.embedded.redis import Redis
from gateway.keys import KeyKind, mint
from models.call import CallOrigin, Charge, Hold, HoldRequest
from models.catalog import Meter, PriceVersion, Scheme, Tier, rates_of
from models.ids import uuid7
from models.money import MilliUnits, Units
from models.tables import model, organization, price_version, project
from models.usage import Ending, TokenUsage, UsageSource
from tests.conftest import Database
from tests.rooms import PEPPER, application, open_parts

CALLS: Final = 10_000
DAYS: Final = 4
END: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
"""Midnight, so that all days of the trade are whole; the last one ended today."""
BEGIN: Final = END - timedelta(days=DAYS)
TURN: Final = BEGIN + timedelta(days=2, hours=5)
"""When prices change."""
TIERS: Final = (Tier(1_000, MilliUnits(400_000)), Tier(None, MilliUnits(90_000)))
ENDPOINTS: Final = {
    "chat-large": ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"),
    "chat-small": ("/v1/chat/completions", "/v1/messages"),
    "embed": ("/v1/embeddings", "/v1/rerank", "/v1/moderations"),
    "paint": ("/v1/images/generations", "/v1/images/edits"),
    "listen": ("/v1/audio/transcriptions", "/v1/audio/translations"),
}


@dataclass(frozen=True, slots=True)
class Side:
    """An organization with projects, each with some keys, and an admin key."""

    organization_id: UUID
    keys: dict[UUID, tuple[UUID, ...]]
    """The keys of each project."""
    admin_key: str
    api_key: str

    @property
    def shard(self) -> int:
        """Where it lives."""
        return shard_of(self.organization_id)


@dataclass(slots=True)
class Trade:
    """What the tests ask: our organization by its admin client, and the database behind it."""

    engine: AsyncEngine
    hot: HotStore
    app: FastAPI
    ours: Side
    theirs: Side
    versions: list[PriceVersion] = field(default_factory=list)

    def client(self, side: Side | None = None, /) -> AsyncOpenAI:
        """The official client, as an administrator of ours or of another."""
        transport = httpx2.ASGITransport(self.app)
        return AsyncOpenAI(
            admin_api_key=(side or self.ours).admin_key,
            base_url="http://tollgate/v1",
            http_client=httpx2.AsyncClient(transport=transport),
            max_retries=0,
        )

    async def get(self, path: str, key: str | None = None) -> httpx2.Response:
        """GET as it is written, with our admin key or another."""
        headers = {"authorization": f"Bearer {key or self.ours.admin_key}"}
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://tollgate") as client:
            return await client.get(path, headers=headers)


@asynccontextmanager
async def opened(database: Database, redis: Redis) -> AsyncIterator[Trade]:
    """A fresh database with the trade booked, and an application in front of it."""
    async with open_parts(database, redis) as parts:
        engine, app = parts.engine, application(parts, control.router, billing.router)
        trade = Trade(engine, parts.hot, app, await _side(engine, 3, 2), await _side(engine, 1, 1))
        await _price(trade)
        chance = random.Random(20_261_127)
        await _book(trade, [_call(trade, trade.ours, chance) for _ in range(CALLS - 60)])
        await _book(trade, [_call(trade, trade.theirs, chance) for _ in range(300)])
        await _recover(trade, [_made(trade, trade.ours, chance) for _ in range(60)], chance)
        yield trade


async def _side(engine: AsyncEngine, projects: int, keys: int) -> Side:
    own = uuid7(BEGIN)
    admin = mint(KeyKind.ADMIN, PEPPER)
    found: dict[UUID, tuple[UUID, ...]] = {}
    async with engine.begin() as connection:
        await connection.execute(
            insert(organization).values(
                id=own, name="Side", currency="USD", billing_mode="postpaid", shard=shard_of(own), created_at=BEGIN
            )
        )
        await open_accounts(connection, own, "USD")
        for number in range(projects):
            project_id = uuid7(BEGIN)
            await connection.execute(
                insert(project).values(id=project_id, organization_id=own, name=f"{number}", created_at=BEGIN)
            )
            made = [mint(KeyKind.API, PEPPER) for _ in range(keys)]
            found[project_id] = tuple(
                [
                    await create_api_key(
                        connection,
                        organization_id=own,
                        project_id=project_id,
                        name="key",
                        digest=each.digest,
                        redacted_value=each.redacted_value,
                        now=BEGIN,
                    )
                    for each in made
                ]
            )
        await create_admin_key(
            connection,
            organization_id=own,
            name="admin",
            digest=admin.digest,
            redacted_value=admin.redacted_value,
            now=BEGIN,
        )
    return Side(own, found, admin.value, made[0].value)


async def _price(trade: Trade) -> None:
    """Plain prices, stepped ones, a minimum, prices by the request, the image and the second; all change once."""
    plain: dict[str, dict[Meter, int]] = {
        "chat-large": {Meter.INPUT: 150_333, Meter.CACHED_INPUT: 75_111, Meter.OUTPUT: 600_777, Meter.REQUEST: 1_234},
        "chat-small": {Meter.INPUT: 7_001, Meter.OUTPUT: 0, Meter.MINIMUM: 900_500},
        "embed": {Meter.INPUT: 333},
        "paint": {Meter.IMAGE: 40_000_001, Meter.INPUT: 501},
        "listen": {Meter.AUDIO_SECOND: 100_499},
    }
    async with trade.engine.begin() as connection:
        for name, prices in plain.items():
            await connection.execute(insert(model).values(id=name, context_length=100_000))
            for meter, price in prices.items():
                tiers = TIERS if (name, meter) == ("chat-small", Meter.OUTPUT) else ()
                scheme = Scheme.GRADUATED if tiers else Scheme.UNIT
                # The second time everything is dearer by a third, odd amounts as well.
                for times, since, until in ((3, BEGIN - timedelta(days=9), TURN), (4, TURN, None)):
                    dearer = tuple(replace(tier, price=MilliUnits(tier.price * times // 3)) for tier in tiers)
                    found = PriceVersion(
                        *(uuid7(BEGIN), "default", name, meter, "USD"),
                        dearer[0].price if dearer else MilliUnits(price * times // 3),
                        since,
                        until,
                        scheme,
                        dearer,
                    )
                    trade.versions.append(found)
                    await connection.execute(
                        insert(price_version).values(
                            id=found.id,
                            book=found.book,
                            model_id=name,
                            meter=meter.value,
                            currency="USD",
                            price=found.price,
                            scheme=scheme.value,
                            tiers=[{"up_to": tier.up_to, "price": tier.price} for tier in dearer] or None,
                            effective=Range(since, until, bounds="[)"),
                            created_by="test",
                        )
                    )


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that ended, before it is charged."""

    hold: Hold
    usage: TokenUsage
    ended_at: datetime

    def charged(self, usage: TokenUsage, ending: Ending = Ending.FINISHED) -> Charge:
        """Its charge, by this usage or another."""
        version = f"{self.hold.request.origin.model}-v2"
        measured = Measured(usage, UsageSource.BACKEND)
        return close(self.hold, measured, ending=ending, deployment="here", ended_at=self.ended_at, version=version)


def _call(trade: Trade, side: Side, chance: random.Random) -> Charge:
    made = _made(trade, side, chance)
    return made.charged(made.usage)


def _made(trade: Trade, side: Side, chance: random.Random) -> _Call:
    """Any call of the four days; some at the very edges of hours and days, some cut to their hold."""
    began = BEGIN + timedelta(microseconds=chance.randrange(int(timedelta(days=DAYS).total_seconds() * 1_000_000)))
    if chance.random() < 0.1:
        began = began.replace(minute=0, second=0, microsecond=0)
    ended = min(began + timedelta(seconds=chance.choice((0, 0, 1, 30, 1_700))), END - timedelta(microseconds=1))
    name = chance.choice(tuple(ENDPOINTS))
    project_id = chance.choice(tuple(side.keys))
    origin = CallOrigin(
        *(uuid7(began), side.organization_id, project_id, chance.choice(side.keys[project_id]), side.shard, "USD"),
        # Endpoints that this branch does not serve yet: a charge has the path as text.
        chance.choice(ENDPOINTS[name]),  # type: ignore[arg-type]
        name,
        chance.random() < 0.5,
        began,
        batch=chance.random() < 0.2,
    )
    rates = rates_of({one.meter: one for one in trade.versions if one.model == name and one.in_force(began)})
    assert rates is not None
    tokens, cached = chance.randrange(3_000), chance.randrange(1_000)
    spoken = TokenUsage(tokens + cached, 0 if name in ("embed", "paint") else chance.randrange(3_000), cached)
    usage = {
        "paint": replace(spoken, images=chance.randrange(1, 5)),
        "listen": TokenUsage(0, 0, audio_seconds=chance.randrange(1, 4_000)),
    }.get(name, spoken)
    amount = Units(chance.choice((50_000, *[10**15] * 19)))
    request = HoldRequest(origin, amount, rates, 10_000, 10_000)
    return _Call(Hold(request), usage, ended)


async def _book(trade: Trade, calls: list[Charge]) -> None:
    shard = shard_of(calls[0].organization_id)
    for first in range(0, len(calls), 500):
        entries = [
            StreamEntry(f"{first + number + 1}-1", encode_charge(each), None, late=False)
            for number, each in enumerate(calls[first : first + 500])
        ]
        async with trade.engine.begin() as connection:
            held = await lease(connection, shard)
            assert held is not None
            booked = await book_entries(connection, held, entries)
        assert (booked.charges, booked.dead) == (len(entries), 0)


async def _recover(trade: Trade, calls: list[_Call], chance: random.Random) -> None:
    """Calls that a sweeper had ended with less than was used, or with more, and that their journal corrects."""
    swept, journaled = [], []
    for each in calls:
        usage = each.usage
        known = replace(
            usage,
            input=max(usage.cached, usage.input - chance.randrange(-400, 400)),
            images=max(0, usage.images - chance.randrange(-1, 3)) if usage.images else 0,
            audio_seconds=max(0, usage.audio_seconds - chance.randrange(-90, 90)) if usage.audio_seconds else 0,
        )
        swept.append(each.charged(known, Ending.RECOVERED))
        journaled.append(each.charged(usage))
    await _book(trade, swept)
    corrected = [await correct(trade.engine, trade.hot, each) for each in journaled]
    assert sum(each is not None for each in corrected) > len(calls) // 2


async def sql(trade: Trade, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    """Rows of a statement."""
    async with trade.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(statement), values)]
