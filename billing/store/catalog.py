"""Models, deployments and backends in Postgres, and the whole catalog as one value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.store.pages import AnyRow, Page, fetch_one, fetch_optional, fetch_page
from billing.store.price_books import batch_books, book_parents
from billing.store.prices import price_version_of
from billing.store.routing import alias_targets, organizations_with_rules, windows
from models.catalog import (
    Backend,
    BackendKind,
    Catalog,
    Deployment,
    Fallback,
    Model,
    PricedAs,
    PriceVersion,
    Target,
)
from models.ids import uuid7
from models.tables import alias, backend, catalog_revision, deployment, model, price_version
from models.usage import BilledCount


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """A deployment as an operator states it; `backend_id` is already resolved."""

    backend_id: UUID
    backend_model: str
    weight: int = 1
    priority: int = 0
    pool: str | None = None


async def revision(connection: AsyncConnection) -> int:
    """The number that triggers raise with every change of what is sold."""
    return int((await connection.execute(select(catalog_revision.c.revision))).scalar_one())


async def load_catalog(connection: AsyncConnection) -> Catalog:
    """Everything on sale. Models stay in it without a deployment: a call to them is refused as unavailable."""
    deployments, targets = await _deployments(connection), await alias_targets(connection)
    alive = select(model).where(model.c.disabled_at.is_(None)).order_by(model.c.id)
    rows = {row.id: row for row in await connection.execute(alive)}
    models = {
        row.id: Model(
            id=row.id,
            context_length=row.context_length,
            created_at=row.created_at,
            tokenizer=row.tokenizer,
            billed_count=BilledCount(row.billed_count),
            deployments=tuple(deployments[row.id]),
            fallback=_fallback(row) if row.fallback_id in rows else None,
            targets=tuple(Target(*each) for each in targets.get(row.id, ()) if each[0] in rows),
            capabilities=tuple(row.capabilities),
        )
        for row in rows.values()
        # An alias whose every target is disabled stands for nothing.
        if row.id not in targets or any(name in rows and weight for name, weight in targets[row.id])
    }
    prices: dict[tuple[str, str, str], list[PriceVersion]] = defaultdict(list)
    for row in await connection.execute(select(price_version).order_by(price_version.c.id)):
        version = price_version_of(row)
        prices[version.book, version.currency, version.model].append(version)
    return Catalog(
        models=models,
        prices={key: tuple(versions) for key, versions in prices.items()},
        parents=await book_parents(connection),
        batch_books=await batch_books(connection),
        routing=await organizations_with_rules(connection),
    )


def _fallback(row: AnyRow) -> Fallback:
    return Fallback(row.fallback_id, PricedAs(row.fallback_priced_as), row.fallback_when_full)


async def _deployments(connection: AsyncConnection) -> defaultdict[str, list[Deployment]]:
    backends = {row.id: backend_of(row) for row in await connection.execute(_enabled_backends())}
    planned = await windows(connection)
    found: defaultdict[str, list[Deployment]] = defaultdict(list)
    alive = select(deployment).where(deployment.c.disabled_at.is_(None)).order_by(deployment.c.id)
    for row in await connection.execute(alive):
        if row.backend_id in backends:
            at = (*planned.get((row.backend_id, None), ()), *planned.get((row.backend_id, row.model_id), ()))
            found[row.model_id].append(
                Deployment(
                    row.id,
                    row.model_id,
                    backends[row.backend_id],
                    row.backend_model,
                    row.weight,
                    row.priority,
                    row.pool,
                    at,
                )
            )
    return found


def _enabled_backends() -> Select[*tuple[Any, ...]]:
    return select(backend).where(backend.c.disabled_at.is_(None))


def backend_of(row: AnyRow) -> Backend:
    """The value that a row of `backend` holds."""
    return Backend(
        id=row.id,
        name=row.name,
        kind=BackendKind(row.kind),
        url=row.url,
        credential=row.credential,
        max_in_flight=row.max_in_flight,
        region=row.region,
        path_prefix=row.path_prefix,
    )


# Backends ------------------------------------------------------------------------------------------------------------


async def create_backend(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> AnyRow:
    """Store a backend; `values` are columns. Raises `IntegrityError` where the name is taken."""
    statement = insert(backend).values(id=uuid7(now), created_at=now, **values).returning(backend)
    return await fetch_one(connection, statement)


async def find_backend(connection: AsyncConnection, name_or_id: str) -> AnyRow | None:
    """A backend by its id or its name."""
    try:
        matches = backend.c.id == UUID(name_or_id)
    except ValueError:
        matches = backend.c.name == name_or_id
    return await fetch_optional(connection, select(backend).where(matches))


async def update_backend(connection: AsyncConnection, backend_id: UUID, values: dict[str, Any]) -> AnyRow | None:
    """Change columns of a backend; answers the new row, or None where there is none."""
    statement = update(backend).where(backend.c.id == backend_id).values(values).returning(backend)
    return await fetch_optional(connection, statement)


async def list_backends(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of backends, oldest first."""
    return await fetch_page(connection, select(backend), backend.c.id, page)


