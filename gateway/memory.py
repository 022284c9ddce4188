"""What the call path remembers in Postgres, for the few calls that ask for it: answers by key, and stored responses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing.store import call_answers, responses
from billing.store.responses import StoredResponse
from gateway.clock import Clock
from models.call import CallAnswer, CallClaim, CallOrigin
from models.errors import NotFound, Unavailable
from models.ids import RESPONSE_PREFIX

PATIENCE_SECONDS: Final = 2.0
NO_RESPONSE: Final = "There is no stored response of this id. Only answers to requests with store: true are kept."
_AWAY: Final = "What is kept of calls cannot be reached now. Nothing was charged; try again."
_log = structlog.get_logger("tollgate.calls")


class Memory:
    """Remembers calls; where Postgres is away it raises `Unavailable` before a call, and forgets after it."""

    def __init__(self, engine: AsyncEngine, clock: Clock, longest_call_seconds: float) -> None:
        self._engine = engine
        self._clock = clock
        # A minute for the sweeper to charge what a dead process has left.
        self._longest_call = timedelta(seconds=longest_call_seconds + 60)

    # By Idempotency-Key ----------------------------------------------------------------------------------------------

    async def claim(self, claim: CallClaim) -> CallAnswer | None:
        """None to make the call, or the answer that it had; raises `Conflict` and `Unavailable`."""
        async with self._begin() as connection:
            return await call_answers.claim_call(connection, claim, self._clock.now(), self._longest_call)

    async def keep(self, claim: CallClaim, answer: CallAnswer) -> None:
        """Keep an answer; without it a repeated call is told where the receipt is."""
        try:
            async with self._begin() as connection:
                await call_answers.keep_call_answer(connection, claim, answer, self._clock.now())
        except Unavailable:
            _log.warning("answer_not_kept", call_id=claim.call_id)

    async def release(self, claim: CallClaim) -> None:
        """Nothing was charged: the request may be repeated."""
        try:
            async with self._begin() as connection:
                await call_answers.release_call(connection, claim)
        except Unavailable:
            _log.warning("claim_not_released", call_id=claim.call_id)

    # Responses -------------------------------------------------------------------------------------------------------

    async def conversation(self, project_id: UUID, response_id: str) -> list[Any]:
        """All items of the conversation up to a stored response; raises `NotFound`."""
        row = None
        if (known := response_uuid(response_id)) is not None:
            async with self._begin() as connection:
                row = await responses.find_response(connection, project_id, known, self._clock.now())
        if row is None:
            raise NotFound(
                "There is no stored response of this id. Only answers to requests with store: true are kept."
            )
        return [*row.input, *row.response["output"]]

    async def store(self, origin: CallOrigin, response: dict[str, Any], items: list[Any]) -> bool:
        """Keep a response; answers whether it is kept."""
        stored = StoredResponse(origin.call_id, origin.organization_id, origin.project_id, response, items)
        try:
            async with self._begin() as connection:
                await responses.store_response(connection, stored, self._clock.now())
        except Unavailable:
            _log.warning("response_not_stored", call_id=origin.call_id)
            return False
        return True

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise Unavailable(_AWAY) from error


def response_uuid(response_id: str) -> UUID | None:
    """The id of the call that made a response."""
    try:
        return UUID(hex=response_id.removeprefix(RESPONSE_PREFIX)) if response_id.startswith(RESPONSE_PREFIX) else None
    except ValueError:
        return None


def claim_of(project_id: UUID, key: bytes, path: str, body: bytes, call_id: UUID) -> CallClaim:
    """The claim of a call that was sent with a key."""
    request_digest = hashlib.sha256(path.encode() + b"\0" + body).digest()
    return CallClaim(project_id, hashlib.sha256(key).digest(), request_digest, call_id)


async def forget_old(engine: AsyncEngine, now: datetime) -> None:
    """Drop what has been kept for as long as it is to be."""
    async with engine.begin() as connection:
        await call_answers.drop_old_answers(connection, now)
        await responses.drop_expired_responses(connection, now)
