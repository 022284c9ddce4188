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
    """What is known of a call's tokens when it ends: the numbers to charge, whence they come, and the raw ones."""

    usage: TokenUsage
    source: UsageSource
    reported: dict[str, Any] | None = None
    counted: dict[str, Any] | None = None
    flags: tuple[str, ...] = ()


def charge(hold: Hold, measured: Measured, *, ending: Ending, deployment: str, ended_at: datetime) -> Charge:
    """The charge that ends a hold: the price of its tokens at the pinned rates, at most the hold."""
    origin, usage = hold.request.origin, measured.usage
    exact = price(usage, hold.request.rates)
    amount = min(exact, hold.request.amount)
    return Charge(
        call_id=origin.call_id,
        organization_id=origin.organization_id,
        project_id=origin.project_id,
        api_key_id=origin.api_key_id,
        currency=origin.currency,
        endpoint=origin.endpoint,
        model=origin.model,
        deployment=deployment,
        streamed=origin.streamed,
        ending=ending,
        usage_source=measured.source,
        input_tokens=usage.input,
        cached_tokens=usage.cached,
        cache_write_tokens=usage.cache_write,
        output_tokens=usage.output,
        reasoning_tokens=usage.reasoning,
        amount=amount,
        hold=hold.request.amount,
        price_version_ids=hold.request.rates.version_ids,
        created_at=origin.created_at,
        # A clock may be set back while a call runs; no call ends before it began.
        ended_at=max(ended_at, origin.created_at),
        end_user=origin.end_user,
        reported=measured.reported,
        counted=measured.counted,
        flags=measured.flags if amount == exact else (*measured.flags, "above_hold"),
    )