# Models --------------------------------------------------------------------------------------------------------------


async def create_model(connection: AsyncConnection, now: datetime, values: dict[str, Any]) -> None:
    """Store a model without deployments; `values` are columns. Raises `IntegrityError` where the id is taken."""
    await connection.execute(insert(model).values(created_at=now, **values))


async def update_model(connection: AsyncConnection, model_id: str, values: dict[str, Any]) -> bool:
    """Change columns of a model; answers whether there is such a model."""
    found = await connection.execute(select(model.c.id).where(model.c.id == model_id).with_for_update(key_share=True))
    if found.one_or_none() is None:
        return False
    if values:
        await connection.execute(update(model).where(model.c.id == model_id).values(values))
    return True


async def deploy(connection: AsyncConnection, model_id: str, plans: Sequence[DeploymentPlan], now: datetime) -> None:
    """Make the deployments of a model those of `plans`: others are disabled, known ones keep their id."""
    rows = await connection.execute(select(deployment).where(deployment.c.model_id == model_id))
    known = {(row.backend_id, row.backend_model): row for row in rows}
    wanted = {(plan.backend_id, plan.backend_model): plan for plan in plans}
    for pair, row in known.items():
        if pair not in wanted and row.disabled_at is None:
            await connection.execute(update(deployment).where(deployment.c.id == row.id).values(disabled_at=now))
    for pair, plan in wanted.items():
        if pair in known:
            again = update(deployment).where(deployment.c.id == known[pair].id)
            await connection.execute(again.values(asdict(plan) | {"disabled_at": None}))
        else:
            values = asdict(plan) | {"model_id": model_id, "created_at": now}
            await connection.execute(insert(deployment).values(id=uuid7(now), **values))


async def add_deployment(connection: AsyncConnection, model_id: str, plan: DeploymentPlan, now: datetime) -> bool:
    """Add a deployment to those of a model; False where there is one of this model under this name already."""
    # One after another, as `update_model` does before `deploy`: of two who both find none, both would add one.
    await connection.execute(select(model.c.id).where(model.c.id == model_id).with_for_update(key_share=True))
    same = select(deployment).where(
        deployment.c.model_id == model_id,
        deployment.c.backend_id == plan.backend_id,
        deployment.c.backend_model == plan.backend_model,
    )
    known = await fetch_optional(connection, same)
    if known is None:
        values = asdict(plan) | {"model_id": model_id, "created_at": now}
        await connection.execute(insert(deployment).values(id=uuid7(now), **values))
    elif known.disabled_at is not None:
        await connection.execute(update(deployment).where(deployment.c.id == known.id).values(disabled_at=None))
    return known is None or known.disabled_at is not None


async def list_models(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of models by id, without aliases."""
    own = select(model).where(model.c.id.not_in(select(alias.c.model_id)))
    return await fetch_page(connection, own, model.c.id, page)


async def find_model(connection: AsyncConnection, model_id: str) -> AnyRow | None:
    """A model by its id, disabled or not."""
    return await fetch_optional(connection, select(model).where(model.c.id == model_id))


async def find_deployments(connection: AsyncConnection, model_ids: Sequence[str]) -> dict[str, list[AnyRow]]:
    """The enabled deployments of some models, each with `backend`, its backend's name, and `backend_disabled_at`."""
    rows = await connection.execute(
        select(deployment, backend.c.name.label("backend"), backend.c.disabled_at.label("backend_disabled_at"))
        .join(backend, backend.c.id == deployment.c.backend_id)
        .where(deployment.c.model_id.in_(model_ids), deployment.c.disabled_at.is_(None))
        .order_by(deployment.c.id)
    )
    found: dict[str, list[AnyRow]] = {model_id: [] for model_id in model_ids}
    for row in rows:
        found[row.model_id].append(row)
    return found


async def missing_models(connection: AsyncConnection, model_ids: Sequence[str]) -> list[str]:
    """Those of `model_ids` that are no model at all, sorted."""
    rows = await connection.execute(select(model.c.id).where(model.c.id.in_(model_ids)))
    return sorted(set(model_ids) - set(rows.scalars()))
