"""Credit grants in Postgres: what is left of each, and which posting drew how much of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.booking import Grant, GrantScope
from models.ledger import GrantKind
from models.money import Units
from models.tables import credit_grant


@dataclass(frozen=True, slots=True)
class Draw:
    """An amount that a posting takes from a grant."""

    posting_id: int
    grant_id: UUID
    amount: Units


_DRAW = text(
    """
    insert into grant_draw (posting_id, grant_id, amount)
      select * from unnest(cast(:postings as bigint[]), cast(:grants as uuid[]), cast(:amounts as numeric[]))
    """
)
_TAKE = text(
    """
    update credit_grant
      set remaining = remaining - taken.amount
      from (
        select grant_id, sum(amount) as amount
          from unnest(cast(:grants as uuid[]), cast(:amounts as numeric[])) as draw (grant_id, amount)
          group by grant_id
      ) taken
      where credit_grant.id = taken.grant_id
    """
)


async def add_grant(
    connection: AsyncConnection,
    grant: Grant,
    *,
    organization_id: UUID,
    currency: str,
    created_at: datetime,
    rolled_from: UUID | None = None,
) -> None:
    """Insert a grant of which nothing is drawn yet; `rolled_from` is the one whose rest it is."""
    await connection.execute(
        insert(credit_grant).values(
            id=grant.id,
            organization_id=organization_id,
            kind=grant.kind.value,
            amount=grant.remaining,
            remaining=grant.remaining,
            currency=currency,
            priority=grant.priority,
            scope=scope_json(grant.scope),
            effective_at=grant.effective_at,
            expires_at=grant.expires_at,
            rollover_max=grant.rollover_max,
            rolled_from=rolled_from,
            created_at=created_at,
        )
    )


async def spendable_grants(connection: AsyncConnection, organization_ids: Collection[UUID]) -> dict[UUID, list[Grant]]:
    """The grants of these organizations that have money left and are not voided."""
    rows = await connection.execute(
        select(credit_grant).where(
            credit_grant.c.organization_id.in_(organization_ids),
            credit_grant.c.remaining > 0,
            credit_grant.c.voided_at.is_(None),
        )
    )
    grants: dict[UUID, list[Grant]] = {}
    for row in rows:
        grants.setdefault(row.organization_id, []).append(_grant(row))
    return grants


async def find_grant(connection: AsyncConnection, grant_id: UUID) -> tuple[UUID, str, Grant] | None:
    """A grant with its organization and currency; None where there is none, or it is voided."""
    rows = await connection.execute(
        select(credit_grant).where(credit_grant.c.id == grant_id, credit_grant.c.voided_at.is_(None))
    )
    row = rows.one_or_none()
    return None if row is None else (row.organization_id, row.currency, _grant(row))


async def grants_past_expiry(connection: AsyncConnection, moment: datetime) -> list[tuple[UUID, UUID]]:
    """Organization and id of the grants with money left that expired at or before `moment`."""
    rows = await connection.execute(
        select(credit_grant.c.organization_id, credit_grant.c.id)
        .where(credit_grant.c.remaining > 0, credit_grant.c.voided_at.is_(None), credit_grant.c.expires_at <= moment)
        .order_by(credit_grant.c.organization_id, credit_grant.c.id)
    )
    return [(row.organization_id, row.id) for row in rows]


async def draw(connection: AsyncConnection, draws: Sequence[Draw]) -> None:
    """Take money out of grants, with a row for each posting that did; the money of their organizations is locked."""
    if not draws:
        return
    arrays = {
        "postings": [taken.posting_id for taken in draws],
        "grants": [taken.grant_id for taken in draws],
        "amounts": [taken.amount for taken in draws],
    }
    await connection.execute(_DRAW, arrays)
    await connection.execute(_TAKE, {"grants": arrays["grants"], "amounts": arrays["amounts"]})


async def mark_voided(connection: AsyncConnection, grant_id: UUID, now: datetime) -> None:
    """Note that a grant was taken back."""
    await connection.execute(update(credit_grant).where(credit_grant.c.id == grant_id).values(voided_at=now))


def scope_json(scope: GrantScope) -> dict[str, list[str]] | None:
    """A scope as it is stored: the names it is limited to, sorted; None without limits."""
    limits: dict[str, list[str]] = {}
    if scope.models is not None:
        limits["models"] = sorted(scope.models)
    if scope.project_ids is not None:
        limits["project_ids"] = sorted(str(project_id) for project_id in scope.project_ids)
    return limits or None


def scope_from(stored: Mapping[str, Any] | None) -> GrantScope:
    """The scope in a stored JSON object. Raises `ValueError` for one that is not understood: it must limit nothing
    less than was meant."""
    if stored is None:
        return GrantScope()
    if unknown := stored.keys() - {"models", "project_ids"}:
        raise ValueError(f"a grant's scope limits models and project_ids, not {sorted(unknown)}")
    models, project_ids = stored.get("models"), stored.get("project_ids")
    if not all(names is None or isinstance(names, list) for names in (models, project_ids)):
        raise ValueError("the limits of a grant's scope are lists")
    return GrantScope(
        models=None if models is None else frozenset(str(name) for name in models),
        project_ids=None if project_ids is None else frozenset(UUID(name) for name in project_ids),
    )


def _grant(row: Row[Any]) -> Grant:
    return Grant(
        id=row.id,
        kind=GrantKind(row.kind),
        remaining=Units(int(row.remaining)),
        priority=row.priority,
        effective_at=row.effective_at,
        expires_at=row.expires_at,
        scope=scope_from(row.scope),
        rollover_max=Units(int(row.rollover_max)),
    )
