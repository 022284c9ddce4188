"""`verify`: the promises of the ledger, checked on live data in one snapshot; each finding names the row that is wrong.

The checks of the book are queries that answer with what contradicts them. Prices are computed again in Python, by the
same function that charged. The hot store is compared last, again and again while traffic moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.booking import added_tokens, correction_id
from billing.hot.entries import decode_charge
from billing.hot.store import HotStore, OpenHold, StreamEntry
from billing.pricing import price
from billing.store.balances import Balance, balances_of_shard
from billing.store.shards import epochs, positions
from models.catalog import Catalog, Meter, PriceVersion, Rates
from models.money import MilliUnits
from models.tables import charge, price_version
from models.usage import TokenUsage

_FINDINGS: Final = 20
_ROWS_AT_ONCE: Final = 2_000
_HOT_ATTEMPTS: Final = 6
_HOT_PAUSE_SECONDS: Final = 0.2
_AT_ONCE: Final = 100
_SWEPT_WITHIN_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what contradicts it: at most twenty findings, each a sentence."""

    name: str
    sentence: str
    findings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the promise holds."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one run, and how many charges they covered."""

    checks: tuple[Check, ...]
    charges: int

    @property
    def ok(self) -> bool:
        """Whether every promise holds."""
        return all(check.ok for check in self.checks)


