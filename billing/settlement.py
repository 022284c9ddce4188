"""The one pen of the ledger: credit granted, taken back and expired, charges booked from the stream and corrected.

Whoever moves an organization's money locks its balance row first, so one organization's postings never overlap.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import usage
from billing.booking import (
    UNBILLED,
    Booking,
    Grant,
    GrantScope,
    correction,
    correction_id,
    plan_booking,
    plan_bookings,
    plan_return,
    refusal,
)
from billing.failpoints import failpoint
from billing.hot.entries import decode_charge
from billing.hot.store import HotStore, StreamEntry
from billing.months import month_of
from billing.projection import project
from billing.shares import Shares, share_out
from billing.store import balances, charges, grants, ledger, shards
from billing.store.ledger import DeadEntry, Posting, UnsendableRow
from billing.store.shares import add_shares, rules_for
from billing.store.usage import add_days, add_hours
from models.call import Charge
from models.errors import Conflict, InvalidRequest, NotFound
from models.ids import uuid7
from models.ledger import Account, AccountKind, GrantKind, PostingKind, Transfer
from models.money import LARGEST_BALANCE_UNITS, Units
from models.tables import organization
from models.tables import shard as shard_row
from models.usage import Ending

EXPIRY_GRACE: Final = timedelta(seconds=60)
"""Time in which charges of calls that ended before a grant expired reach the book and may still draw on it."""

LATE: Final = "late"
"""Flag of a charge that was settled after its hold was gone."""

_EARLY: Final = timedelta(minutes=5)


# Accounts and credit -------------------------------------------------------------------------------------------------


async def open_accounts(connection: AsyncConnection, organization_id: UUID, currency: str) -> None:
    """Give an organization its accounts and its balance; the seller's accounts of the currency are made if missing."""
    await ledger.add_accounts(connection, organization_id, currency)


async def grant_credit(
    connection: AsyncConnection,
    *,
    organization_id: UUID,
    currency: str,
    kind: GrantKind,
    amount: Units,
    priority: int,
    effective_at: datetime,
    expires_at: datetime | None,
    scope: dict[str, Any] | None,
    idempotency_key: str,
    now: datetime,
    rollover_max: Units = Units(0),
) -> UUID:
    """Give an organization credit; the id of the grant, also when the same key gave it before.

    At its expiry up to `rollover_max` goes into a grant that follows. `scope` is None or limits the grant to `models`
    and `project_ids`. Raises `Conflict` for a key that granted something else, `InvalidRequest` for what cannot be
    granted, `NotFound` for an organization without accounts.
    """
    grant = Grant(uuid7(now), kind, amount, priority, effective_at, expires_at, _scope(scope), rollover_max)
    _refuse_impossible(grant, now)
    await _lock(connection, organization_id, currency)
    key = f"grant:{organization_id}:{idempotency_key}"
    terms = {"kind": kind.value, "amount": str(amount), "currency": currency}
    earlier = await ledger.find_posting(connection, key)
    if earlier is not None:
        if {name: earlier[name] for name in terms} != terms:
            raise Conflict("this idempotency key granted another credit before")
        return UUID(earlier["grant_id"])
    balance = await balances.balance_of(connection, organization_id)
    assert balance is not None, "its row is locked"
    if balance.posted + amount > LARGEST_BALANCE_UNITS:
        raise InvalidRequest("the balance would exceed the largest that can be kept", param="amount")

    posting_kind = PostingKind.GRANT if kind is GrantKind.PROMO else PostingKind.TOPUP
    source = AccountKind.PROMO_EXPENSE if kind is GrantKind.PROMO else AccountKind.CASH_CLEARING
    await grants.add_grant(connection, grant, organization_id=organization_id, currency=currency, created_at=now)
    await _post(
        connection,
        Posting(organization_id, key, posting_kind, now, {**terms, "grant_id": str(grant.id)}),
        Transfer(Account(None, source, currency), Account(organization_id, grant.account, currency), amount),
    )
    await balances.move_balances(connection, {organization_id: amount})
    return grant.id


