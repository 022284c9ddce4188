"""A dry run of prices: what past calls would have cost at drafts, organization by organization. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.pricing import price
from billing.schemes import counted_by, monthly_rebate
from billing.store.catalog import missing_models
from billing.store.engine import encode_json
from billing.store.price_books import batch_books as named_books
from billing.store.price_books import book_parents
from billing.store.prices import all_versions
from billing.store.repricing import MILLI_UNITS, ONCE, RATE_COLUMNS, UNITS, rate_json
from models.catalog import Meter, PriceDraft, PriceVersion, Rates, TiersOver, line_of, rates_of
from models.errors import InvalidRequest
from models.ids import first_uuid7
from models.usage import TokenUsage

LONGEST_SPAN: Final = timedelta(days=400)
_YEARS: Final = range(2000, 2200)
_SLICE: Final = timedelta(days=1)
_CLOCK_SLACK: Final = timedelta(days=1)
"""How far the time in a call's id may lie from its `created_at`: far more than it ever does."""
_ROWS_AT_ONCE: Final = 1_000
_DRAFT_ID: Final = UUID(int=0)
_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)

_CHARGES: Final = """
    select charge.*, organization.price_book, organization.timezone
      from charge join organization on organization.id = charge.organization_id
      where charge.call_id >= :first and charge.call_id < :past
        and charge.created_at >= :start and charge.created_at < :end
"""
_SETS: Final = f"select distinct price_version_ids, model, currency, price_book, batch from ({_CHARGES}) charge"  # noqa: S608
_SUMS: Final = f"""
    select organization_id, currency, batch, count(*) as calls, sum(amount) as charged,
        sum(case when term.input is null then amount else {UNITS} end) as would_be
      from ({_CHARGES} and charge.corrects is null) charge
      left join jsonb_to_recordset(cast(:terms as jsonb)) as term (
        price_version_ids uuid[], model text, currency text, price_book text, batch boolean, {RATE_COLUMNS}
      ) using (price_version_ids, model, currency, price_book, batch)
      cross join lateral (select {MILLI_UNITS} as milli {ONCE}) priced
      group by organization_id, currency, batch
"""  # noqa: S608 - made of constants
_CORRECTIONS: Final = f"""
    select organization_id, currency, amount, counted, price_version_ids, model, price_book, batch,
        to_char(ended_at at time zone timezone, 'YYYY-MM') as month
      from ({_CHARGES} and charge.corrects is not null) charge
"""  # noqa: S608 - made of constants
_QUANTITIES: Final = f"""
    select organization_id, price_version_ids, model, currency, price_book, batch,
        to_char(ended_at at time zone timezone, 'YYYY-MM') as month, count(*) as calls, sum(input_tokens) as input,
        sum(output_tokens) as output, sum(cached_tokens) as cached, sum(cache_write_tokens) as cache_write,
        sum(reasoning_tokens) as reasoning, sum(images) as images, sum(audio_seconds) as audio_seconds
      from ({_CHARGES} and charge.corrects is null) charge
      group by organization_id, price_version_ids, model, currency, price_book, batch, month
"""  # noqa: S608 - made of constants
_NAMES: Final = "select id, name from organization where id = any(cast(:ids as uuid[]))"


@dataclass(slots=True, kw_only=True)
class Sums:
    """Calls of the span in ledger units: what they were charged, and what they would have been."""

    calls: int = 0
    charged: int = 0
    would_be: int = 0

    @property
    def difference(self) -> int:
        """How much more the drafts would have brought."""
        return self.would_be - self.charged

    def add(self, other: Sums) -> None:
        """Count others in."""
        self.calls += other.calls
        self.charged += other.charged
        self.would_be += other.would_be


@dataclass(slots=True)
class Repriced(Sums):
    """The calls of an organization; `batches` is the part of them that are lines of batches.

    `rebate` is how much more invoices would give back, where tiers are over a month.
    """

    organization_id: UUID
    currency: str
    name: str = ""
    rebate: int = 0
    batches: Sums = field(default_factory=Sums)

    @property
    def difference(self) -> int:
        """How much more the drafts would have brought, after what invoices give back."""
        return self.would_be - self.charged - self.rebate