_QUERIES: Final = (
    (
        "account_balances",
        "Every account's balance is the sum of its transfers.",
        """
        with moved as (
          select account_id, sum(debit) as debits, sum(credit) as credits from (
            select debit_account as account_id, amount as debit, 0 as credit from transfer
            union all select credit_account, 0, amount from transfer
          ) side group by account_id
        )
        select format('account %s (%s): balance says %s debits and %s credits, its transfers %s and %s',
            account.id, account.kind, coalesce(kept.debits, 0), coalesce(kept.credits, 0),
            coalesce(moved.debits, 0), coalesce(moved.credits, 0))
          from account
          left join account_balance kept on kept.account_id = account.id
          left join moved on moved.account_id = account.id
          where (coalesce(kept.debits, 0), coalesce(kept.credits, 0))
            is distinct from (coalesce(moved.debits, 0), coalesce(moved.credits, 0))
        """,
    ),
    (
        "currencies",
        "No transfer changes the currency, and none leaves the accounts of its posting's organization and the seller.",
        """
        select format('transfer %s/%s goes from account %s to account %s', posting.id, seq, debit.id, credit.id)
          from transfer
          join posting on posting.id = transfer.posting_id
          join account debit on debit.id = debit_account
          join account credit on credit.id = credit_account
          where debit.currency <> credit.currency
            or coalesce(debit.organization_id, posting.organization_id) is distinct from posting.organization_id
            or coalesce(credit.organization_id, posting.organization_id) is distinct from posting.organization_id
        """,
    ),
    (
        "charges_posted",
        "The transfers of every posting of charges are the sum of its charges, and every charge is in one.",
        """
        with charged as (
          select posting_id, organization_id, sum(amount) as amount, count(*) as calls from charge group by 1, 2
        ), moved as (
          select posting_id, sum(case when debit.kind = 'revenue' then -amount else amount end) as amount
            from transfer join account debit on debit.id = debit_account
            group by posting_id
        ), batch as (
          select * from posting where kind = 'charge_batch'
        )
        select format('posting %s: %s charges sum to %s, its transfers to %s',
            coalesce(batch.id, charged.posting_id), coalesce(charged.calls, 0), coalesce(charged.amount, 0),
            coalesce(moved.amount, 0))
          from batch
          full join charged on charged.posting_id = batch.id and charged.organization_id = batch.organization_id
          left join moved on moved.posting_id = batch.id
          where batch.id is null or charged.posting_id is null
            or coalesce(charged.amount, 0) <> coalesce(moved.amount, 0)
            or charged.calls <> (batch.source ->> 'calls')::bigint
        """,
    ),
    (
        "funding",
        "The sources that paid for a charge sum to its amount.",
        """
        select format('call %s: amount %s, funding %s', call_id, amount, funding)
          from charge
          where amount <> (select coalesce(sum((source ->> 1)::numeric), 0) from jsonb_array_elements(funding) source)
        """,
    ),
    (
        "draws",
        "What the charges of a posting took from a grant or left unbilled, or gave back, is what the posting moved.",
        """
        with funded as (
          select posting_id, source ->> 0 as source, sum((source ->> 1)::numeric) as amount
            from charge, jsonb_array_elements(funding) source group by 1, 2
        ), drawn as (
          select grant_draw.posting_id, grant_id::text as source, grant_draw.amount
            from grant_draw join posting on posting.id = grant_draw.posting_id and posting.kind = 'charge_batch'
          union all
          select transfer.posting_id, 'unbilled',
              sum(case when account.id = transfer.debit_account then transfer.amount else -transfer.amount end)
            from transfer
            join account on account.id in (transfer.debit_account, transfer.credit_account)
              and account.kind = 'unbilled'
            join posting on posting.id = transfer.posting_id and posting.kind = 'charge_batch'
            group by 1
        )
        select format('posting %s, source %s: charges took %s, the book says %s',
            posting_id, source, coalesce(funded.amount, 0), coalesce(drawn.amount, 0))
          from funded full join drawn using (posting_id, source)
          where funded.amount is distinct from drawn.amount
        """,
    ),
    (
        "grants",
        "What is left of every grant is its amount less what was drawn, and nothing is left of a voided one.",
        """
        select format('grant %s: %s left of %s, drawn %s', id, remaining, credit_grant.amount, coalesce(drawn, 0))
          from credit_grant
          left join (select grant_id, sum(amount) as drawn from grant_draw group by 1) draws on draws.grant_id = id
          where remaining <> credit_grant.amount - coalesce(drawn, 0) or (voided_at is not null and remaining <> 0)
        """,
    ),
    (
        "balances",
        "Every organization's balance is what is left of its grants less what it owes, by grants and by accounts.",
        """
        with owned as (
          select organization_id,
              sum(credits - debits) filter (where kind = 'customer_prepaid') as prepaid,
              sum(credits - debits) filter (where kind = 'customer_promo') as promo,
              sum(debits - credits) filter (where kind in ('unbilled', 'receivable')) as owed
            from account join account_balance on account_id = account.id
            where organization_id is not null group by 1
        ), left_over as (
          select organization_id,
              coalesce(sum(remaining) filter (where kind <> 'promo'), 0) as prepaid,
              coalesce(sum(remaining) filter (where kind = 'promo'), 0) as promo
            from credit_grant group by 1
        )
        select format('organization %s: balance %s; grants %s prepaid, %s promotional; accounts %s, %s, owing %s',
            organization.id, posted, coalesce(left_over.prepaid, 0), coalesce(left_over.promo, 0),
            coalesce(owned.prepaid, 0), coalesce(owned.promo, 0), coalesce(owed, 0))
          from organization_balance
          join organization on organization.id = organization_balance.organization_id
          left join owned on owned.organization_id = organization.id
          left join left_over on left_over.organization_id = organization.id
          where posted <> coalesce(owned.prepaid, 0) + coalesce(owned.promo, 0) - coalesce(owed, 0)
            or coalesce(owned.prepaid, 0) <> coalesce(left_over.prepaid, 0)
            or coalesce(owned.promo, 0) <> coalesce(left_over.promo, 0)
        """,
    ),
    (
        "within_hold",
        "No charge is negative or above its hold.",
        """
        select format('call %s: amount %s, hold %s', call_id, amount, hold)
          from charge where corrects is null and (amount < 0 or amount > hold)
        """,
    ),
    (
        "charged_once",
        "No call is charged twice.",
        "select format('call %s: %s charges', call_id, count(*)) from charge group by call_id having count(*) > 1",
    ),
    (
        "dead_entries",
        "No charge waits for a person to look at it.",
        """
        select format('entry %s of shard %s: %s', entry_id, shard, reason) from dead_entry where resolved_at is null
        """,
    ),
)
"""Name, sentence, and the query for contradictions, one text a row."""


