"""How a call that cannot be served, or cannot go on, is told to its client."""

from __future__ import annotations

import msgspec

from models.call import HoldRefusal, HoldRequest, RefusedHold
from models.errors import (
    InsufficientBalance,
    InvalidRequest,
    RateLimited,
    SpendLimitReached,
    TollgateError,
    Unavailable,
)
from models.money import amount_text

_encode = msgspec.json.Encoder().encode
_WHAT = {"requests": "requests per minute", "tokens": "tokens per minute", "requests_a_day": "requests per day"}


def refusal(refused: RefusedHold, request: HoldRequest) -> TollgateError:
    """The error for a hold that was refused."""
    currency = request.origin.currency
    match refused.reason:
        case HoldRefusal.BALANCE:
            return InsufficientBalance(
                f"This call can cost up to {amount_text(request.amount, currency)} {currency} and "
                f"{amount_text(refused.available, currency)} {currency} is available. "
                "Add credit, or ask for fewer tokens with max_tokens."
            )
        case HoldRefusal.RATE if not refused.retry_after_ms:
            return InvalidRequest(
                f"This call alone is more than the rate limit {_limit_name(refused.scope)}. "
                "Ask for fewer tokens with max_tokens, or send a shorter prompt.",
                code="rate_limit_exceeded",
            )
        case HoldRefusal.RATE:
            return RateLimited(
                f"The rate limit {_limit_name(refused.scope)} is reached. "
                f"Try again in {refused.retry_after_ms / 1_000:.1f} s.",
                refused.retry_after_ms,
            )
        case HoldRefusal.IN_FLIGHT:
            return RateLimited(
                f"Too many calls run at the same time for the limit {_limit_name(refused.scope)}. "
                "Try again when one has ended.",
                1_000,
            )
        case HoldRefusal.SPEND:
            owner, _, month = refused.scope.rpartition(":")
            return SpendLimitReached(
                f"This call can cost up to {amount_text(request.amount, currency)} {currency} and "
                f"{amount_text(refused.available, currency)} {currency} is left of what the "
                f"{owner.partition(':')[0]} may spend in {month}. "
                "Ask for fewer tokens with max_tokens, or have the spend limit raised."
            )
        case HoldRefusal.LIMIT_UNKNOWN:
            return Unavailable("What was spent this month is being counted. Nothing was charged; try again.")
        case HoldRefusal.UNKNOWN_ORGANIZATION | HoldRefusal.NO_EPOCH:
            return Unavailable("The ledger is being rebuilt. Nothing was charged; try again.")


def _limit_name(scope: str) -> str:
    """`key:<id>:requests` is told as `requests per minute of the key`."""
    owner, _, rest = scope.partition(":")
    within, _, kind = rest.rpartition(":")
    what = _WHAT.get(kind, "calls in flight")
    # The limit of a model in a project has the model in its scope.
    return f"({what} of the {owner}{' for this model' if ':' in within else ''})"


def error_event(error: TollgateError) -> bytes:
    """The SSE event that ends a broken stream: SDKs take an end without it, and without [DONE], for a success."""
    return b"event: error\ndata: " + _encode({"error": error_object(error)}) + b"\n\n"


def error_object(error: TollgateError) -> dict[str, str | None]:
    """What is told of an error in the middle of a stream."""
    return {"message": error.message, "type": "api_error", "param": None, "code": _code(error)}


def anthropic_error(error: TollgateError, request_id: str) -> bytes:
    """The same in the shape of Anthropic's API."""
    kind = "overloaded_error" if isinstance(error, Unavailable) else "api_error"
    told = {"type": kind, "message": error.message}
    return _encode({"type": "error", "error": told, "request_id": request_id})


def _code(error: TollgateError) -> str:
    return "unavailable" if isinstance(error, Unavailable) else "backend_failed"
