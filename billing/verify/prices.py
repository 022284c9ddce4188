"""P6: every charge priced again, from its tokens and the price versions that were pinned with its hold.

The rates are put together by the catalog, as for a call; few sets of versions price very many charges. The
multiplication and the rounding are those of `billing.store.repricing`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.booking import added_tokens, correction_id
from billing.pricing import price
from billing.store.engine import encode_json
from billing.store.price_books import book_parents
from billing.store.prices import price_version_of
from billing.store.repricing import MILLI_UNITS, ONCE, RATE_COLUMNS, UNITS, rate_json
from billing.verify.report import Claim, Finding, Tally
from billing.verify.snapshot import Slice, Snapshot
from models.catalog import PriceVersion, Rates, line_of, rates_of
from models.tables import charge, price_version
from models.usage import TokenUsage

PRICES: Final = Claim(
    "prices",
    "P6",
    "Every charge is the price of its tokens, at most its hold, at prices in force when its call was admitted.",
    "charges",
)
CORRECTIONS: Final = Claim(
    "corrections",
    "P6",
    "Every correction is the one of its call, on its terms, and with its charge is the price of the call's tokens.",
    "corrections",
)

_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)
_ROWS_AT_ONCE: Final = 2_000

_TERMS: Final = """
    select distinct price_version_ids, model, currency
      from charge where corrects is null and posting_id between :low and :high
"""
_LATEST_NEWS: Final = "interval '1 hour'"
"""How long a gateway may go on selling at a price that ended: it hears of a new one within seconds, but not while it
cannot reach Postgres. What it knows of a price's beginning is never wrong."""

_PRICED: Final = f"""
    select format('call %s', call_id) as subject,
        case when term.input is null then format('price versions of %s in %s', charge.model, charge.currency)
          when is_untimely then format('price versions in force at %s', created_at)
          when is_impossible then 'cached and reasoning tokens that are part of the others'
          else least({UNITS}, hold)::text end as expected,
        case when term.input is null or is_untimely then format('versions %s', array_to_string(price_version_ids, ', '))
          when is_impossible then format('tokens %s, %s, %s, %s, %s, images %s, seconds %s', input_tokens,
            cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, images, audio_seconds)
          else amount::text end as found,
        term.input is null or is_untimely or is_impossible or amount <> least({UNITS}, hold) as wrong
      from charge
      left join jsonb_to_recordset(cast(:terms as jsonb)) as term (
        price_version_ids uuid[], model text, currency text, since timestamptz, until timestamptz, {RATE_COLUMNS}
      ) using (price_version_ids, model, currency)
      cross join lateral (
        select {MILLI_UNITS} as milli,
            created_at < since or created_at > until + {_LATEST_NEWS} as is_untimely,
            least(input_tokens - cached_tokens - cache_write_tokens, cached_tokens, cache_write_tokens,
              output_tokens - reasoning_tokens, reasoning_tokens, images, audio_seconds) < 0 as is_impossible
          {ONCE}
      ) priced
      where corrects is null and posting_id between :low and :high
"""  # noqa: S608 - made of constants


@dataclass(frozen=True, slots=True)
class Terms:
    """What a set of price versions makes: rates, and from when to when all of them were in force."""

    rates: Rates
    since: datetime
    until: datetime | None


class PriceBook:
    """Terms by the price versions that a charge names."""

    def __init__(self, versions: Sequence[PriceVersion], parents: Mapping[str, str | None]) -> None:
        self._parents = parents
        self._versions = {version.id: version for version in versions}
        self._terms: dict[tuple[str, str, tuple[UUID, ...]], Terms | None] = {}

    def terms(self, model: str, currency: str, version_ids: tuple[UUID, ...]) -> Terms | None:
        """The terms that these versions make, or None where they cannot price this model in this currency."""
        key = (model, currency, version_ids)
        if key not in self._terms:
            self._terms[key] = self._make(*key)
        return self._terms[key]

    def _make(self, model: str, currency: str, version_ids: tuple[UUID, ...]) -> Terms | None:
        versions = [self._versions[name] for name in version_ids if name in self._versions]
        is_one_set = (
            len(versions) == len(version_ids)
            and len({version.meter for version in versions}) == len(versions)
            and {(version.model, version.currency) for version in versions} == {(model, currency)}
            and self._is_one_line({version.book for version in versions})
        )
        if not is_one_set:
            return None
        rates = rates_of({version.meter: version for version in versions})
        ends = [version.effective_to for version in versions if version.effective_to is not None]
        since = max(version.effective_from for version in versions)
        return None if rates is None else Terms(rates, since, min(ends, default=None))

    def _is_one_line(self, books: Set[str]) -> bool:
        """Whether one of the books inherits from all the others."""
        return any(books <= set(line_of(book, self._parents)) for book in books)