async def verify(engine: AsyncEngine, hot: HotStore | None) -> Report:
    """Check every promise; without `hot` those of the book alone.

    Raises SQLAlchemy's errors and `Unavailable` where Postgres or Redis cannot answer.
    """
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        await connection.execute(text("set local statement_timeout = '15min'"))
        checks = [await _ask(connection, *query) for query in _QUERIES]
        prices, charges = await _prices(connection)
    checks.append(prices)
    if hot is not None:
        checks.append(await _hot_store(engine, hot))
        checks.append(await _hold_owners(engine, hot))
    return Report(tuple(checks), charges)


async def _ask(connection: AsyncConnection, name: str, sentence: str, query: str) -> Check:
    rows = await connection.execute(text(f"{query} limit {_FINDINGS}"))
    return Check(name, sentence, tuple(rows.scalars()))


# Prices --------------------------------------------------------------------------------------------------------------


async def _prices(connection: AsyncConnection) -> tuple[Check, int]:
    """Every charge again from its tokens and its pinned prices; also how many charges there are."""
    check = Check(
        "prices",
        "Every charge, with its correction where it has one, is the price of its tokens at its own price versions, at"
        " most its hold.",
    )
    book = _PriceBook({row.id: _version(row) for row in await connection.execute(_versions())})
    findings: list[str] = []
    corrections: list[UUID] = []
    count = 0
    async with connection.stream(select(*_PRICED), execution_options={"yield_per": _ROWS_AT_ONCE}) as rows:
        async for row in rows:
            count += 1
            if row.corrects is not None:
                corrections.append(row.call_id)
            elif (finding := _mispriced(book, row)) and len(findings) < _FINDINGS:
                findings.append(finding)
    for at in range(0, len(corrections), _ROWS_AT_ONCE):
        findings += await _wrong_corrections(connection, book, corrections[at : at + _ROWS_AT_ONCE])
    return replace(check, findings=tuple(findings[:_FINDINGS])), count


_PRICED: Final = (
    *(charge.c.call_id, charge.c.organization_id, charge.c.model, charge.c.currency, charge.c.price_version_ids),
    *(charge.c.input_tokens, charge.c.cached_tokens, charge.c.cache_write_tokens, charge.c.output_tokens),
    *(charge.c.reasoning_tokens, charge.c.amount, charge.c.hold, charge.c.corrects),
)
_SAME: Final = ("organization_id", "model", "currency", "price_version_ids", "hold")
"""What a correction has of the charge that it corrects."""


def _mispriced(book: _PriceBook, row: Any) -> str | None:
    try:
        return _mismatch(book, row, _tokens(row), row.amount)
    except ValueError as error:
        return f"call {row.call_id}: {error}"


def _mismatch(book: _PriceBook, row: Any, usage: TokenUsage, amount: int) -> str | None:
    """What is wrong where these tokens are said to have cost this amount, on the terms of the row."""
    rates = book.rates(row.model, row.currency, tuple(row.price_version_ids))
    if rates is None:
        return f"call {row.call_id}: its price versions are not those of {row.model} in {row.currency}"
    expected = min(price(usage, rates), row.hold)
    return None if expected == amount else f"call {row.call_id}: charged {amount}, its tokens cost {expected}"


def _tokens(row: Any) -> TokenUsage:
    return TokenUsage(
        input=row.input_tokens,
        output=row.output_tokens,
        cached=row.cached_tokens,
        cache_write=row.cache_write_tokens,
        reasoning=row.reasoning_tokens,
    )


async def _wrong_corrections(connection: AsyncConnection, book: _PriceBook, ids: Collection[UUID]) -> list[str]:
    """Findings on corrections: each with the charge that it corrects must cost what the tokens of the call cost."""
    rows = (await connection.execute(select(*_PRICED, charge.c.counted).where(charge.c.call_id.in_(ids)))).all()
    wanted = select(*_PRICED).where(charge.c.call_id.in_([row.corrects for row in rows]))
    originals = {row.call_id: row for row in await connection.execute(wanted)}
    return [
        f"correction {row.call_id}: {finding}"
        for row in rows
        if (finding := _wrong_correction(book, row, originals.get(row.corrects)))
    ]


