"""Routes of models: what is sold, and the deployments that serve it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import catalog as stored
from billing.store.pages import AnyRow, Page
from billing.store.routing import contexts_of, find_alias
from gateway.api.operator.backends import found_backend
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Asked, BackendName, Body, ListOf, ModelId, Printable, Slug, Text, list_of
from models.catalog import PricedAs
from models.errors import InvalidRequest, NotFound
from models.usage import BilledCount

router = APIRouter()

ContextLength = Annotated[int, Field(ge=1, le=100_000_000)]
BackendModel = Annotated[str, StringConstraints(min_length=1, max_length=500), Printable]


class DeploymentBody(Body):
    """A model on a backend (its name or id), under the name the backend knows it by."""

    backend: BackendName
    backend_model: BackendModel
    weight: int = Field(1, ge=1, le=1_000)
    priority: int = Field(0, ge=0, le=1_000, description="Lower ones first: a higher one only where none of them can")
    pool: Slug | None = Field(None, description="Only for organizations bound to this pool; null: for all others")


class FallbackBody(Body):
    """The model that serves where no deployment of this one can take a call before its first byte.

    `priced_as` says at whose price. With `when_full` it serves also where all deployments are full.
    """

    model: ModelId
    priced_as: PricedAs = PricedAs.REQUESTED
    when_full: bool = False


Deployments = Annotated[list[DeploymentBody], Field(max_length=200)]
Capabilities = Annotated[
    list[Slug], Field(max_length=20, description="What developers are told, such as vision, tools or embeddings")
]


class NewModel(Body):
    """A model to sell. It can be called once it has a price."""

    id: ModelId
    deployments: Deployments
    context_length: ContextLength
    tokenizer: Text | None = Field(None, description="Path of a tokenizer.json on the gateways, or an encoding's name")
    billed_count: BilledCount = BilledCount.BACKEND
    capabilities: Capabilities = Field(default_factory=list)
    fallback: FallbackBody | None = None


class ModelUpdate(Body):
    """What is to change of a model; what is left out stays. `deployments` replaces all of them."""

    deployments: Deployments | None = None
    context_length: ContextLength | None = None
    tokenizer: Text | None = None
    billed_count: BilledCount | None = None
    capabilities: Capabilities | None = None
    fallback: FallbackBody | None = None
    disabled: bool | None = None


class Model(BaseModel):
    """A model with its enabled deployments."""

    id: str
    object: Literal["model"] = "model"
    deployments: list[DeploymentBody]
    context_length: int
    tokenizer: str | None
    billed_count: BilledCount
    capabilities: list[str]
    fallback: FallbackBody | None
    created_at: datetime
    disabled_at: datetime | None


class AskedModels(Asked):
    """A page of models; the cursor is a model's id."""

    after: ModelId | None = None


@router.post("/models", response_model=Model)
async def create_model(body: NewModel, request: Operator) -> Response:
    """Create a model."""

    async def effect(change: Change) -> Model:
        columns = body.model_dump(mode="json", exclude={"deployments", "fallback"})
        columns |= await _fallback_columns(change.connection, body.id, body.fallback)
        await stored.create_model(change.connection, change.now, columns)
        await _deploy(change, body.id, body.deployments)
        await _audit(change, "model.created", body.id, body)
        return await _shown(change.connection, body.id)

    return await request.change(effect)


@router.get("/models")
async def list_models(asked: Annotated[AskedModels, Query()], request: Operator) -> ListOf[Model]:
    """All models by id, with the disabled ones."""
    async with request.reading() as connection:
        rows, more = await stored.list_models(connection, Page(asked.after, asked.limit))
        deployments = await stored.find_deployments(connection, [row.id for row in rows])
    return list_of([_model(row, deployments[row.id]) for row in rows], more)


@router.get("/models/{model_id:path}")
async def get_model(model_id: ModelId, request: Operator) -> Model:
    """One model."""
    async with request.reading() as connection:
        return await _shown(connection, model_id)