async def void_grant(connection: AsyncConnection, grant_id: UUID, now: datetime) -> Units:
    """Take back what is left of a grant; the amount taken. Raises `NotFound` for an unknown or voided one."""
    found = await grants.find_grant(connection, grant_id)
    if found is None:
        raise NotFound("there is no such credit grant, or it is voided")
    organization_id, currency, _ = found
    await _lock(connection, organization_id)
    # Read again under the lock: a booking may have drawn on it meanwhile.
    found = await grants.find_grant(connection, grant_id)
    if found is None:
        raise NotFound("there is no such credit grant, or it is voided")
    grant = found[2]
    if grant.remaining:
        sink = AccountKind.PROMO_EXPENSE if grant.kind is GrantKind.PROMO else AccountKind.CASH_CLEARING
        kind = PostingKind.VOID_GRANT
        posting_id = await _post(
            connection,
            Posting(organization_id, f"{kind.value}:{grant_id}", kind, now, {"grant_id": str(grant_id)}),
            Transfer(Account(organization_id, grant.account, currency), Account(None, sink, currency), grant.remaining),
        )
        await grants.draw(connection, [grants.Draw(posting_id, grant_id, grant.remaining)])
        await balances.move_balances(connection, {organization_id: -grant.remaining})
    await grants.mark_voided(connection, grant_id, now)
    return grant.remaining


async def expire_grants(engine: AsyncEngine, now: datetime) -> frozenset[UUID]:
    """Book the end of grants that expired more than `EXPIRY_GRACE` ago; their organizations.

    What may roll over goes into a grant that begins when the old one ended, the rest to the seller.
    """
    async with engine.connect() as connection:
        expired = await grants.grants_past_expiry(connection, now - EXPIRY_GRACE)
    for organization_id, grant_id in expired:
        # A transaction each: holding one customer's money while waiting for another's would deadlock with a grant.
        async with engine.begin() as connection:
            await _expire(connection, organization_id, grant_id, now)
    return frozenset(organization_id for organization_id, _ in expired)


async def set_credit_limit(connection: AsyncConnection, organization_id: UUID, credit_limit: Units) -> None:
    """Change how far an organization may go below zero; its next projection carries the new limit.

    Raises `InvalidRequest` below zero or beyond the largest balance, `NotFound` for an organization without accounts.
    """
    if not 0 <= credit_limit <= LARGEST_BALANCE_UNITS:
        raise InvalidRequest("a credit limit is at least zero and at most the largest balance", param="credit_limit")
    await _lock(connection, organization_id)
    changed = await connection.execute(
        update(organization)
        .where(organization.c.id == organization_id, organization.c.credit_limit != credit_limit)
        .values(credit_limit=credit_limit)
    )
    if changed.rowcount:
        await balances.move_balances(connection, {organization_id: 0})


def _scope(scope: dict[str, Any] | None) -> GrantScope:
    try:
        return grants.scope_from(scope)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidRequest(str(error), param="scope") from error


def _refuse_impossible(grant: Grant, now: datetime) -> None:
    if not 0 < grant.remaining <= LARGEST_BALANCE_UNITS:
        raise InvalidRequest("a grant is above zero and at most the largest balance", param="amount")
    # Granted money is spendable at once in the hot store, which knows one balance and no dates.
    if grant.effective_at > now + _EARLY:
        raise InvalidRequest("a grant that begins later cannot be given yet", param="effective_at")
    if grant.expires_at is not None and grant.expires_at <= max(now, grant.effective_at):
        raise InvalidRequest("a grant must expire after it begins, and not in the past", param="expires_at")
    if not 0 <= grant.rollover_max <= grant.remaining:
        raise InvalidRequest("what rolls over is at most the grant, and not below zero", param="rollover_max")
    if grant.rollover_max and grant.expires_at is None:
        raise InvalidRequest("only a grant that expires can roll over: say when with expires_at", param="rollover_max")


async def _lock(connection: AsyncConnection, organization_id: UUID, currency: str | None = None) -> balances.Terms:
    terms = (await balances.lock_money(connection, [organization_id])).get(organization_id)
    if terms is None:
        raise NotFound("there is no such organization, or it has no accounts")
    if currency is not None and terms.currency != currency:
        raise InvalidRequest(f"the organization's currency is {terms.currency}", param="currency")
    return terms


