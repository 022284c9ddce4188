"""The route of costs: what an organization's calls were charged, by day, grouped and filtered."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from billing.store.usage_report import Cost, Width, costs_of, currency_of
from gateway.api.organization.reports import Asked, asked, described, page_json, report_of, told, window
from gateway.auth import require_admin
from gateway.parts import Parts, parts_of
from models.account import AdminPrincipal
from models.money import amount_text

router = APIRouter()

Admin: TypeAlias = Annotated[AdminPrincipal, Depends(require_admin)]
PartsHere: TypeAlias = Annotated[Parts, Depends(parts_of)]

_PARAMETERS: Final = ("api_key_ids", "line_items")
_GROUPS: Final = ("project_id", "user_id", "line_item", "api_key_id", "api_source")
_COLUMNS: Final = ("project_id", "api_key_id")
_LIMITS: Final = {Width.DAY: (7, 180)}

# A decimal becomes a number with all its digits, whatever a reader then makes of it.
_encoder: Final = msgspec.json.Encoder(decimal_format="number")


@router.get("/costs", openapi_extra=described(_PARAMETERS, _GROUPS), response_model=dict[str, Any])
async def read_costs(request: Request, admin: Admin, parts: PartsHere) -> Response:
    """What calls were charged, by day in UTC. The amounts of a bucket add up to its charges to the last digit.

    `amount.value` is a JSON number; `amount.exact` the same as a decimal string, for whoever reads numbers as floats.
    `line_item` names a model and a meter, as in `llama-3, input_tokens`.
    """
    wanted = asked(request, _PARAMETERS, _GROUPS, _LIMITS)
    page = window(wanted, int(parts.clock.now().timestamp()))
    by = tuple(name for name in _COLUMNS if name in wanted.by)
    found: list[Cost] = []
    async with parts.engine.begin() as connection:
        currency = await currency_of(connection, admin.organization_id)
        if page.buckets:
            report = await report_of(connection, admin.organization_id, wanted, page.buckets, by)
            items = wanted.wanted("line_items")
            found = await costs_of(connection, report, by_item="line_item" in wanted.by, items=items)
    results = [(cost.bucket, _result(wanted, cost, currency)) for cost in found]
    return Response(_encoder.encode(page_json(page, results)), media_type="application/json")


def _result(wanted: Asked, cost: Cost, currency: str) -> dict[str, Any]:
    exact = amount_text(cost.item.amount, currency)
    is_by_item = "line_item" in wanted.by
    return {
        "object": "organization.costs.result",
        "amount": {"value": Decimal(exact), "currency": currency.lower(), "exact": exact},
        "line_item": cost.item.name if is_by_item else None,
        "quantity": cost.item.quantity if is_by_item else None,
        "quantity_unit": cost.item.unit if is_by_item else None,
        "project_id": None,
        "api_key_id": None,
        "user_id": None,
        "api_source": "unlabeled" if "api_source" in wanted.by else None,
        **told(cost.by),
    }
