"""Where payment providers tell of payments: signed by them, each event taken once."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel

from billing.payments_in import take_event
from billing.projection import project_balance
from billing.providers import PROVIDERS
from gateway.auth import SignedBody, require_signature
from gateway.parts import Parts, parts_of
from models.errors import Conflict, InvalidRequest
from models.payment import PaymentEventState

router = APIRouter(tags=["webhooks"])

_PROJECTION_TIMEOUT_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class TakenEvent(BaseModel):
    """That an event arrived, and what became of it; `ignored` is one that moves no money, of which nothing is kept."""

    object: Literal["webhook_event"] = "webhook_event"
    id: UUID | None
    state: PaymentEventState | Literal["ignored"]


@router.post("/webhooks/payments/{provider}")
async def take_payment_event(
    signed: Annotated[SignedBody, Depends(require_signature)], parts: Annotated[Parts, Depends(parts_of)]
) -> TakenEvent:
    """Take an event of a payment provider, in the provider's own format.

    The answer is 200 wherever sending it again cannot help: also for an event that cannot be booked, which waits at
    `/operator/v1/webhook_events`, and for one that was taken before. It is 503 while the database is away.
    """
    try:
        event = PROVIDERS[signed.provider](signed.body)
    except InvalidRequest:
        _log.warning("webhook_unreadable", name=signed.provider)
        raise
    if event is None:
        return TakenEvent(id=None, state="ignored")
    try:
        taken = await take_event(parts.engine, event, parts.clock.now())
    except Conflict:
        _log.warning("webhook_event_changed", name=signed.provider, entry_id=event.event_id)
        raise
    _log.info("webhook_taken", name=signed.provider, entry_id=event.event_id, kind=event.kind, action=taken.state)
    if taken.changed is not None:
        await _project(parts, taken.changed)
    return TakenEvent(id=taken.id, state=taken.state)


async def _project(parts: Parts, organization_id: UUID) -> None:
    try:
        async with asyncio.timeout(_PROJECTION_TIMEOUT_SECONDS), parts.engine.connect() as connection:
            await project_balance(connection, parts.hot, organization_id)
    except Exception as error:
        # The payment is booked: the worker brings the balance to the hot store within seconds.
        _log.warning("projection_left_to_worker", reason=type(error).__name__)