@dataclass(frozen=True, slots=True)
class _Key:
    """The terms of a charge: the same key, the same price."""

    price_version_ids: tuple[UUID, ...]
    model: str
    currency: str
    price_book: str
    batch: bool

    @classmethod
    def of(cls, row: Any) -> _Key:
        return cls(tuple(row.price_version_ids), row.model, row.currency, row.price_book, row.batch)


@dataclass(slots=True)
class _Desk:
    """What drafts make of the prices that were pinned. Each set of them is looked at once."""

    drafts: Mapping[tuple[str, str, str, Meter], PriceDraft]
    versions: Mapping[UUID, PriceVersion]
    parents: Mapping[str, str | None]
    named: Mapping[str, str]
    """The book that each price book names for batches."""
    tried: Mapping[str, str | None]
    """The book that it is to name instead, by price book."""
    now: datetime
    """When what a tried book has must be in force."""
    _known: dict[_Key, Rates | None] = field(default_factory=dict)

    @property
    def looks_at_months(self) -> bool:
        """Whether any price or draft has tiers over a month."""
        prices: Iterable[PriceVersion | PriceDraft] = chain(self.versions.values(), self.drafts.values())
        return any(one.tiers_over is TiersOver.MONTH for one in prices)

    def rates(self, key: _Key) -> Rates | None:
        """The rates of such a call under the drafts, or None where they change nothing."""
        if key not in self._known:
            before, after = (rates_of(versions) for versions in (self.pinned(key), self.drafted(key)))
            is_same = after is None or (before is not None and _same(before, after))
            self._known[key] = None if is_same else after
        return self._known[key]

    def pinned(self, key: _Key) -> dict[Meter, PriceVersion]:
        """The versions that such a call was charged by."""
        return {one.meter: one for name in key.price_version_ids if (one := self.versions.get(name)) is not None}

    def drafted(self, key: _Key) -> dict[Meter, PriceVersion]:
        """The versions that it would have been charged by."""
        found: dict[Meter, PriceVersion] = {}
        for book in self._books(key):
            line = list(line_of(book, self.parents))
            pinned = self.pinned(key)
            there = moved(pinned, line, self._in_force(key)) if key.batch and key.price_book in self.tried else pinned
            found = overlaid(there, line, self._drafts_of(key))
            if rates_of({meter: one for meter, one in found.items() if one.book in line}) is not None:
                break
        return found

    def _books(self, key: _Key) -> list[str]:
        """Where to look for prices of such a call: the next one is asked where a book does not sell the model."""
        cheaper = self.tried.get(key.price_book, self.named.get(key.price_book)) if key.batch else None
        return [key.price_book] if cheaper is None else [cheaper, key.price_book]

    def _in_force(self, key: _Key) -> list[PriceVersion]:
        own = (one for one in self.versions.values() if (one.model, one.currency) == (key.model, key.currency))
        return [one for one in own if one.in_force(self.now)]

    def _drafts_of(self, key: _Key) -> list[PriceDraft]:
        return [one for one in self.drafts.values() if (one.model, one.currency) == (key.model, key.currency)]


@dataclass(slots=True)
class _Months:
    """Quantities of calendar months at prices with tiers over a month: as they were charged, and with the drafts."""

    desk: _Desk
    charged: Counter[_Month] = field(default_factory=Counter)
    would_be: Counter[_Month] = field(default_factory=Counter)

    def add(self, row: Any, usage: TokenUsage, calls: int, sign: int = 1) -> None:
        """Count tokens of calls with one key, organization and month; a correction's are taken off or added."""
        key = _Key.of(row)
        for counter, versions in ((self.charged, self.desk.pinned(key)), (self.would_be, self.desk.drafted(key))):
            for meter, quantity in counted_by(versions, usage).items():
                version = versions[meter]
                if version.tiers_over is TiersOver.MONTH:
                    # `counted_by` looks at one call.
                    of_calls = calls if meter is Meter.REQUEST else quantity
                    counter[row.organization_id, row.currency, row.month, version] += sign * of_calls

    def settle(self, sums: _Sums) -> None:
        """Put into each organization's sums what invoices would give back more."""
        for counter, sign in ((self.would_be, 1), (self.charged, -1)):
            for (organization_id, currency, _, version), quantity in counter.items():
                sums[organization_id, currency].rebate += sign * monthly_rebate(version, quantity)