async def _expire(connection: AsyncConnection, organization_id: UUID, grant_id: UUID, now: datetime) -> None:
    """Book the end of a grant: what rolls over stays the customer's, the rest is the seller's."""
    terms = await _lock(connection, organization_id)
    found = await grants.find_grant(connection, grant_id)
    if found is None or found[2].remaining == 0:
        # Voided or spent to the end since it was found.
        return
    grant = found[2]
    rolled = min(grant.remaining, grant.rollover_max)
    lost = Units(grant.remaining - rolled)
    following = _following(grant, Units(rolled), now) if rolled else None
    source = {"grant_id": str(grant_id)}
    if following is not None:
        source |= {"rolled_into": str(following.id), "rolled": str(rolled)}
    posting = Posting(organization_id, f"{PostingKind.EXPIRE.value}:{grant_id}", PostingKind.EXPIRE, now, source)
    sink = AccountKind.PROMO_EXPENSE if grant.kind is GrantKind.PROMO else AccountKind.BREAKAGE
    sides = Account(organization_id, grant.account, terms.currency), Account(None, sink, terms.currency)
    posting_id = await _post(connection, posting, *([Transfer(*sides, lost)] if lost else []))
    await grants.draw(connection, [grants.Draw(posting_id, grant_id, grant.remaining)])
    if following is not None:
        # No transfer: the money stays in the customer's account.
        await grants.add_grant(
            connection,
            following,
            organization_id=organization_id,
            currency=terms.currency,
            created_at=now,
            rolled_from=grant_id,
        )
    if lost:
        await balances.move_balances(connection, {organization_id: -lost})


async def post(connection: AsyncConnection, posting: Posting, transfers: Sequence[Transfer]) -> int:
    """Write a posting of an organization whose money is locked, and move its balance by what it gains or loses.

    Raises `IntegrityError` for a key that was used before, or a date in a closed period.
    """
    posting_id = await _post(connection, posting, *transfers)
    gained = sum(each.amount for each in transfers if each.credit.organization_id is not None)
    lost = sum(each.amount for each in transfers if each.debit.organization_id is not None)
    if gained != lost and posting.organization_id is not None:
        await balances.move_balances(connection, {posting.organization_id: gained - lost})
    return posting_id


def _following(grant: Grant, amount: Units, now: datetime) -> Grant:
    """The grant that an expired one rolls over into: as long, on the same terms, and it rolls over no more."""
    assert grant.expires_at is not None, "only what expires rolls over"
    return replace(
        grant,
        id=uuid7(now),
        remaining=amount,
        effective_at=grant.expires_at,
        expires_at=grant.expires_at + (grant.expires_at - grant.effective_at),
        rollover_max=Units(0),
    )


async def _post(connection: AsyncConnection, posting: Posting, *transfers: Transfer) -> int:
    [posting_id] = await ledger.add_postings(connection, [posting])
    if transfers:
        owners = [] if posting.organization_id is None else [posting.organization_id]
        ids = await ledger.account_ids(connection, owners, {transfer.debit.currency for transfer in transfers})
        await ledger.add_transfers(connection, [(posting_id, transfer) for transfer in transfers], ids)
    return posting_id


# Charges -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Booked:
    """What one look at a shard's stream came to; `position` is the last entry that is booked or set aside.

    `busy` where another worker has the shard; `stale` where Redis does not show the shard's epoch.
    """

    shard: int
    position: str = ""
    read: int = 0
    charges: int = 0
    dead: int = 0
    busy: bool = False
    stale: bool = False
    organization_ids: frozenset[UUID] = frozenset()


@dataclass(frozen=True, slots=True)
class _Item:
    entry: StreamEntry
    charge: Charge

    @property
    def owner(self) -> UUID:
        """The organization that is charged."""
        return self.charge.organization_id


@dataclass(slots=True)
class _Attempt:
    """What became of a batch: what each organization spent, and the items that the database refused."""

    spent: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    refused: list[tuple[_Item, str]] = field(default_factory=list)


async def book_shard(engine: AsyncEngine, hot: HotStore, shard: int, limit: int = 1_000) -> Booked:
    """Book up to `limit` entries of a shard's stream in one transaction, then project its balances and trim it.

    A program that dies anywhere in here leaves all of it booked or nothing. Raises `Unavailable` and SQLAlchemy's
    errors where Redis or Postgres cannot answer; it may then be called again.
    """
    async with engine.begin() as connection:
        lease = await shards.lease(connection, shard)
        if lease is None:
            return Booked(shard, busy=True)
        if await hot.epoch(shard) != lease.epoch:
            return Booked(shard, lease.position, stale=True)
        entries = await hot.read(shard, lease.position, limit)
        if not entries:
            return Booked(shard, lease.position)
        booked = await book_entries(connection, lease, entries)
        await shards.move(connection, lease, booked.position)
        changed = await balances.balances_of(connection, booked.organization_ids)
        failpoint("before_commit")
    failpoint("after_commit")
    await asyncio.gather(*(project(hot, balance) for balance in changed))
    failpoint("before_trim")
    await hot.trim(shard, booked.position)
    return booked


