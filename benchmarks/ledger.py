"""A large ledger to verify: months of calls, priced, funded and booked by the rooms that do it for real calls.

Only the order is another: a worker books a batch of some hundred calls, this books fifty thousand in a transaction, so
that a million rows are there in a minute or two. Calls differ from one seed to the next in nothing but chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import accumulate, groupby
from typing import Any, Final
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import usage
from billing.booking import Booking, Grant, correction, plan_booking, plan_return
from billing.charges import Measured
from billing.charges import charge as close
from billing.hot.keys import shard_of
from billing.months import month_of
from billing.pricing import ceiling
from billing.settlement import LATE, expire_grants, grant_credit, open_accounts, void_grant
from billing.store import balances, grants, ledger
from billing.store.ledger import Posting
from billing.store.usage import add_days, add_hours
from models.call import CallOrigin, Charge, Endpoint, Hold, HoldRequest
from models.catalog import Catalog, Meter, PriceVersion
from models.ids import uuid7
from models.ledger import Account, AccountKind, GrantKind, PostingKind, Transfer
from models.money import MilliUnits, Units
from models.tables import model, organization, price_version, project
from models.usage import Ending, TokenUsage, UsageSource

DAYS: Final = 182
CALLS_AT_ONCE: Final = 50_000
"""Calls of one transaction here."""
CALLS_PER_BATCH: Final = 200
"""Calls of one look of a worker: each organization among them gets one posting."""

_CURRENCIES: Final = ("USD", "USD", "USD", "EUR", "KRW")
_UNITS_PER_DOLLAR: Final = {"USD": 10**9, "EUR": 10**9, "KRW": 1_400 * 10**6}
_MODES: Final = ("prepaid", "prepaid", "prepaid", "hybrid", "postpaid")
_CREDIT_DOLLARS: Final = 1_000_000
_MODELS: Final = ("tiny", "small", "medium", "large", "coder", "reasoner", "vision", "embedder")
_METERS: Final = {
    Meter.INPUT: 10,
    Meter.OUTPUT: 40,
    Meter.CACHED_INPUT: 3,
    Meter.CACHE_WRITE: 12,
    Meter.REASONING: 35,
    Meter.REQUEST: 900,
}
"""What a meter costs beside the others; every third model lacks the last three."""
_PERIODS: Final = 3
_ENDINGS: Final = (*[Ending.FINISHED] * 17, Ending.CLIENT_GONE, Ending.BACKEND_FAILED, Ending.DRAINED)


@dataclass(slots=True)
class Customer:
    """An organization that calls, with the grants that it has left."""

    id: UUID
    project_id: UUID
    api_key_ids: tuple[UUID, ...]
    currency: str
    mode: str
    book: str
    purse: dict[UUID, Grant] = field(default_factory=dict)
    grants_given: int = 0

    @property
    def left(self) -> int:
        """Money in its grants."""
        return sum(grant.remaining for grant in self.purse.values())


class LedgerBuilder:
    """Fills an empty, migrated database; everything random comes from `seed`, but for the tails of ids."""

    def __init__(
        self, engine: AsyncEngine, now: datetime, customers: int = 160, seed: int = 1, days: int = DAYS
    ) -> None:
        self._engine = engine
        self._now = now
        self._days = days
        self._begin = now - timedelta(days=days)
        self._chance = random.Random(seed)  # noqa: S311 - a benchmark wants the same calls again
        self._catalog = Catalog(prices=_prices(self._begin, days))
        self._customers = [self._customer(number) for number in range(customers)]
        # A few organizations make most of the calls, as everywhere.
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(customers)))
        self._postings = 0

    async def build(self, calls: int, tick: Callable[[int], None] = lambda _: None) -> None:
        """Book `calls` calls, evenly over the months; `tick` hears of each piece."""
        await self._open()
        step = timedelta(days=self._days) / calls
        for first in range(0, calls, CALLS_AT_ONCE):
            moments = [self._begin + step * number for number in range(first, min(first + CALLS_AT_ONCE, calls))]
            async with self._engine.begin() as connection:
                await self._fill_purses(connection, moments[0])
                await self._book(connection, moments)
            tick(len(moments))
        await self._take_back()

    async def open(self) -> None:
        """What there is before the first call, with money in every purse."""
        await self._open()
        async with self._engine.begin() as connection:
            await self._fill_purses(connection, self._begin)

    def calls(self, first: datetime, count: int) -> list[Charge]:
        """Calls of a second or so each that nobody has booked, a millisecond apart, by those who call most."""
        moments = [first + timedelta(milliseconds=number) for number in range(count)]
        callers = self._chance.choices(self._customers, cum_weights=self._weights, k=count)
        return [self._call(customer, moment) for customer, moment in zip(callers, moments, strict=True)]

    # What there is before the first call ------------------------------------------------------------------------------

    def _customer(self, number: int) -> Customer:
        def new() -> UUID:
            return uuid7(self._begin)

        currency, mode = _CURRENCIES[number % len(_CURRENCIES)], _MODES[number // 3 % len(_MODES)]
        book = "partners" if number % 7 == 0 else "default"
        return Customer(new(), new(), tuple(new() for _ in range(1 + number % 4)), currency, mode, book)

    async def _open(self) -> None:
        async with self._engine.begin() as connection:
            month = self._begin + timedelta(days=15)
            while month < self._now + timedelta(days=62):
                await ledger.ensure_partitions(connection, month)
                month += timedelta(days=28)
            await connection.execute(insert(model), [{"id": name, "context_length": 131_072} for name in _MODELS])
            versions = [version for prices in self._catalog.prices.values() for version in prices]
            await connection.execute(insert(price_version), [_price_row(version) for version in versions])
            for customer in self._customers:
                await self._open_customer(connection, customer)

    async def _open_customer(self, connection: AsyncConnection, customer: Customer) -> None:
        limit = 0 if customer.mode == "prepaid" else _CREDIT_DOLLARS * _UNITS_PER_DOLLAR[customer.currency]
        await connection.execute(
            insert(organization).values(
                id=customer.id,
                name=f"Customer {customer.id}",
                currency=customer.currency,
                billing_mode=customer.mode,
                credit_limit=limit,
                price_book=customer.book,
                shard=shard_of(customer.id),
                created_at=self._begin,
            )
        )
        await connection.execute(
            insert(project).values(id=customer.project_id, organization_id=customer.id, name="Default")
        )
        await open_accounts(connection, customer.id, customer.currency)

    async def _fill_purses(self, connection: AsyncConnection, moment: datetime) -> None:
        """Who pays before buys enough for what comes; others get a present now and then, which runs out in mid-call."""
        for customer in self._customers:
            dollar = _UNITS_PER_DOLLAR[customer.currency]
            if customer.mode == "prepaid" and customer.left < 2_000 * dollar:
                await self._grant(connection, customer, GrantKind.PROMO, 5 * dollar, moment)
                await self._grant(connection, customer, GrantKind.PAID, 4_000 * dollar, moment)
            elif customer.mode == "hybrid" and customer.left == 0:
                await self._grant(connection, customer, GrantKind.PROMO, dollar // 2, moment)

    async def _grant(
        self, connection: AsyncConnection, customer: Customer, kind: GrantKind, units: int, moment: datetime
    ) -> None:
        customer.grants_given += 1
        grant_id = await grant_credit(
            connection,
            organization_id=customer.id,
            currency=customer.currency,
            kind=kind,
            amount=Units(units),
            priority=50,
            effective_at=moment,
            expires_at=self._now - timedelta(days=1) if customer.grants_given % 5 == 0 else None,
            scope=None,
            idempotency_key=f"grant {customer.grants_given}",
            now=moment,
        )
        found = await grants.find_grant(connection, grant_id)
        assert found is not None
        customer.purse[grant_id] = found[2]

    async def _take_back(self) -> None:
        """What grants that expired or were voided have left goes back, so that there are such postings too."""
        await expire_grants(self._engine, self._now)
        async with self._engine.begin() as connection:
            for customer in self._customers[::20]:
                for grant in [grant for grant in customer.purse.values() if grant.remaining and not grant.expires_at]:
                    await void_grant(connection, grant.id, self._now)

    # Calls -----------------------------------------------------------------------------------------------------------

    async def _book(self, connection: AsyncConnection, moments: list[datetime]) -> None:
        callers = self._chance.choices(self._customers, cum_weights=self._weights, k=len(moments))
        calls = [self._call(customer, moment) for customer, moment in zip(callers, moments, strict=True)]
        owners = {customer.id: customer for customer in self._customers}
        bookings = [self._booking(owners[owner], batch) for owner, batch in _batches(calls)]
        bookings += [
            (self._posting(owners[owner], [fixed], corrects=fixed.corrects), booking)
            for owner, fixed, booking in self._corrections(owners, [booking for _, booking in bookings])
        ]
        await _enter(connection, bookings, owners)

    def _call(self, customer: Customer, moment: datetime) -> Charge:
        """A call as a gateway closes it: held at its ceiling, measured, charged at most the hold."""
        chance = self._chance
        name = chance.choice(_MODELS)
        rates = self._catalog.rates(customer.book, customer.currency, name, moment)
        assert rates is not None
        usage, wanted = self._usage(), chance.choice((256, 1_024, 4_096))
        origin = CallOrigin(
            call_id=uuid7(moment),
            organization_id=customer.id,
            project_id=customer.project_id,
            api_key_id=chance.choice(customer.api_key_ids),
            shard=shard_of(customer.id),
            currency=customer.currency,
            endpoint=Endpoint.CHAT_COMPLETIONS,
            model=name,
            streamed=chance.random() < 0.7,
            created_at=moment,
            end_user=f"user-{chance.randrange(10_000)}" if chance.random() < 0.3 else None,
        )
        hold = Hold(HoldRequest(origin, ceiling(usage.input * 4, wanted, rates), rates, usage.input * 4, wanted))
        is_lost = chance.random() < 0.0005
        measured = Measured(
            usage,
            UsageSource.CHECKPOINT if is_lost else UsageSource.BACKEND,
            reported={"prompt_tokens": usage.input, "completion_tokens": usage.output},
            flags=(LATE,) if chance.random() < 0.0001 else (),
        )
        ending = Ending.RECOVERED if is_lost else chance.choice(_ENDINGS)
        ended_at = moment + timedelta(milliseconds=chance.randrange(50, 40_000))
        return close(hold, measured, ending=ending, deployment=f"vllm-{name}", ended_at=ended_at)

    def _usage(self) -> TokenUsage:
        chance = self._chance
        whole, output = int(chance.lognormvariate(6, 1.2)) + 1, int(chance.lognormvariate(4.5, 1.1))
        cached = chance.randrange(whole) if chance.random() < 0.3 else 0
        written = chance.randrange(whole - cached) if chance.random() < 0.1 else 0
        return TokenUsage(whole, output, cached, written, output // 2 if chance.random() < 0.1 else 0)

    def _booking(self, customer: Customer, charges: list[Charge]) -> tuple[Posting, Booking]:
        booking = plan_booking(charges, [grant for grant in customer.purse.values() if grant.remaining])
        _draw(customer, booking)
        return self._posting(customer, charges), booking

    def _corrections(
        self, owners: dict[UUID, Customer], bookings: list[Booking]
    ) -> Iterator[tuple[UUID, Charge, Booking]]:
        """Half of the recovered calls had gone on, or had stopped sooner, than the sweeper knew."""
        for funded in [funded for booking in bookings for funded in booking.funded]:
            booked, chance = funded.charge, self._chance
            if booked.ending is not Ending.RECOVERED or chance.random() < 0.5:
                continue
            customer = owners[booked.organization_id]
            rates = self._catalog.rates(customer.book, booked.currency, booked.model, booked.created_at)
            assert rates is not None
            output = max(booked.reasoning_tokens, booked.output_tokens + chance.randrange(-50, 200))
            usage = TokenUsage(
                booked.input_tokens, output, booked.cached_tokens, booked.cache_write_tokens, booked.reasoning_tokens
            )
            hold = Hold(HoldRequest(_origin(booked), Units(booked.hold), rates, 0, 0))
            whole = close(
                hold,
                Measured(usage, UsageSource.BACKEND),
                ending=Ending.FINISHED,
                deployment=booked.deployment,
                ended_at=booked.ended_at,
            )
            fixed = correction(booked, whole)
            if fixed is None:
                continue
            left = {str(grant.id): grant for grant in customer.purse.values()}
            booking = (
                plan_return(fixed, funded.funding, left)
                if fixed.amount < 0
                else plan_booking([fixed], [grant for grant in customer.purse.values() if grant.remaining])
            )
            _draw(customer, booking)
            yield customer.id, fixed, booking

    def _posting(self, customer: Customer, charges: list[Charge], corrects: UUID | None = None) -> Posting:
        self._postings += 1
        source: dict[str, Any] = {"calls": len(charges)}
        if corrects is None:
            entry = f"{int(charges[0].ended_at.timestamp() * 1_000)}-0"
            source |= {"shard": shard_of(customer.id), "epoch": 1, "first": entry, "last": entry}
        else:
            source |= {"corrects": str(corrects)}
        return Posting(
            customer.id,
            f"charges:{self._postings}",
            PostingKind.CHARGE_BATCH,
            max(charge.ended_at for charge in charges),
            source,
            month_of(charges[0].ended_at, "UTC"),
        )


async def _enter(
    connection: AsyncConnection, bookings: list[tuple[Posting, Booking]], owners: dict[UUID, Customer]
) -> None:
    """What `billing.settlement` writes for a batch, for many batches at once."""
    currencies = {customer.currency for customer in owners.values()}
    accounts = await ledger.account_ids(connection, owners, currencies)
    ids = await ledger.add_postings(connection, [posting for posting, _ in bookings])
    posted = [(posting_id, *pair) for posting_id, pair in zip(ids, bookings, strict=True)]
    await ledger.copy_charges(
        connection, ((posting_id, funded) for posting_id, _, booking in posted for funded in booking.funded)
    )
    hours, days = usage.sums_of(
        usage.Batch("UTC", posting.billing_month, booking.funded)
        for _, posting, booking in posted
        if posting.billing_month is not None
    )
    await add_hours(connection, hours)
    await add_days(connection, days)
    draws = [
        grants.Draw(posting_id, grant_id, amount)
        for posting_id, _, booking in posted
        for grant_id, amount in booking.draws.items()
    ]
    await grants.draw(connection, draws)
    moved: list[tuple[int, Transfer]] = []
    spent: dict[UUID, int] = {}
    for posting_id, posting, booking in posted:
        assert posting.organization_id is not None, "charges are somebody's"
        owner = owners[posting.organization_id]
        spent[owner.id] = spent.get(owner.id, 0) - booking.total
        revenue = Account(None, AccountKind.REVENUE, owner.currency)
        for kind, amount in booking.by_account.items():
            account = Account(owner.id, kind, owner.currency)
            sides = (account, revenue) if amount > 0 else (revenue, account)
            moved.append((posting_id, Transfer(*sides, Units(abs(amount)))))
    await ledger.add_transfers(connection, moved, accounts)
    await balances.move_balances(connection, spent)


def _batches(calls: list[Charge]) -> Iterator[tuple[UUID, list[Charge]]]:
    """The calls as workers meet them: by batch, and within it by organization."""

    def owner(charge: Charge) -> UUID:
        return charge.organization_id

    for at in range(0, len(calls), CALLS_PER_BATCH):
        for organization_id, mine in groupby(sorted(calls[at : at + CALLS_PER_BATCH], key=owner), key=owner):
            yield organization_id, list(mine)


def _draw(customer: Customer, booking: Booking) -> None:
    for grant_id, amount in booking.draws.items():
        grant = customer.purse[grant_id]
        customer.purse[grant_id] = replace(grant, remaining=Units(grant.remaining - amount))


def _origin(charge: Charge) -> CallOrigin:
    return CallOrigin(
        call_id=charge.call_id,
        organization_id=charge.organization_id,
        project_id=charge.project_id,
        api_key_id=charge.api_key_id,
        shard=shard_of(charge.organization_id),
        currency=charge.currency,
        endpoint=Endpoint(charge.endpoint),
        model=charge.model,
        streamed=charge.streamed,
        created_at=charge.created_at,
        end_user=charge.end_user,
    )


# Prices --------------------------------------------------------------------------------------------------------------


def _prices(begin: datetime, days: int) -> dict[tuple[str, str, str], tuple[PriceVersion, ...]]:
    """Two books, three currencies, and prices that change evenly over the days."""
    return {
        (book, currency, name): tuple(_versions(begin, days, book, currency, name))
        for book in ("default", "partners")
        for currency in _UNITS_PER_DOLLAR
        for name in _MODELS
    }


def _versions(begin: datetime, days: int, book: str, currency: str, name: str) -> Iterator[PriceVersion]:
    size = _MODELS.index(name) + 1
    length = timedelta(days=days) / _PERIODS
    for period in range(_PERIODS):
        start = begin - timedelta(days=1) if period == 0 else begin + length * period
        for meter, weight in _METERS.items():
            if size % 3 == 0 and meter in (Meter.CACHE_WRITE, Meter.REASONING, Meter.REQUEST):
                continue
            # Odd numbers on purpose, so that amounts have to be rounded.
            dollars = weight * size * (100 - 7 * period - (13 if book == "partners" else 0))
            price = dollars * 61 * _UNITS_PER_DOLLAR[currency] // 10**9
            yield PriceVersion(
                id=uuid7(start),
                book=book,
                model=name,
                meter=meter,
                currency=currency,
                price=MilliUnits(max(1, price)),
                effective_from=start,
                effective_to=None if period == _PERIODS - 1 else begin + length * (period + 1),
            )


def _price_row(version: PriceVersion) -> dict[str, object]:
    return {
        "id": version.id,
        "book": version.book,
        "model_id": version.model,
        "meter": version.meter.value,
        "currency": version.currency,
        "price": version.price,
        "effective": Range(version.effective_from, version.effective_to),
        "created_by": "benchmark",
    }