async def price_book(connection: AsyncConnection) -> PriceBook:
    """All price versions."""
    rows = await connection.execute(select(price_version))
    versions = [price_version_of(row) for row in rows]
    always = [replace(version, effective_from=version.effective_from or _ALWAYS) for version in versions]
    return PriceBook(always, await book_parents(connection))


async def reprice(book: PriceBook, snapshot: Snapshot, part: Slice, tally: Tally) -> None:
    """Compare the charges of a slice with the prices of their tokens."""
    sets = [(row.model, row.currency, tuple(row.price_version_ids)) for row in await snapshot.rows(_TERMS, part)]
    terms = [_term_json(one, found) for one in sets if (found := book.terms(*one)) is not None]
    await snapshot.ask(tally, _PRICED, part, terms=encode_json(terms))


def _term_json(key: tuple[str, str, tuple[UUID, ...]], terms: Terms) -> dict[str, Any]:
    model, currency, version_ids = key
    return {
        **rate_json(terms.rates),
        "price_version_ids": version_ids,
        "model": model,
        "currency": currency,
        # A price that was always in force begins before any moment that Postgres can write.
        "since": None if terms.since == _ALWAYS else terms.since,
        "until": terms.until,
    }


# Corrections ---------------------------------------------------------------------------------------------------------

_ROW: Final = (
    *(charge.c.call_id, charge.c.organization_id, charge.c.model, charge.c.currency, charge.c.price_version_ids),
    *(charge.c.input_tokens, charge.c.cached_tokens, charge.c.cache_write_tokens, charge.c.output_tokens),
    *(charge.c.reasoning_tokens, charge.c.images, charge.c.audio_seconds),
    *(charge.c.amount, charge.c.hold, charge.c.corrects),
)
_SAME: Final = ("organization_id", "model", "currency", "price_version_ids", "hold")
"""What a correction has of the charge that it corrects."""


async def check_corrections(book: PriceBook, snapshot: Snapshot, tally: Tally) -> None:
    """Compare every correction, with the charge that it corrects, with the price of the call's tokens.

    Here and not in SQL: there are few, one for a call whose gateway died, and each says in JSON what it changes.
    """
    async for rows in _corrections(snapshot.connection):
        originals = await _originals(snapshot.connection, [row.corrects for row in rows])
        found = [_wrong_correction(book, row, originals.get(row.corrects)) for row in rows]
        findings = [
            Finding(f"correction {row.call_id}", *wrong) for row, wrong in zip(rows, found, strict=True) if wrong
        ]
        tally.add(len(rows), len(findings), findings)


async def _corrections(connection: AsyncConnection) -> AsyncIterator[list[Any]]:
    statement = select(*_ROW, charge.c.counted).where(charge.c.corrects.is_not(None))
    async with connection.stream(statement, execution_options={"yield_per": _ROWS_AT_ONCE}) as result:
        async for rows in result.partitions():
            yield list(rows)


async def _originals(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, Any]:
    rows = await connection.execute(select(*_ROW).where(charge.c.call_id.in_(ids)))
    return {row.call_id: row for row in rows}


def _wrong_correction(book: PriceBook, row: Any, original: Any | None) -> tuple[str, str] | None:
    """What a correction should be and is, where it is wrong."""
    if original is None or original.corrects is not None:
        return "a call that it corrects", f"call {row.corrects}, which is not there"
    if row.call_id != correction_id(row.corrects):
        return f"the id {correction_id(row.corrects)}", f"a second correction of call {row.corrects}"
    if different := [name for name in _SAME if getattr(row, name) != getattr(original, name)]:
        return f"the terms of call {row.corrects}", f"another {' and '.join(different)}"
    try:
        call, difference = TokenUsage(**row.counted["call"]), row.counted["difference"]
        before = asdict(_tokens(original))
        # A correction from before there were images and seconds names tokens only.
        missing = {"images": 0, "audio_seconds": 0}
        after = {meter: before[meter] + (missing | difference)[meter] for meter in before}
        if asdict(call) != after:
            return f"a difference that leads to {asdict(call)}", f"one that leads to {after}"
        if _tokens(row) != added_tokens(difference):
            return f"{added_tokens(difference)}, which its difference adds", str(_tokens(row))
    except (KeyError, TypeError, ValueError) as error:
        return "the tokens that it corrects", repr(error)
    terms = book.terms(original.model, original.currency, tuple(original.price_version_ids))
    if terms is None:
        return f"price versions of {original.model} in {original.currency}", str(original.price_version_ids)
    expected = min(price(call, terms.rates), original.hold) - original.amount
    return None if expected == row.amount else (str(expected), str(row.amount))


def _tokens(row: Any) -> TokenUsage:
    return TokenUsage(
        input=row.input_tokens,
        output=row.output_tokens,
        cached=row.cached_tokens,
        cache_write=row.cache_write_tokens,
        reasoning=row.reasoning_tokens,
        images=row.images,
        audio_seconds=row.audio_seconds,
    )