async def book_entries(
    connection: AsyncConnection, lease: shards.Lease, entries: Sequence[StreamEntry], *, totals: bool = True
) -> Booked:
    """Book stream entries in the transaction that holds the shard; what cannot be booked is set aside.

    A call that has a charge already is left out. With `totals` the running totals of the entries are taken over;
    without, they belong to an epoch that has ended.
    """
    items, dead = _decoded(lease.shard, entries)
    terms = await balances.lock_money(connection, {item.owner for item in items})
    currencies = {owner: each.currency for owner, each in terms.items()}
    reasons = {item.entry.id: refusal(item.charge, currencies.get(item.owner)) for item in items}
    fresh = await _not_booked(connection, [item for item in items if reasons[item.entry.id] is None])
    attempt = _Attempt()
    await _book(connection, lease, terms, fresh, attempt)
    dead += [_dead(lease.shard, item, reason) for item in items if (reason := reasons[item.entry.id]) is not None]
    dead += [_dead(lease.shard, item, reason) for item, reason in attempt.refused]
    await ledger.add_dead_entries(connection, dead)

    # Also of entries that were left out: the hot store has debited them, and must get that money back.
    running: dict[UUID, int] = {}
    for item in items:
        if totals and item.entry.settled is not None and item.owner in currencies:
            running[item.owner] = max(running.get(item.owner, 0), item.entry.settled)
    changed = attempt.spent.keys() | running.keys()
    if changed:
        await balances.move_balances(connection, {owner: -attempt.spent[owner] for owner in changed}, running)
    return Booked(
        lease.shard,
        position=entries[-1].id,
        read=len(entries),
        charges=len(fresh) - len(attempt.refused),
        dead=len(dead),
        organization_ids=frozenset(changed),
    )


def _decoded(shard: int, entries: Sequence[StreamEntry]) -> tuple[list[_Item], list[DeadEntry]]:
    items, dead = [], []
    for entry in entries:
        try:
            charge = decode_charge(entry.charge)
        except ValueError as error:
            dead.append(DeadEntry(shard, entry.id, entry.charge, str(error)))
        else:
            items.append(_Item(entry, replace(charge, flags=(*charge.flags, LATE)) if entry.late else charge))
    return items, dead


def _dead(shard: int, item: _Item, reason: str) -> DeadEntry:
    return DeadEntry(shard, item.entry.id, item.entry.charge, reason)


async def _not_booked(connection: AsyncConnection, items: Sequence[_Item]) -> list[_Item]:
    """The items whose call has no charge yet, each call once."""
    booked = await ledger.booked_calls(connection, [item.charge.call_id for item in items])
    first = {item.charge.call_id: item for item in reversed(items)}
    return [item for item in items if item.charge.call_id not in booked and first[item.charge.call_id] is item]


async def _book(
    connection: AsyncConnection,
    lease: shards.Lease,
    terms: Mapping[UUID, balances.Terms],
    items: Sequence[_Item],
    attempt: _Attempt,
) -> None:
    """Write items; where the database refuses one, halve them until it alone is left out."""
    if not items:
        return
    try:
        async with connection.begin_nested():
            batches = await _write(connection, lease, terms, items)
    except (DBAPIError, asyncpg.PostgresError, UnsendableRow) as error:
        if not _refuses_row(error):
            raise
        if len(items) == 1:
            attempt.refused.append((items[0], f"refused by the database: {error}"))
            return
        middle = len(items) // 2
        await _book(connection, lease, terms, items[:middle], attempt)
        await _book(connection, lease, terms, items[middle:], attempt)
    else:
        for batch in batches:
            attempt.spent[batch.owner] += batch.booking.total


@dataclass(frozen=True, slots=True)
class _Batch:
    """Charges that are booked with one posting."""

    posting: Posting
    booking: Booking
    terms: balances.Terms
    shares: Shares

    @property
    def owner(self) -> UUID:
        """The organization that is charged."""
        assert self.posting.organization_id is not None, "charges are somebody's"
        return self.posting.organization_id


