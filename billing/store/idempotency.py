"""Idempotency keys: a repeated request is answered from the table, in the same transaction as its effect was made.

The claim and the effect commit together, so there is never an effect without a stored answer, nor an answer without
its effect; and a request that failed leaves nothing, so that it can be repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.errors import Conflict
from models.tables import idempotency

LIFETIME: Final = timedelta(days=1)
"""How long an answer is kept."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request as it is told from others: who asks, under which key, and the SHA-256 of what is asked."""

    actor: str
    key: str
    request_digest: bytes


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What the first request of a claim was answered."""

    status: int
    response: dict[str, Any]


async def claim(connection: AsyncConnection, claim: Claim, now: datetime) -> StoredAnswer | None:
    """Claim a request for this transaction: None to go on, or the answer it had before.

    Raises `Conflict` while another transaction holds the claim, and for another request under the same key.
    """
    # A lock that is tried, not awaited: the second of two requests is told at once that the first is still running.
    if not (await connection.execute(select(func.pg_try_advisory_xact_lock(_lock_number(claim))))).scalar_one():
        raise Conflict("A request with this Idempotency-Key is still running. Repeat it in a moment.")
    await connection.execute(
        delete(idempotency).where(idempotency.c.actor == claim.actor, idempotency.c.created_at < now - LIFETIME)
    )
    row = (await connection.execute(select(idempotency).where(*_is(claim)))).one_or_none()
    if row is None:
        values = {"actor": claim.actor, "key": claim.key, "request_digest": claim.request_digest, "created_at": now}
        await connection.execute(insert(idempotency).values(values))
        return None
    if not hmac.compare_digest(row.request_digest, claim.request_digest):
        raise Conflict("This Idempotency-Key was used for another request. Use a new key for a new request.")
    assert row.response is not None, "a claim commits with its answer"
    return StoredAnswer(row.status, json.loads(row.response))


async def keep_answer(connection: AsyncConnection, claim: Claim, answer: StoredAnswer) -> None:
    """Store the answer of a claim that this transaction holds."""
    # As a text within the JSON, because jsonb orders fields anew and a repeated answer should be the same to the byte.
    values = {"status": answer.status, "response": json.dumps(answer.response)}
    await connection.execute(update(idempotency).where(*_is(claim)).values(values))


def _is(claim: Claim) -> list[Any]:
    return [idempotency.c.actor == claim.actor, idempotency.c.key == claim.key]


def _lock_number(claim: Claim) -> int:
    name = hashlib.sha256(f"{claim.actor}\0{claim.key}".encode()).digest()
    return int.from_bytes(name[:8], signed=True)