def _wrong_correction(book: _PriceBook, row: Any, original: Any | None) -> str | None:
    if original is None or original.corrects is not None:
        return f"there is no call {row.corrects} that it could correct"
    if row.call_id != correction_id(row.corrects) or any(getattr(row, n) != getattr(original, n) for n in _SAME):
        return f"it is not the one correction of call {row.corrects} on that call's terms"
    try:
        call, difference = TokenUsage(**row.counted["call"]), row.counted["difference"]
        before = asdict(_tokens(original))
        if asdict(call) != {meter: before[meter] + difference[meter] for meter in before}:
            return "its difference does not lead to the tokens of the call"
        if _tokens(row) != added_tokens(difference):
            return "its tokens are not what its difference adds"
    except (KeyError, TypeError, ValueError) as error:
        return f"it does not say which tokens it corrects: {error!r}"
    return _mismatch(book, original, call, original.amount + row.amount)


class _PriceBook:
    """Rates by the price versions that a charge names; few sets of versions price very many charges."""

    def __init__(self, versions: dict[UUID, PriceVersion]) -> None:
        self._versions = versions
        self._rates: dict[tuple[str, str, tuple[UUID, ...]], Rates | None] = {}

    def rates(self, model: str, currency: str, version_ids: tuple[UUID, ...]) -> Rates | None:
        """The rates that these versions make, or None where they are not prices of this model and currency."""
        key = (model, currency, version_ids)
        if key not in self._rates:
            self._rates[key] = self._make(*key)
        return self._rates[key]

    def _make(self, model: str, currency: str, version_ids: tuple[UUID, ...]) -> Rates | None:
        versions = tuple(self._versions[name] for name in version_ids if name in self._versions)
        if len(versions) != len(version_ids):
            return None
        if any(version.model != model or version.currency != currency for version in versions):
            return None
        # The catalog knows what stands in for a meter without a price; these versions were in force together once.
        always = tuple(replace(version, effective_from=_ALWAYS, effective_to=None) for version in versions)
        return Catalog(prices={("", currency, model): always}).rates("", currency, model, _ALWAYS)


_ALWAYS: Final = datetime.min.replace(tzinfo=UTC)


def _versions() -> Any:
    return select(price_version, func.lower(price_version.c.effective).label("effective_from"))


def _version(row: Row[Any]) -> PriceVersion:
    return PriceVersion(
        id=row.id,
        book=row.book,
        model=row.model_id,
        meter=Meter(row.meter),
        currency=row.currency,
        price=MilliUnits(row.price),
        effective_from=row.effective_from or _ALWAYS,
    )


# The hot store -------------------------------------------------------------------------------------------------------

_Where = tuple[int, UUID | None]
"""A shard and an organization of it; None is the shard itself."""


async def _hot_store(engine: AsyncEngine, hot: HotStore) -> Check:
    check = Check(
        "hot_store",
        "Redis shows every shard's epoch; its balances are the book's less what is not booked yet, and what is held"
        " is the sum of the open holds.",
    )
    async with engine.connect() as connection:
        shards = await epochs(connection)
    lasting: dict[_Where, str] | None = None
    for attempt in range(_HOT_ATTEMPTS):
        if attempt:
            await asyncio.sleep(_HOT_PAUSE_SECONDS)
        found: dict[_Where, str] = {}
        for shard in sorted(shards if lasting is None else {shard for shard, _ in lasting}):
            found |= await _shard_findings(engine, hot, shard, lasting)
        # A difference that traffic makes is gone at the next look; what is wrong is wrong at every one.
        lasting = found if lasting is None else {where: found[where] for where in lasting if where in found}
        if not lasting:
            break
    return replace(check, findings=tuple((lasting or {}).values())[:_FINDINGS])