async def _write(
    connection: AsyncConnection,
    lease: shards.Lease,
    terms: Mapping[UUID, balances.Terms],
    items: Sequence[_Item],
) -> list[_Batch]:
    """A posting for each organization and month of `items`, with its charges, draws and transfers."""
    by_owner: dict[UUID, dict[Any, list[_Item]]] = {}
    for item in items:
        by_owner.setdefault(item.owner, {}).setdefault(_months(item.charge, terms[item.owner]), []).append(item)
    available = await grants.spendable_grants(connection, by_owner)
    rules = await rules_for(connection, by_owner)
    batches = []
    for owner, months in by_owner.items():
        charged = [[item.charge for item in mine] for mine in months.values()]
        for mine, booking in zip(months.values(), plan_bookings(charged, available.get(owner, ())), strict=True):
            shares = share_out(rules, (item.charge for item in mine)) if rules else {}
            batches.append(_Batch(_posting(lease, mine, terms[owner]), booking, terms[owner], shares))
    await _enter(connection, batches)
    return batches


def _months(charge: Charge, terms: balances.Terms) -> tuple[date, date]:
    """The month that a charge is billed in, and the one of the books that it is posted in: no posting has two."""
    return _billing_month(charge, terms), _effective_at(charge, terms).date().replace(day=1)


def _billing_month(charge: Charge, terms: balances.Terms) -> date:
    return max(month_of(charge.ended_at, terms.timezone), terms.open_month)


def _effective_at(charge: Charge, terms: balances.Terms) -> datetime:
    """When the call ended, or, where that period is closed, the beginning of the open one."""
    return max(charge.ended_at, terms.closed_until).astimezone(UTC)


async def _enter(connection: AsyncConnection, batches: Sequence[_Batch]) -> None:
    """Write postings with their charges, draws, transfers, and the sums of usage."""
    owners = {batch.owner for batch in batches}
    accounts = await ledger.account_ids(connection, owners, {batch.terms.currency for batch in batches})
    posting_ids = await ledger.add_postings(connection, [batch.posting for batch in batches])
    posted = list(zip(posting_ids, batches, strict=True))

    await ledger.copy_charges(
        connection, ((posting_id, funded) for posting_id, batch in posted for funded in batch.booking.funded)
    )
    sums = [
        usage.Batch(batch.terms.timezone, batch.posting.billing_month, batch.booking.funded)
        for batch in batches
        if batch.posting.billing_month is not None
    ]
    hours, days = usage.sums_of(sums)
    await add_hours(connection, hours)
    await add_days(connection, days)
    await grants.draw(
        connection,
        [
            grants.Draw(posting_id, grant_id, amount)
            for posting_id, batch in posted
            for grant_id, amount in batch.booking.draws.items()
        ],
    )
    await add_shares(connection, [(posting_id, batch.shares) for posting_id, batch in posted])
    # Last, because every batch of a currency meets in the seller's revenue account and waits there.
    moved = [(posting_id, transfer) for posting_id, batch in posted for transfer in _transfers(batch)]
    await ledger.add_transfers(connection, moved, accounts)


def _transfers(batch: _Batch) -> list[Transfer]:
    """From the customer to revenue, and from there what others get of it."""
    owner, currency = batch.owner, batch.terms.currency
    revenue = Account(None, AccountKind.REVENUE, currency)
    transfers = [
        _moved(Account(owner, kind, currency), revenue, amount) for kind, amount in batch.booking.by_account.items()
    ]
    owed: dict[AccountKind, int] = {}
    for (role, _, _), amount in batch.shares.items():
        owed[role.account] = owed.get(role.account, 0) + amount
    return transfers + [
        _moved(revenue, Account(None, kind, currency), Units(amount)) for kind, amount in owed.items() if amount
    ]


def _moved(debit: Account, credit: Account, amount: Units) -> Transfer:
    """A transfer of an amount, or, below zero, of as much in the other direction."""
    return Transfer(debit, credit, amount) if amount > 0 else Transfer(credit, debit, Units(-amount))