_Sums: TypeAlias = dict[tuple[UUID, str], Repriced]
_Month: TypeAlias = tuple[UUID, str, str, PriceVersion]
"""Organization, currency, month as `YYYY-MM`, and the price version that counts."""


def overlaid(
    pinned: Mapping[Meter, PriceVersion], line: Sequence[str], drafts: Sequence[PriceDraft]
) -> dict[Meter, PriceVersion]:
    """The versions that would have been pinned, had the drafts been in force.

    `line` is the organization's book and those that it inherits from, nearest first. A draft takes the place of a price
    of the same meter in its own book or one further away; a nearer book still has the last word.
    """
    place = {book: distance for distance, book in enumerate(line)}
    found = dict(pinned)
    for draft in drafts:
        if draft.book not in place:
            continue
        there = found.get(draft.meter)
        # A pinned book that is not in the line any more is one that the organization has left.
        if there is None or place.get(there.book, len(line)) >= place[draft.book]:
            found[draft.meter] = _as_version(draft)
    return found


def moved(
    pinned: Mapping[Meter, PriceVersion], line: Sequence[str], in_force: Iterable[PriceVersion]
) -> dict[Meter, PriceVersion]:
    """The versions of a call whose prices are to come from another line of books: those that it has from there stay.

    `in_force` is what the model costs now, in all books; of it comes what is nearer, and what the call did not have.
    """
    place = {book: distance for distance, book in enumerate(line)}
    found = {meter: one for meter, one in pinned.items() if one.book in place}
    for version in in_force:
        there = found.get(version.meter)
        if version.book in place and (there is None or place[version.book] < place[there.book]):
            found[version.meter] = version
    return found


def latest(drafts: Sequence[PriceDraft]) -> dict[tuple[str, str, str, Meter], PriceDraft]:
    """Of several drafts of one thing, as a list with its history has them, the one that begins last (None is now)."""
    found: dict[tuple[str, str, str, Meter], PriceDraft] = {}
    for draft in drafts:
        key = (draft.book, draft.model, draft.currency, draft.meter)
        there = found.get(key)
        if there is not None and draft.effective_from == there.effective_from:
            raise InvalidRequest(
                f"Two drafts price {draft.meter} of {draft.model} in {draft.book} from one moment. Leave one out."
            )
        if there is None or (
            there.effective_from is not None
            and (draft.effective_from is None or draft.effective_from > there.effective_from)
        ):
            found[key] = draft
    return found


def _as_version(draft: PriceDraft) -> PriceVersion:
    return PriceVersion(
        id=_DRAFT_ID,
        book=draft.book,
        model=draft.model,
        meter=draft.meter,
        currency=draft.currency,
        price=draft.price,
        effective_from=_ALWAYS,
        scheme=draft.scheme,
        tiers=draft.tiers,
        package_size=draft.package_size,
        tiers_over=draft.tiers_over,
    )


def _same(before: Rates, after: Rates) -> bool:
    return replace(before, version_ids=()) == replace(after, version_ids=())