async def _shard_findings(
    engine: AsyncEngine, hot: HotStore, shard: int, only: Collection[_Where] | None
) -> dict[_Where, str]:
    """Findings of one look at a shard, for `only` these where given."""
    async with engine.connect() as connection:
        balances = await balances_of_shard(connection, shard)
        position = (await positions(connection))[shard]
        epoch = (await epochs(connection))[shard]
    shown = await hot.epoch(shard)
    if shown != epoch:
        return {(shard, None): f"shard {shard}: Redis shows epoch {shown}, the book {epoch}"}
    waiting = await _waiting(hot, shard, position)
    found: dict[_Where, str] = {}
    for balance in balances:
        where = (shard, balance.organization_id)
        if only is None or where in only:
            finding = await _difference(hot, balance, waiting.get(balance.organization_id, 0))
            if finding is not None:
                found[where] = finding
    return found


async def _waiting(hot: HotStore, shard: int, position: str) -> dict[UUID, int]:
    """Sums of the charges on the stream after `position`, by organization."""
    sums: dict[UUID, int] = {}
    while entries := await hot.read(shard, position, _ROWS_AT_ONCE):
        for entry in entries:
            owner, amount = _owner_and_amount(entry)
            if owner is not None and entry.settled is not None:
                sums[owner] = sums.get(owner, 0) + amount
        position = entries[-1].id
    return sums


def _owner_and_amount(entry: StreamEntry) -> tuple[UUID | None, int]:
    try:
        decoded = decode_charge(entry.charge)
    except ValueError:
        return None, 0
    return decoded.organization_id, decoded.amount


async def _difference(hot: HotStore, balance: Balance, waiting: int) -> str | None:
    there = await hot.balance(balance.shard, balance.organization_id)
    name = f"organization {balance.organization_id}"
    if there is None:
        return f"{name}: Redis has no balance"
    expected = balance.posted - waiting
    if there.balance != expected:
        return f"{name}: Redis has balance {there.balance}, the book less what waits is {expected}"
    if there.settled - balance.booked_total != waiting:
        return f"{name}: Redis settled {there.settled}, booked are {balance.booked_total} and {waiting} wait"
    if there.credit_limit != balance.credit_limit:
        return f"{name}: Redis has credit limit {there.credit_limit}, the book {balance.credit_limit}"
    open_holds = await hot.open_holds(balance.shard, balance.organization_id)
    held = sum(hold.hold.request.amount for hold in open_holds)
    return None if there.held == held else f"{name}: {there.held} held, the open holds sum to {held}"


async def _hold_owners(engine: AsyncEngine, hot: HotStore) -> Check:
    """Holds that no sweeper ended: no worker runs, or the sweeper does not see them."""
    check = Check("hold_owners", f"No hold outlives its gateway by more than {_SWEPT_WITHIN_SECONDS} seconds.")
    findings: list[str] = []
    async with engine.connect() as connection:
        shards = {shard: await balances_of_shard(connection, shard) for shard in await epochs(connection)}
    for shard, balances in shards.items():
        owners = [balance.organization_id for balance in balances]
        for at in range(0, len(owners), _AT_ONCE):
            some = owners[at : at + _AT_ONCE]
            holds = [
                hold for held in await asyncio.gather(*(hot.open_holds(shard, one) for one in some)) for hold in held
            ]
            if holds:
                # Read after the holds, so that none of them is younger than what is known of its gateway.
                signs, now_ms = await hot.signs_of_life(shard), await hot.clock_ms()
                findings += filter(None, (_left_behind(hold, signs, now_ms) for hold in holds))
    return replace(check, findings=tuple(findings[:_FINDINGS]))


def _left_behind(hold: OpenHold, signs: Mapping[str, int], now_ms: int) -> str | None:
    """What is wrong with an open hold whose gateway is dead; one without an instance has nobody who could be."""
    if not hold.instance:
        return None
    silent_seconds = (now_ms - signs.get(hold.instance, hold.placed_at_ms)) // 1_000
    if silent_seconds <= _SWEPT_WITHIN_SECONDS:
        return None
    origin = hold.hold.request.origin
    return (
        f"call {origin.call_id} of organization {origin.organization_id}: {hold.hold.request.amount} held for the"
        f" gateway {hold.instance}, silent for {silent_seconds} seconds"
    )