@router.patch("/models/{model_id:path}", response_model=Model, include_in_schema=False)
@router.post("/models/{model_id:path}", response_model=Model)
async def update_model(model_id: ModelId, body: ModelUpdate, request: Operator) -> Response:
    """Change, disable or enable a model. A disabled one is not found by callers; running calls end."""

    async def effect(change: Change) -> Model:
        await _refuse_alias(change.connection, model_id)
        apart = {"deployments", "disabled", "fallback"}
        columns: dict[str, Any] = body.model_dump(mode="json", exclude_unset=True, exclude=apart)
        if "fallback" in body.model_fields_set:
            columns |= await _fallback_columns(change.connection, model_id, body.fallback)
        for name in ("context_length", "billed_count", "capabilities"):
            if columns.get(name, "") is None:
                raise InvalidRequest(f"'{name}' cannot be null. Leave it out to keep it.", param=name)
        if body.disabled is not None:
            columns["disabled_at"] = change.now if body.disabled else None
        if not await stored.update_model(change.connection, model_id, columns):
            raise NotFound("There is no such model.")
        if body.deployments is not None:
            await _deploy(change, model_id, body.deployments)
        await _audit(change, "model.updated", model_id, body)
        return await _shown(change.connection, model_id)

    return await request.change(effect)


async def _deploy(change: Change, model_id: str, deployments: Sequence[DeploymentBody]) -> None:
    plans = []
    for deployment in deployments:
        try:
            backend = await found_backend(change.connection, deployment.backend)
        except NotFound as error:
            raise InvalidRequest(error.message + " Create it first.", param="deployments") from None
        stated = deployment.model_dump(exclude={"backend"})
        plans.append(stored.DeploymentPlan(backend.id, **stated))
    if len({(plan.backend_id, plan.backend_model) for plan in plans}) < len(plans):
        raise InvalidRequest("Two deployments are the same. Give one of them, with more weight.", param="deployments")
    await stored.deploy(change.connection, model_id, plans, change.now)


async def _fallback_columns(
    connection: AsyncConnection, model_id: str, fallback: FallbackBody | None
) -> dict[str, Any]:
    if fallback is None:
        return {"fallback_id": None}
    if fallback.model == model_id:
        raise InvalidRequest("A model cannot stand in for itself.", param="fallback")
    if fallback.model not in await contexts_of(connection, [fallback.model]):
        raise InvalidRequest("There is no such model to fall back to, or it is an alias.", param="fallback")
    return {
        "fallback_id": fallback.model,
        "fallback_priced_as": fallback.priced_as.value,
        "fallback_when_full": fallback.when_full,
    }


def _fallback(row: AnyRow) -> FallbackBody | None:
    if row.fallback_id is None:
        return None
    return FallbackBody(model=row.fallback_id, priced_as=row.fallback_priced_as, when_full=row.fallback_when_full)


async def _refuse_alias(connection: AsyncConnection, model_id: str) -> None:
    if await find_alias(connection, model_id) is not None:
        raise InvalidRequest("This is an alias. Change its targets at /operator/v1/aliases.", param="model_id")


async def _shown(connection: AsyncConnection, model_id: str) -> Model:
    row = await stored.find_model(connection, model_id)
    if row is None:
        raise NotFound("There is no such model.")
    return _model(row, (await stored.find_deployments(connection, [model_id]))[model_id])


def _model(row: AnyRow, deployments: Sequence[AnyRow]) -> Model:
    return Model(
        id=row.id,
        deployments=[
            DeploymentBody(**{name: getattr(each, name) for name in DeploymentBody.model_fields})
            for each in deployments
        ],
        context_length=row.context_length,
        tokenizer=row.tokenizer,
        billed_count=row.billed_count,
        capabilities=list(row.capabilities),
        fallback=_fallback(row),
        created_at=row.created_at,
        disabled_at=row.disabled_at,
    )


async def _audit(change: Change, action: str, model_id: str, body: Body) -> None:
    change.catalog_changed = True
    await change.audit(action, f"model:{model_id}", **body.model_dump(mode="json", exclude_unset=True))