async def dry_run(
    connection: AsyncConnection,
    drafts: Sequence[PriceDraft],
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    batch_books: Mapping[str, str | None] | None = None,
) -> list[Repriced]:
    """What the calls admitted from `start` to `end` (exclusive) were charged, and would have been at the drafts.

    Each call keeps its tokens and all prices that no draft takes the place of; when the drafts begin does not matter.
    A call that no draft touches would be what it was. A touched one is priced in full, even where its charge was cut
    to its hold. A correction counts in the span of its call, with the difference of its tokens. Tiers over a month look
    at the quantities of the span only: choose whole months. Read day by day from one snapshot: memory grows with the
    number of organizations only. Sorted by organization. `connection` is new: its transaction has not begun.

    Calls of batches are priced by the book that their price book names for them. `batch_books` has books name another
    one, or none (by price book): what has a price there is then priced as it is in force there `now`.
    """
    if not timedelta(0) < end - start <= LONGEST_SPAN:
        raise InvalidRequest(
            "The span ends after it begins and is 400 days at most. Choose other instants.", param="to"
        )
    if start.year not in _YEARS or end.year not in _YEARS:
        raise InvalidRequest(
            f"The span must lie in the years {_YEARS.start} to {_YEARS.stop - 1}. Choose other instants.", param="from"
        )
    wanted = latest(drafts)
    connection = await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    if missing := await missing_models(connection, sorted({draft.model for draft in drafts})):
        raise InvalidRequest(f"There is no model {missing[0]!r}. Create it before its prices.", param="prices")
    versions = {one.id: one for one in await all_versions(connection)}
    parents, tried = await book_parents(connection), batch_books or {}
    _demand_books(tried, {*parents, *(draft.book for draft in drafts)})
    desk = _Desk(wanted, versions, parents, await named_books(connection), tried, now)
    sums: _Sums = {}
    months = _Months(desk)
    for bounds in _slices(start, end):
        await _add(connection, desk, bounds | {"start": start, "end": end}, sums, months)
    months.settle(sums)
    names = {row.id: row.name for row in await connection.execute(text(_NAMES), {"ids": [one for one, _ in sums]})}
    for one in sums.values():
        one.name = names[one.organization_id]
    return [sums[key] for key in sorted(sums)]


def _demand_books(tried: Mapping[str, str | None], known: set[str]) -> None:
    for book, named in tried.items():
        if missing := {book, named} - {None, *known}:
            raise InvalidRequest(f"There is no price book {missing.pop()!r}. Create it first.", param="batch_books")
        if book == named:
            raise InvalidRequest("A price book cannot name itself for batches. Name another.", param="batch_books")


def _slices(start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
    low, last = start - _CLOCK_SLACK, end + _CLOCK_SLACK
    while low < last:
        high = min(low + _SLICE, last)
        yield {"first": first_uuid7(low), "past": first_uuid7(high)}
        low = high


async def _add(connection: AsyncConnection, desk: _Desk, bounds: dict[str, Any], sums: _Sums, months: _Months) -> None:
    keys = [_Key.of(row) for row in await connection.execute(text(_SETS), bounds)]
    terms = [_term(key, rates) for key in keys if (rates := desk.rates(key)) is not None]
    for row in await connection.execute(text(_SUMS), bounds | {"terms": encode_json(terms)}):
        _count(sums, row, Sums(calls=row.calls, charged=int(row.charged), would_be=int(row.would_be)))
    async with connection.stream(text(_CORRECTIONS), bounds, execution_options={"yield_per": _ROWS_AT_ONCE}) as rows:
        async for row in rows:
            call, before = _corrected(row)
            rates = desk.rates(_Key.of(row))
            would_be = row.amount if rates is None else price(call, rates) - price(before, rates)
            _count(sums, row, Sums(charged=row.amount, would_be=would_be))
            months.add(row, call, 0)
            months.add(row, before, 0, sign=-1)
    if desk.looks_at_months:
        for row in await connection.execute(text(_QUANTITIES), bounds):
            used = TokenUsage(**{field.name: int(getattr(row, field.name)) for field in fields(TokenUsage)})
            months.add(row, used, row.calls)


def _corrected(row: Any) -> tuple[TokenUsage, TokenUsage]:
    """The tokens of a call as it was corrected, and as it was first charged."""
    call, difference = row.counted["call"], row.counted["difference"]
    return TokenUsage(**call), TokenUsage(**{meter: call[meter] - difference[meter] for meter in call})


def _count(sums: _Sums, row: Any, calls: Sums) -> None:
    one = sums.setdefault((row.organization_id, row.currency), Repriced(row.organization_id, row.currency))
    one.add(calls)
    if row.batch:
        one.batches.add(calls)


def _term(key: _Key, rates: Rates) -> dict[str, Any]:
    names = {"model": key.model, "currency": key.currency, "price_book": key.price_book, "batch": key.batch}
    return {**rate_json(rates), **names, "price_version_ids": key.price_version_ids}
