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
    return _shape(sold_model(caller, parts, model_id))


def sold_model(caller: Principal, parts: Parts, model_id: str) -> Model:
    """A model that the caller may call; raises `ModelNotFound`."""
    catalog = parts.catalog.current
    model = catalog.models.get(model_id)
    if (
        model is None
        or not model.deployments
        or not caller.may_call(model.id)
        or catalog.rates(caller.price_book, caller.currency, model.id, parts.clock.now()) is None
    ):
        raise ModelNotFound("This model does not exist, or is not sold to you.", param="model")
    return model


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
