"""What the state machine of a call tells its driver to do."""

from __future__ import annotations

from typing import Any

from models.call import CallOrigin, CallRequest, Charge, Endpoint, Hold, HoldRequest, RefusedHold, Void
from models.catalog import Deployment, Model
from models.errors import TollgateError
from models.values import value


@value
class PlaceHold:
    """Ask the hot store for the hold; answer with `hold_answered` or `hold_failed`."""

    request: HoldRequest


@value
class Connect:
    """Send the request to a deployment; answer with `upstream_sent`, then `upstream_head`, or `upstream_failed`."""

    deployment: Deployment
    endpoint: Endpoint
    body: bytes


@value
class CloseUpstream:
    """Stop the backend: its answer is not wanted any more."""


@value
class SendHead:
    """Send status 200 to the client; `length` is None for a stream."""

    length: int | None


@value
class SendBody:
    """Send bytes to the client; `last` ends the answer."""

    data: bytes
    last: bool = False


@value
class SendError:
    """Send a whole answer that is an error."""

    error: TollgateError
    answer: Hold | RefusedHold | None = None


@value
class CountTokens:
    """Count prompt and generated texts with the model's own tokenizer; answer with `counted`."""

    request: CallRequest
    model: Model
    texts: tuple[str, ...]


@value
class CountPrompt:
    """Count the prompt, since money is short; answer with `prompt_counted`."""

    request: CallRequest
    model: Model


@value
class Settle:
    """Make the charge durable; answer with `settled`."""

    hold: Hold
    charge: Charge


@value
class KeepResponse:
    """Store a response for those who go on from it; answer with `response_kept`."""

    origin: CallOrigin
    response: dict[str, Any]
    input: list[Any]


@value
class Release:
    """Give the hold back, since nothing is charged."""

    void: Void


Command = (
    PlaceHold
    | CountPrompt
    | Connect
    | CloseUpstream
    | SendHead
    | SendBody
    | SendError
    | CountTokens
    | Settle
    | KeepResponse
    | Release
)
