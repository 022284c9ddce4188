"""Sample values that unit tests share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from billing.admission import hold_request
from gateway.backends import DIALECTS
from gateway.calls.machine import Attempt, Call
from models.account import Principal
from models.call import CallOrigin, CallRequest, Endpoint
from models.catalog import Backend, BackendKind, Deployment, Model, Rates
from models.money import MilliUnits
from models.usage import BilledCount

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RATES = Rates(
    input=MilliUnits(150_000),
    output=MilliUnits(600_000),
    cached_input=MilliUnits(75_000),
    cache_write=MilliUnits(150_000),
    reasoning=MilliUnits(600_000),
    version_ids=(UUID(int=9),),
)
PRINCIPAL = Principal(
    organization_id=UUID(int=1),
    project_id=UUID(int=2),
    api_key_id=UUID(int=3),
    shard=1,
    currency="USD",
    price_book="default",
)


def deployment(
    kind: BackendKind = BackendKind.LLAMACPP, number: int = 1, *, model: str = "m", known_as: str = "m"
) -> Deployment:
    backend = Backend(UUID(int=10 + number), f"b{number}", kind, f"http://backend-{number}:8000", credential="s3cr3t")
    return Deployment(UUID(int=20 + number), model, backend, known_as)


def chat_request(**changes: Any) -> CallRequest:
    values: dict[str, Any] = {
        "endpoint": Endpoint.CHAT_COMPLETIONS,
        "model": "m",
        "body": {"messages": [{"role": "user", "content": "hello"}]},
        "max_output_tokens": 100,
        "input_bound": 60,
    }
    return CallRequest(**{**values, **changes})


def make_call(
    request: CallRequest,
    deployments: tuple[Deployment, ...] = (),
    *,
    billed_count: BilledCount = BilledCount.BACKEND,
    tokenizer: str | None = None,
    is_audited: bool = False,
    attempts: int | None = None,
) -> Call:
    """A call that may be sent to each of the deployments once, and in all as often as `attempts` says."""
    model = Model(id="m", context_length=4_096, created_at=NOW, billed_count=billed_count, tokenizer=tokenizer)
    origin = CallOrigin(
        call_id=UUID(int=4),
        organization_id=PRINCIPAL.organization_id,
        project_id=PRINCIPAL.project_id,
        api_key_id=PRINCIPAL.api_key_id,
        shard=PRINCIPAL.shard,
        currency=PRINCIPAL.currency,
        endpoint=request.endpoint,
        model=model.id,
        streamed=request.stream,
        created_at=NOW,
    )
    hold = hold_request(request, origin, PRINCIPAL, model, RATES)
    places = iter((deployments or (deployment(),))[:attempts])

    def next_attempt() -> Attempt | None:
        one = next(places, None)
        return None if one is None else Attempt(one, DIALECTS[one.backend.kind].body(request, model, one))

    return Call(request, hold, model, next_attempt, lambda: NOW, is_audited=is_audited)
