"""Calls that were sent with an Idempotency-Key, and what they were answered; one row a key and project.

A claim is made before the call is admitted and stays when the process dies, so that a repeated request never becomes a
second charge: it is told where the receipt of the first is.
"""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from models.call import CallAnswer, CallClaim
from models.errors import Conflict
from models.tables import call_answer, charge

LIFETIME: Final = timedelta(days=1)
"""How long an answer is kept."""

_RUNS: Final = "A call with this Idempotency-Key is still running. Repeat it in a moment."


async def claim_call(
    connection: AsyncConnection, claim: CallClaim, now: datetime, longest_call: timedelta
) -> CallAnswer | None:
    """Claim a key for a call: None to go on, or the answer that the first call of this key had.

    Raises `Conflict` where that one still runs, was another request, or was charged without its answer being kept.
    """
    old = call_answer.c.created_at < now - LIFETIME
    values = {
        "project_id": claim.project_id,
        "key_digest": claim.key_digest,
        "request_digest": claim.request_digest,
        "call_id": claim.call_id,
        "created_at": now,
        **dict.fromkeys(("ended_at", "status", "content_type", "body")),
    }
    keys = ("project_id", "key_digest")
    fresh = {name: value for name, value in values.items() if name not in keys}
    statement = insert(call_answer).values(values).on_conflict_do_update(index_elements=keys, set_=fresh, where=old)
    if (await connection.execute(statement.returning(call_answer.c.call_id))).one_or_none() is not None:
        return None
    row = (await connection.execute(select(call_answer).where(*_is(claim)).with_for_update())).one_or_none()
    if row is None:
        # Given up this very moment.
        raise Conflict(_RUNS)
    is_over = row.ended_at is not None or row.created_at <= now - longest_call
    if is_over and row.ended_at is None and not await _is_charged(connection, row.call_id):
        # Its process died before it was charged for anything.
        await connection.execute(update(call_answer).where(*_is(claim)).values(fresh))
        return None
    if not hmac.compare_digest(row.request_digest, claim.request_digest):
        raise Conflict("This Idempotency-Key was used for another request. Use a new key for a new request.")
    if not is_over:
        raise Conflict(_RUNS)
    if row.body is None:
        raise Conflict(
            "The call with this Idempotency-Key has ended and was charged, but its answer was not kept."
            f" Its receipt is at /v1/calls/{row.call_id}."
        )
    return CallAnswer(row.call_id, row.status, row.content_type, row.body)


async def keep_call_answer(connection: AsyncConnection, claim: CallClaim, answer: CallAnswer, now: datetime) -> None:
    """Keep what a claimed call was answered."""
    values = {
        "ended_at": now,
        "status": answer.status,
        "content_type": answer.content_type,
        "body": answer.body,
    }
    await connection.execute(update(call_answer).where(*_is(claim), _of(claim)).values(values))


async def release_call(connection: AsyncConnection, claim: CallClaim) -> None:
    """Give a claim up whose call was not charged: the request may be repeated."""
    await connection.execute(delete(call_answer).where(*_is(claim), _of(claim)))


async def drop_old_answers(connection: AsyncConnection, now: datetime) -> None:
    """Forget what is older than it has to be."""
    await connection.execute(delete(call_answer).where(call_answer.c.created_at < now - LIFETIME))


async def _is_charged(connection: AsyncConnection, call_id: UUID) -> bool:
    charged = select(charge.c.call_id).where(charge.c.call_id == call_id)
    return (await connection.execute(charged)).one_or_none() is not None


def _is(claim: CallClaim) -> tuple[Any, Any]:
    return call_answer.c.project_id == claim.project_id, call_answer.c.key_digest == claim.key_digest


def _of(claim: CallClaim) -> Any:
    return call_answer.c.call_id == claim.call_id
