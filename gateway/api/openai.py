"""What a developer may call: the models, in the shape of the OpenAI API. Calls themselves take `gateway.calls`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from gateway.auth import require_api_key
from gateway.parts import Parts, parts_of
from models.account import Principal
from models.catalog import Model
from models.errors import ModelNotFound

router = APIRouter(prefix="/v1", tags=["Models"])

Caller = Annotated[Principal, Depends(require_api_key)]
TheParts = Annotated[Parts, Depends(parts_of)]


@router.get("/models", summary="List the models this key may call")
async def list_models(caller: Caller, parts: TheParts) -> dict[str, Any]:
    """Models that are sold to the caller: known, deployed, priced in its book, and allowed to its key."""
    return {"object": "list", "data": [_shape(model) for model in _sold(caller, parts)]}


@router.get("/models/{model_id:path}", summary="Look at one model")
async def get_model(model_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """One model; 404 `model_not_found` for one that does not exist or is not sold to the caller."""
    for model in _sold(caller, parts):
        if model.id == model_id:
            return _shape(model)
    raise ModelNotFound("This model does not exist, or is not sold to you.", param="model")


def _sold(caller: Principal, parts: Parts) -> list[Model]:
    catalog, now = parts.catalog.current, parts.clock.now()
    return [
        model
        for model in sorted(catalog.models.values(), key=lambda model: model.id)
        if model.deployments
        and caller.may_call(model.id)
        and catalog.rates(caller.price_book, caller.currency, model.id, now) is not None
    ]


def _shape(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": "tollgate",
        "context_length": model.context_length,
    }
