"""What a developer may call: the models, in the shape of the OpenAI API. Calls themselves take `gateway.calls`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends

from billing.admission import is_sold_for
from gateway.auth import require_api_key
from gateway.backends import DIALECTS
from gateway.parts import Parts, parts_of
from models.account import Principal
from models.call import Endpoint
from models.catalog import Catalog, Deployment, Meter, Model, PricedAs, PriceVersion, Scheme
from models.errors import ModelNotFound
from models.money import price_each_text, price_text

router = APIRouter(prefix="/v1", tags=["Models"])

Caller = Annotated[Principal, Depends(require_api_key)]
TheParts = Annotated[Parts, Depends(parts_of)]

_EMBEDDINGS: Final = "embeddings"


@router.get("/models", summary="List the models this key may call")
async def list_models(caller: Caller, parts: TheParts) -> dict[str, Any]:
    """Models and aliases that are sold to the caller: deployed where its calls may go, priced in its book, and allowed
    to its key. Beside OpenAI's fields each tells its limits, its prices per million, its endpoints and capabilities.
    """
    catalog, now = parts.catalog.current, parts.clock.now()
    return {"object": "list", "data": [_shape(model, caller, catalog, now) for model in _sold(caller, catalog, now)]}


@router.get("/models/{model_id:path}", summary="Look at one model")
async def get_model(model_id: str, caller: Caller, parts: TheParts) -> dict[str, Any]:
    """One model; 404 `model_not_found` for one that does not exist or is not sold to the caller."""
    catalog, now = parts.catalog.current, parts.clock.now()
    return _shape(sold_model(caller, parts, model_id), caller, catalog, now)


def sold_model(caller: Principal, parts: Parts, model_id: str) -> Model:
    """A model that the caller may call; raises `ModelNotFound`."""
    catalog = parts.catalog.current
    model = catalog.models.get(model_id)
    if model is None or not _is_sold(model, caller, catalog, parts.clock.now()):
        raise ModelNotFound("This model does not exist, or is not sold to you.", param="model")
    return model


def _sold(caller: Principal, catalog: Catalog, now: datetime) -> list[Model]:
    models = sorted(catalog.models.values(), key=lambda model: model.id)
    return [model for model in models if _is_sold(model, caller, catalog, now)]


def _is_sold(model: Model, caller: Principal, catalog: Catalog, now: datetime) -> bool:
    return (
        caller.may_call(model.id)
        and bool(_serving(model, caller, catalog, now))
        and catalog.rates(caller.price_book, caller.currency, model.id, now) is not None
    )


def _serving(model: Model, caller: Principal, catalog: Catalog, now: datetime) -> Sequence[Model]:
    """The models that calls of the caller are served as: the model itself, or the targets of an alias."""
    own = [catalog.models[target.model] for target in model.targets if target.weight] if model.targets else [model]
    deployed = [each for each in own if catalog.deployments(each, caller.organization_id)]
    return deployed or [each for each in own if _has_fallback(each, caller, catalog, now)]


def _has_fallback(model: Model, caller: Principal, catalog: Catalog, now: datetime) -> bool:
    """Whether another model serves what has no deployment for the caller, as `gateway.calls.choice` decides."""
    rule = model.fallback
    spare = None if rule is None else catalog.models.get(rule.model)
    if rule is None or spare is None or not caller.may_call(spare.id):
        return False
    is_priced = rule.priced_as is PricedAs.REQUESTED or catalog.rates(caller.price_book, caller.currency, spare.id, now)
    return bool(is_priced and catalog.deployments(spare, caller.organization_id))


def _shape(model: Model, caller: Principal, catalog: Catalog, now: datetime) -> dict[str, Any]:
    serving = _serving(model, caller, catalog, now)
    rates = catalog.rates(caller.price_book, caller.currency, model.id, now)
    # Of an alias what holds whichever target serves.
    capabilities = set.intersection(*(set(each.capabilities) for each in serving))
    context_length = min(each.context_length for each in serving)
    makes_vectors = _EMBEDDINGS in capabilities
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": "tollgate",
        "context_length": context_length,
        "max_output_tokens": 0 if makes_vectors else context_length,
        "endpoints": [
            str(each)
            for each in ([Endpoint.EMBEDDINGS] if makes_vectors else Endpoint)
            if rates is not None
            and is_sold_for(rates, images=each is Endpoint.IMAGES, sounds=each.hears)
            and all(_has(_deployments(one, caller, catalog), each) for one in serving)
        ],
        "capabilities": sorted(capabilities),
        "pricing": _pricing(catalog.versions(caller.price_book, caller.currency, model.id, now), caller.currency),
    }


def _deployments(model: Model, caller: Principal, catalog: Catalog) -> Sequence[Deployment]:
    """The deployments that serve the caller's calls of a model: its own, else those of its fallback."""
    own = catalog.deployments(model, caller.organization_id)
    if own or model.fallback is None:
        return own
    return catalog.deployments(catalog.models[model.fallback.model], caller.organization_id)


def _has(deployments: Sequence[Deployment], endpoint: Endpoint) -> bool:
    """Whether an engine among them has the endpoint; the others are not asked for it."""
    return any(endpoint not in DIALECTS[each.backend.kind].lacks for each in deployments)


def _pricing(versions: dict[Meter, PriceVersion], currency: str) -> dict[str, Any]:
    """Decimal strings per million by meter, of the dearest tier; of packages and of the least price of a call each."""
    per_million = {
        meter.value: price_text(one.price, currency)
        for meter, one in versions.items()
        if one.scheme is not Scheme.PACKAGE and meter is not Meter.MINIMUM
    }
    each = {
        meter.value: {"price": price_each_text(one.price, currency), "package_size": one.package_size}
        for meter, one in versions.items()
        if meter.value not in per_million
    }
    tiered = sorted(meter.value for meter, one in versions.items() if one.tiers)
    return {
        "currency": currency,
        **dict(sorted(per_million.items())),
        **({"each": dict(sorted(each.items()))} if each else {}),
        **({"tiered": tiered} if tiered else {}),
    }
