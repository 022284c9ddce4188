"""The chain of seals over postings: what is sealed of each, byte by byte, as docs/ledger.md describes format 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import fetch_optional
from models.tables import posting_seal

FORMAT: Final = 1
GENESIS: Final = bytes(32)
"""What the first seal follows."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A link of the chain."""

    seq: int
    posting_id: int
    previous: bytes
    digest: bytes
    format: int = FORMAT


def _field(expression: str) -> str:
    """A value as `<bytes>:<text>,`, so that no text can look like the end of another; null is `~`."""
    return f"coalesce(octet_length({expression}) || ':' || {expression} || ',', '~')"


def _fields(*expressions: str) -> str:
    return " || ".join(_field(expression) for expression in expressions)


def _micros(moment: str) -> str:
    return f"(extract(epoch from {moment}) * 1000000)::bigint::text"


_POSTING = _fields(
    "posting.id::text",
    "posting.organization_id::text",
    "posting.idempotency_key",
    "posting.kind",
    _micros("posting.effective_at"),
    _micros("posting.booked_at"),
    "posting.reverses::text",
    "posting.source::text",
    "to_char(posting.billing_month, 'YYYY-MM-DD')",
    "coalesce(moved.transfers, 0)::text",
)
_TRANSFER = _fields(
    "transfer.seq::text",
    "debit.organization_id::text",
    "debit.kind",
    "debit.currency",
    "credit.organization_id::text",
    "credit.kind",
    "credit.currency",
    "transfer.amount::text",
)

CONTENT_1: Final = f"""
    select posting.id as posting_id, {_POSTING} || coalesce(moved.content, '') as content
      from posting
      left join (
        select transfer.posting_id, count(*) as transfers,
            string_agg({_TRANSFER}, '' order by transfer.seq) as content
          from transfer
          join account debit on debit.id = transfer.debit_account
          join account credit on credit.id = transfer.credit_account
          where transfer.posting_id between :low and :high
          group by transfer.posting_id
      ) moved on moved.posting_id = posting.id
      where posting.id between :low and :high
"""  # noqa: S608 - made of constants
"""`posting_id` and `content` of the postings from :low to :high: what format 1 seals, as text in UTF-8."""

_UNSEALED = text(f"select posting_id, content from ({CONTENT_1}) sealed order by posting_id")  # noqa: S608
_RANGE = text(
    "select max(id) from (select id from posting where id > :after and id <= :until order by id limit :count) next"
)


async def head(connection: AsyncConnection) -> Seal | None:
    """The last seal."""
    row = await fetch_optional(connection, select(posting_seal).order_by(posting_seal.c.seq.desc()).limit(1))
    return None if row is None else Seal(row.seq, row.posting_id, row.previous, row.digest, row.format)


async def take_pen(connection: AsyncConnection) -> bool:
    """Whether this transaction is the one that seals; False where another does now."""
    return bool((await connection.execute(text("select pg_try_advisory_xact_lock(7346017, 1)"))).scalar_one())


async def unsealed(connection: AsyncConnection, after: int, until: int, count: int) -> list[tuple[int, str]]:
    """The next postings after one and up to another, with what is to be sealed of each."""
    last = (await connection.execute(_RANGE, {"after": after, "until": until, "count": count})).scalar_one()
    if last is None:
        return []
    rows = await connection.execute(_UNSEALED, {"low": after + 1, "high": last})
    return [(row.posting_id, row.content) for row in rows]


async def keep(connection: AsyncConnection, seals: Sequence[Seal]) -> None:
    """Add seals to the end of the chain."""
    await connection.execute(
        insert(posting_seal),
        [
            {
                "seq": seal.seq,
                "posting_id": seal.posting_id,
                "format": seal.format,
                "previous": seal.previous,
                "digest": seal.digest,
            }
            for seal in seals
        ],
    )