def _posting(lease: shards.Lease, items: Sequence[_Item], terms: balances.Terms) -> Posting:
    first, last, owner = items[0].entry.id, items[-1].entry.id, items[0].owner
    return Posting(
        owner,
        # An entry's id is unique within an epoch only.
        f"charges:{lease.shard}:{lease.epoch}:{first}:{last}:{owner}",
        PostingKind.CHARGE_BATCH,
        max(_effective_at(item.charge, terms) for item in items),
        {"shard": lease.shard, "epoch": lease.epoch, "first": first, "last": last, "calls": len(items)},
        _billing_month(items[0].charge, terms),
    )


def _refuses_row(error: Exception) -> bool:
    """Whether the fault is in a row: SQLSTATE classes 22 and 23, or a value that cannot be sent. The rest may pass."""
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return isinstance(error, UnsendableRow) or (isinstance(state, str) and state[:2] in ("22", "23"))


# Corrections ---------------------------------------------------------------------------------------------------------


async def recovered_calls(connection: AsyncConnection, call_ids: Collection[UUID]) -> frozenset[UUID]:
    """Those of the calls that are booked as a sweeper ended them, whose gateway's journal may know better."""
    rows = await connection.execute(
        text("select call_id from charge where call_id = any(cast(:calls as uuid[])) and ending = 'recovered'"),
        {"calls": list(call_ids)},
    )
    return frozenset(rows.scalars())


async def correct(engine: AsyncEngine, hot: HotStore, journaled: Charge) -> Charge | None:
    """Book the difference between a recovered call's charge and the one that its gateway had journaled; once.

    Gives the correction, or None where there is nothing to correct, or it was corrected before, by whomever. The
    call was delivered, so a higher charge is owed even where the balance falls below its limit for it; it stays
    within the call's hold. Raises `NotFound` for a call that is not booked, `Conflict` where journal and book are not
    of one call or the database refuses the row, `Unavailable` and the database's errors where one cannot answer: it
    may then be called again.
    """
    try:
        async with engine.begin() as connection:
            corrected = await _correct(connection, journaled)
            balance = await balances.balance_of(connection, journaled.organization_id)
    except (DBAPIError, asyncpg.PostgresError, UnsendableRow) as error:
        if _refuses_row(error):
            raise Conflict(f"call {journaled.call_id}: its correction is refused by the database: {error}") from error
        raise
    if corrected is not None and balance is not None:
        # Should this fail, a worker projects it some seconds later.
        await project(hot, balance)
    return corrected


async def _correct(connection: AsyncConnection, journaled: Charge) -> Charge | None:
    owner, call_id = journaled.organization_id, journaled.call_id
    home = select(organization.c.shard).where(organization.c.id == owner).scalar_subquery()
    # In the order of a worker. An export waits for whoever has a shard, so that no posting appears below its watermark.
    await connection.execute(select(shard_row.c.id).where(shard_row.c.id == home).with_for_update())
    terms = await _lock(connection, owner)
    booked = await charges.find_charge(connection, call_id, charges.ChargeFilter(organization_id=owner))
    if booked is None:
        raise NotFound(f"call {call_id} is not booked")
    if booked.charge.ending is not Ending.RECOVERED:
        return None
    difference = correction(booked.charge, journaled)
    if difference is None or await ledger.booked_calls(connection, [correction_id(call_id)]):
        return None

    if difference.amount < 0:
        payers = {source: await _alive(connection, source) for source, _ in booked.funding if source != UNBILLED}
        alive = {source: grant for source, grant in payers.items() if grant is not None}
        booking = plan_return(difference, booked.funding, alive)
    else:
        available = await grants.spendable_grants(connection, [owner])
        booking = plan_booking([difference], available.get(owner, ()))
    posting = Posting(
        owner,
        f"correction:{call_id}",
        PostingKind.CHARGE_BATCH,
        _effective_at(difference, terms),
        {"corrects": str(call_id), "calls": 1},
        _billing_month(difference, terms),
    )
    shares = share_out(await rules_for(connection, [owner]), [difference])
    await _enter(connection, [_Batch(posting, booking, terms, shares)])
    await balances.move_balances(connection, {owner: -difference.amount})
    return difference


async def _alive(connection: AsyncConnection, grant_id: str) -> Grant | None:
    """A grant that may get money back: not voided, and its expiry, which is booked once, is not booked yet.

    One that is past its date has its money expire with the next look of a worker, as it would have without the call.
    """
    found = await grants.find_grant(connection, UUID(grant_id))
    if found is None or await ledger.find_posting(connection, f"{PostingKind.EXPIRE.value}:{grant_id}") is not None:
        return None
    return found[2]
