"""Routes of aliases: names that stand for models, so that all callers move to a new version, and back, in one step."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.store import catalog as models
from billing.store import prices as stored_prices
from billing.store import routing as stored
from billing.store.pages import AnyRow, Page
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Asked, Body, ListOf, ModelId, list_of
from models.catalog import PriceDraft
from models.errors import InvalidRequest, NotFound

router = APIRouter()


class TargetBody(Body):
    """A model that an alias stands for. Callers come to it in the proportion of its weight; 0: none does."""

    model: ModelId
    weight: int = Field(1, ge=0, le=1_000_000)


Targets = Annotated[list[TargetBody], Field(min_length=1, max_length=20)]


class NewAlias(Body):
    """A name to sell, and the models that serve it. It has prices of its own: published, or those of `prices_of`."""

    id: ModelId
    targets: Targets
    prices_of: ModelId | None = Field(None, description="Publish the prices of this model for the alias, too")


class AliasUpdate(Body):
    """What is to change of an alias; `back` gives it the targets that it had before the last change."""

    targets: Targets | None = None
    back: Literal[True] | None = None
    disabled: bool | None = None


class Alias(BaseModel):
    """An alias with its targets, and those that `back` would give it."""

    id: str
    object: Literal["alias"] = "alias"
    targets: list[TargetBody]
    previous: list[TargetBody] | None
    moved_at: datetime
    created_at: datetime
    disabled_at: datetime | None


class AskedAliases(Asked):
    """A page of aliases; the cursor is an alias's id."""

    after: ModelId | None = None


@router.post("/aliases", response_model=Alias)
async def create_alias(body: NewAlias, request: Operator) -> Response:
    """Create an alias. It can be called once it has a price."""

    async def effect(change: Change) -> Alias:
        connection = change.connection
        contexts = await _check_targets(connection, body.targets)
        # Shown to developers until it has targets of another length: a call is bounded by the one that serves it.
        columns = {"id": body.id, "context_length": min(contexts)}
        await models.create_model(connection, change.now, columns)
        await stored.create_alias(connection, body.id, _pairs(body.targets), change.now)
        if body.prices_of is not None:
            await _copy_prices(change, body.prices_of, body.id)
        await _audit(change, "alias.created", body.id, body)
        return await _shown(connection, body.id)

    return await request.change(effect)


@router.get("/aliases")
async def list_aliases(asked: Annotated[AskedAliases, Query()], request: Operator) -> ListOf[Alias]:
    """All aliases by id, with the disabled ones."""
    async with request.reading() as connection:
        rows, more = await stored.list_aliases(connection, Page(asked.after, asked.limit))
    return list_of([_alias(row) for row in rows], more)


@router.get("/aliases/{alias_id:path}")
async def get_alias(alias_id: ModelId, request: Operator) -> Alias:
    """One alias."""
    async with request.reading() as connection:
        return await _shown(connection, alias_id)


@router.post("/aliases/{alias_id:path}", response_model=Alias)
async def update_alias(alias_id: ModelId, body: AliasUpdate, request: Operator) -> Response:
    """Move the callers of an alias: to other targets, to other weights, or back. Gateways know within seconds."""

    async def effect(change: Change) -> Alias:
        connection = change.connection
        row = await stored.find_alias(connection, alias_id, for_update=True)
        if row is None:
            raise NotFound("There is no such alias.")
        if body.targets is not None and body.back:
            raise InvalidRequest("Give 'targets', or 'back', not both.", param="back")
        targets = body.targets
        if body.back:
            if row.previous is None:
                raise InvalidRequest("The alias was never moved, so there is no way back.", param="back")
            targets = [TargetBody(**each) for each in row.previous]
        if targets is not None:
            contexts = await _check_targets(connection, targets)
            # Asked for twice, a move is one move: it must not take the way back.
            if [each.model_dump() for each in targets] != row.targets:
                await stored.move_alias(connection, row, _pairs(targets), change.now)
            await models.update_model(connection, alias_id, {"context_length": min(contexts)})
        if body.disabled is not None:
            columns: dict[str, Any] = {"disabled_at": change.now if body.disabled else None}
            await models.update_model(connection, alias_id, columns)
        await _audit(change, "alias.updated", alias_id, body)
        return await _shown(connection, alias_id)

    return await request.change(effect)


async def _check_targets(connection: AsyncConnection, targets: Sequence[TargetBody]) -> list[int]:
    """Refuse targets that could not serve; answers the context lengths of those that get callers."""
    names = [target.model for target in targets]
    if len(set(names)) < len(names):
        raise InvalidRequest("A model is named twice. Name it once, with more weight.", param="targets")
    if not any(target.weight for target in targets):
        raise InvalidRequest("One of the targets must have a weight above zero.", param="targets")
    contexts = await stored.contexts_of(connection, names)
    if missing := [name for name in names if name not in contexts]:
        raise InvalidRequest(f"There is no model '{missing[0]}', or it is an alias itself.", param="targets")
    deployed = await models.find_deployments(connection, names)
    for target in targets:
        row = await models.find_model(connection, target.model)
        is_served = any(each.backend_disabled_at is None for each in deployed[target.model])
        if target.weight and (not is_served or row is None or row.disabled_at is not None):
            raise InvalidRequest(
                f"The model '{target.model}' is disabled or has no deployment on an enabled backend, so its callers "
                "would be refused. Enable or deploy it first, or give it the weight 0.",
                param="targets",
            )
    return [contexts[target.model] for target in targets if target.weight]


async def _copy_prices(change: Change, source: str, alias_id: str) -> None:
    # Those to come, too: a price in force that another one follows has an end, and the alias would be sold until then.
    versions = [
        each
        for each in await stored_prices.all_versions(change.connection)
        if each.model == source and (each.effective_to is None or change.now < each.effective_to)
    ]
    if not any(each.in_force(change.now) for each in versions):
        raise InvalidRequest(f"The model '{source}' has no price in force.", param="prices_of")
    for one in versions:
        draft = PriceDraft(
            book=one.book,
            model=alias_id,
            meter=one.meter,
            currency=one.currency,
            price=one.price,
            # From the same moment on: a gateway whose clock is behind this one sells at once, too.
            effective_from=one.effective_from,
            effective_to=one.effective_to,
            scheme=one.scheme,
            tiers=one.tiers,
            package_size=one.package_size,
            tiers_over=one.tiers_over,
        )
        await stored_prices.publish(change.connection, draft, change.actor, change.now)


def _pairs(targets: Sequence[TargetBody]) -> list[stored.Weighed]:
    return [(target.model, target.weight) for target in targets]


async def _shown(connection: AsyncConnection, alias_id: str) -> Alias:
    row = await stored.find_alias(connection, alias_id)
    if row is None:
        raise NotFound("There is no such alias.")
    return _alias(row)


def _alias(row: AnyRow) -> Alias:
    return Alias(
        id=row.model_id,
        targets=row.targets,
        previous=row.previous,
        moved_at=row.moved_at,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
    )


async def _audit(change: Change, action: str, alias_id: str, body: Body) -> None:
    change.catalog_changed = True
    await change.audit(action, f"alias:{alias_id}", **body.model_dump(mode="json", exclude_unset=True))
