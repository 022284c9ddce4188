"""The end of a call's money: a hold becomes a charge, never above the hold, never below zero."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from billing.pricing import price
from models.call import Charge, Hold
from models.usage import Ending, TokenUsage, UsageSource
from models.values import value


@value
class Measured:
    """What is known of a call's usage when it ends: the numbers to charge, whence they come, and the raw ones."""

    usage: TokenUsage
    source: UsageSource
    reported: dict[str, Any] | None = None
    counted: dict[str, Any] | None = None
    flags: tuple[str, ...] = ()


def charge(
    hold: Hold, measured: Measured, *, ending: Ending, deployment: str, ended_at: datetime, version: str = ""
) -> Charge:
    """The charge that ends a hold: the price of what was used at the pinned rates, at most the hold.

    `version` is the version of the model that served the call.
    """
    origin, usage = hold.request.origin, measured.usage
    exact = price(usage, hold.request.rates)
    amount = min(exact, hold.request.amount)
    # In the order of the fields, without their names: names make this three times as dear, and each call makes one.
    return Charge(
        origin.call_id,
        origin.organization_id,
        origin.project_id,
        origin.api_key_id,
        origin.currency,
        origin.endpoint,
        origin.model,
        deployment,
        origin.streamed,
        ending,
        measured.source,
        usage.input,
        usage.cached,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        amount,
        hold.request.amount,
        hold.request.rates.version_ids,
        origin.created_at,
        # A clock may be set back while a call runs; no call ends before it began.
        max(ended_at, origin.created_at),
        origin.end_user,
        measured.reported,
        measured.counted,
        measured.flags if amount == exact else (*measured.flags, "above_hold"),
        None,
        version,
        usage.images,
        usage.audio_seconds,
        origin.batch,
    )
