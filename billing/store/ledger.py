"""The book's own rows, which are only added: accounts, postings, transfers, charges, and entries set aside."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import insert, or_, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.booking import FundedCharge
from billing.store.engine import encode_json
from models.ledger import ORGANIZATION_ACCOUNTS, Account, AccountKind, PostingKind, Transfer
from models.money import Units
from models.tables import account, charge, dead_entry, organization_balance, posting, transfer


@dataclass(frozen=True, slots=True)
class Posting:
    """Why money moved: the head of some transfers. The key makes booking it twice impossible.

    `organization_id` is None where only the seller's accounts are moved.
    """

    organization_id: UUID | None
    idempotency_key: str
    kind: PostingKind
    effective_at: datetime
    source: Mapping[str, Any] = field(default_factory=dict)
    billing_month: date | None = None
    """Of charges: the month of the organization that they are billed in."""
    reverses: int | None = None
    """The posting whose transfers this one takes back."""


class UnsendableRow(Exception):
    """A row with a value that its column's type cannot hold, found before it was sent."""


@dataclass(frozen=True, slots=True)
class DeadEntry:
    """A stream entry that cannot be booked, kept whole for someone to look at."""

    shard: int
    entry_id: str
    payload: bytes
    reason: str


_POST = text(
    """
    insert into posting (organization_id, idempotency_key, kind, effective_at, source, billing_month, reverses)
      select organization_id, idempotency_key, kind, effective_at, cast(source as jsonb), billing_month, reverses
        from unnest(
          cast(:organizations as uuid[]), cast(:keys as text[]), cast(:kinds as text[]),
          cast(:effective as timestamptz[]), cast(:sources as text[]), cast(:months as date[]),
          cast(:reverses as bigint[])
        ) as row (organization_id, idempotency_key, kind, effective_at, source, billing_month, reverses)
      returning id, idempotency_key
    """
)
# One statement for all, because the trigger that keeps the balances touches each account once a statement.
_TRANSFER = text(
    """
    insert into transfer (posting_id, seq, debit_account, credit_account, amount)
      select * from unnest(
        cast(:postings as bigint[]), cast(:seqs as smallint[]), cast(:debits as bigint[]), cast(:credits as bigint[]),
        cast(:amounts as numeric[])
      )
    """
)

_CHARGE_COLUMNS: Final = (
    *("call_id", "organization_id", "project_id", "api_key_id", "currency", "endpoint", "model", "deployment"),
    *("streamed", "ending", "usage_source", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens"),
    *("reasoning_tokens", "amount", "hold", "price_version_ids", "created_at", "ended_at", "posting_id", "funding"),
    *("end_user", "reported", "counted", "flags", "corrects", "version", "images", "audio_seconds", "batch"),
)


async def add_accounts(connection: AsyncConnection, organization_id: UUID, currency: str) -> None:
    """Make an organization's accounts, its balance row, and the seller's accounts of the currency where missing."""
    wanted: list[dict[str, object]] = [
        {"organization_id": organization_id, "kind": kind.value, "currency": currency} for kind in ORGANIZATION_ACCOUNTS
    ]
    await connection.execute(upsert(account).values(wanted).on_conflict_do_nothing())
    await add_seller_accounts(connection, currency)
    await connection.execute(
        upsert(organization_balance).values(organization_id=organization_id).on_conflict_do_nothing()
    )


async def add_seller_accounts(connection: AsyncConnection, currency: str) -> None:
    """Make the seller's accounts of a currency where missing."""
    wanted = [
        {"organization_id": None, "kind": kind.value, "currency": currency}
        for kind in AccountKind
        if kind not in ORGANIZATION_ACCOUNTS
    ]
    await connection.execute(upsert(account).values(wanted).on_conflict_do_nothing())


async def account_ids(
    connection: AsyncConnection, organization_ids: Collection[UUID], currencies: Collection[str]
) -> dict[Account, int]:
    """The ids of the accounts of these organizations, and of the seller's in these currencies."""
    rows = await connection.execute(
        select(account).where(
            account.c.currency.in_(currencies),
            or_(account.c.organization_id.in_(organization_ids), account.c.organization_id.is_(None)),
        )
    )
    return {Account(row.organization_id, AccountKind(row.kind), row.currency): row.id for row in rows}


async def add_postings(connection: AsyncConnection, postings: Sequence[Posting]) -> list[int]:
    """Insert postings; their ids in the same order. Raises `IntegrityError` for a key that was used before."""
    rows = await connection.execute(
        _POST,
        {
            "organizations": [row.organization_id for row in postings],
            "keys": [row.idempotency_key for row in postings],
            "kinds": [row.kind.value for row in postings],
            "effective": [row.effective_at for row in postings],
            "sources": [encode_json(row.source) for row in postings],
            "months": [row.billing_month for row in postings],
            "reverses": [row.reverses for row in postings],
        },
    )
    ids: dict[str, int] = {row.idempotency_key: row.id for row in rows}
    return [ids[row.idempotency_key] for row in postings]


async def find_posting(connection: AsyncConnection, idempotency_key: str) -> Mapping[str, Any] | None:
    """The `source` of the posting with this key, or None."""
    rows = await connection.execute(select(posting.c.source).where(posting.c.idempotency_key == idempotency_key))
    source: Mapping[str, Any] | None = rows.scalar_one_or_none()
    return source


async def transfers_of(connection: AsyncConnection, posting_id: int) -> list[Transfer]:
    """The transfers of a posting, in their order."""
    debit, credit = account.alias("debit"), account.alias("credit")
    rows = await connection.execute(
        select(transfer.c.amount, debit.c.organization_id, debit.c.kind, debit.c.currency, credit)
        .join(debit, debit.c.id == transfer.c.debit_account)
        .join(credit, credit.c.id == transfer.c.credit_account)
        .where(transfer.c.posting_id == posting_id)
        .order_by(transfer.c.seq)
    )
    return [
        Transfer(
            Account(row[1], AccountKind(row[2]), row[3]),
            Account(row[5], AccountKind(row[6]), row[7]),
            Units(int(row[0])),
        )
        for row in rows
    ]


async def add_transfers(
    connection: AsyncConnection, moved: Iterable[tuple[int, Transfer]], ids: Mapping[Account, int]
) -> None:
    """Insert the transfers of postings, by posting id. The database moves the balances of the accounts with them."""
    rows = list(moved)
    if not rows:
        return
    seen: dict[int, int] = {}
    seqs = []
    for posting_id, _ in rows:
        seqs.append(seen.setdefault(posting_id, 0))
        seen[posting_id] += 1
    await connection.execute(
        _TRANSFER,
        {
            "postings": [posting_id for posting_id, _ in rows],
            "seqs": seqs,
            "debits": [ids[each.debit] for _, each in rows],
            "credits": [ids[each.credit] for _, each in rows],
            "amounts": [each.amount for _, each in rows],
        },
    )


async def booked_calls(connection: AsyncConnection, call_ids: Collection[UUID]) -> frozenset[UUID]:
    """Those of the calls that have a charge already."""
    rows = await connection.execute(
        text("select call_id from charge where call_id = any(cast(:calls as uuid[]))"), {"calls": list(call_ids)}
    )
    return frozenset(rows.scalars())


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Of some calls: those without a charge, and those whose charge is a sweeper's."""

    missing: frozenset[UUID]
    recovered: frozenset[UUID]


async def doubtful_calls(connection: AsyncConnection, call_ids: Collection[UUID]) -> Doubtful:
    """Which of many calls are not booked as their gateway ended them: hardly any, so only these are answered."""
    rows = await connection.execute(
        text(
            "select asked.id, charge.call_id is null from unnest(cast(:calls as uuid[])) asked (id)"
            " left join charge on charge.call_id = asked.id where charge.call_id is null or charge.ending = 'recovered'"
        ),
        {"calls": list(call_ids)},
    )
    missing: set[UUID] = set()
    recovered: set[UUID] = set()
    for call_id, is_missing in rows:
        (missing if is_missing else recovered).add(call_id)
    return Doubtful(frozenset(missing), frozenset(recovered))


async def copy_charges(connection: AsyncConnection, charges: Iterable[tuple[int, FundedCharge]]) -> None:
    """Insert charges by posting id, with COPY.

    Raises asyncpg's errors as they are, because SQLAlchemy has no COPY, and `UnsendableRow` for a value that the
    driver cannot even encode.
    """
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    records = [_record(posting_id, funded) for posting_id, funded in charges]
    try:
        await raw.copy_records_to_table(charge.name, columns=_CHARGE_COLUMNS, records=records)
    except (ValueError, TypeError, OverflowError) as error:
        raise UnsendableRow(str(error)) from error


async def ensure_partitions(connection: AsyncConnection, now: datetime) -> list[str]:
    """Make the partitions of charges for the month before `now`, its own and the next three; the names of new ones."""
    made = await connection.scalar(text("select tollgate_ensure_partitions(:now)"), {"now": now})
    return list(made or ())


async def add_dead_entries(connection: AsyncConnection, entries: Sequence[DeadEntry]) -> None:
    """Set entries aside."""
    if entries:
        await connection.execute(
            insert(dead_entry),
            [
                {
                    "shard": entry.shard,
                    "entry_id": entry.entry_id,
                    "payload": entry.payload,
                    "reason": entry.reason[:500].replace("\0", ""),
                }
                for entry in entries
            ],
        )


def _record(posting_id: int, funded: FundedCharge) -> tuple[object, ...]:
    row = funded.charge
    return (
        *(row.call_id, row.organization_id, row.project_id, row.api_key_id, row.currency, row.endpoint, row.model),
        *(row.deployment, row.streamed, row.ending.value, row.usage_source.value, row.input_tokens, row.cached_tokens),
        *(row.cache_write_tokens, row.output_tokens, row.reasoning_tokens, row.amount, row.hold),
        *(list(row.price_version_ids), row.created_at, row.ended_at, posting_id, encode_json(funded.funding)),
        *(row.end_user, _json(row.reported), _json(row.counted), list(row.flags), row.corrects),
        *(row.version, row.images, row.audio_seconds, row.batch),
    )


def _json(value: object) -> str | None:
    return None if value is None else encode_json(value)
