"""Own costs in Postgres: prices of usage, declared machines, what is posted of a month, and the margin that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.costing import CostKey, CostPrice, Machines, Used
from billing.months import next_month
from billing.store.pages import AnyRow, Page, fetch_one, fetch_page
from models.catalog import CostKind
from models.ids import uuid7
from models.money import MilliUnits, Units
from models.tables import cost, machine_use, model_cost, usage_day


@dataclass(frozen=True, slots=True)
class NewCost:
    """What a unit costs from a day on, in milli-units, until another day or a successor."""

    model: str
    kind: CostKind
    currency: str
    price: MilliUnits
    first_day: date
    end_day: date | None = None


async def publish_cost(connection: AsyncConnection, new: NewCost, created_by: str, now: datetime) -> AnyRow:
    """Store what a unit costs, and end the open price that it succeeds.

    Raises `IntegrityError` where there is no such model, or it overlaps one that has an end.
    """
    lower = func.lower(model_cost.c.effective)
    open_one = select(model_cost).where(
        model_cost.c.model == new.model,
        model_cost.c.kind == new.kind.value,
        func.upper_inf(model_cost.c.effective),
        lower < new.first_day,
    )
    row = (await connection.execute(open_one.with_for_update(key_share=True))).one_or_none()
    if row is not None:
        ended = Range(row.effective.lower, new.first_day, bounds="[)")
        await connection.execute(update(model_cost).where(model_cost.c.id == row.id).values(effective=ended))
    statement = insert(model_cost).values(
        id=uuid7(now),
        model=new.model,
        kind=new.kind.value,
        currency=new.currency,
        price=new.price,
        effective=Range(new.first_day, new.end_day, bounds="[)"),
        created_by=created_by,
        created_at=now,
    )
    return await fetch_one(connection, statement.returning(model_cost))


async def list_costs(connection: AsyncConnection, page: Page) -> tuple[list[AnyRow], bool]:
    """A page of prices of usage in the order of their publication."""
    return await fetch_page(connection, select(model_cost), model_cost.c.id, page)


async def declare_machines(connection: AsyncConnection, use: Machines, backend: str) -> AnyRow:
    """Note what ran on a backend for a model on a day, in the place of what was noted before."""
    values = {"gpu_seconds": use.gpu_seconds, "watt_hours": use.watt_hours}
    statement = (
        upsert(machine_use)
        .values(day=use.day, model=use.model, backend=backend, **values)
        .on_conflict_do_update(index_elements=["day", "model", "backend"], set_=values)
    )
    return await fetch_one(connection, statement.returning(machine_use))


async def one_at_a_time(connection: AsyncConnection) -> None:
    """Wait for whoever posts costs now: each posts what the ones before have left to post."""
    await connection.execute(text("select pg_advisory_xact_lock(7346017, 3)"))


async def prices_of_costs(connection: AsyncConnection) -> list[CostPrice]:
    """All prices of usage."""
    rows = await connection.execute(select(model_cost).order_by(model_cost.c.id))
    return [
        CostPrice(
            row.model, CostKind(row.kind), row.currency, MilliUnits(row.price), row.effective.lower, row.effective.upper
        )
        for row in rows
    ]


async def used_in(connection: AsyncConnection, month: date) -> list[Used]:
    """What was used of models that cost something, of calls that are billed in a month."""
    rows = await connection.execute(
        select(
            usage_day.c.model,
            usage_day.c.organization_id,
            usage_day.c.day,
            func.sum(usage_day.c.calls).label("calls"),
            func.sum(usage_day.c.input_tokens).label("input"),
            func.sum(usage_day.c.cached_tokens).label("cached"),
            func.sum(usage_day.c.output_tokens).label("output"),
        )
        .where(usage_day.c.billing_month == month, usage_day.c.model.in_(select(model_cost.c.model)))
        .group_by(usage_day.c.model, usage_day.c.organization_id, usage_day.c.day)
    )
    return [
        Used(row.model, row.organization_id, row.day, int(row.calls), int(row.input), int(row.cached), int(row.output))
        for row in rows
    ]


async def machines_in(connection: AsyncConnection, month: date) -> list[Machines]:
    """What ran for models in a month."""
    rows = await connection.execute(
        select(machine_use).where(machine_use.c.day >= month, machine_use.c.day < next_month(month))
    )
    return [Machines(row.model, row.day, row.gpu_seconds, row.watt_hours) for row in rows]


async def posted_in(connection: AsyncConnection, month: date) -> dict[CostKey, int]:
    """What is posted of a month's costs."""
    rows = await connection.execute(
        select(
            cost.c.model, cost.c.kind, cost.c.organization_id, cost.c.currency, func.sum(cost.c.amount).label("amount")
        )
        .where(cost.c.month == month)
        .group_by(cost.c.model, cost.c.kind, cost.c.organization_id, cost.c.currency)
    )
    return {CostKey(row.model, CostKind(row.kind), row.organization_id, row.currency): int(row.amount) for row in rows}


async def postings_of(connection: AsyncConnection, month: date, currency: str) -> int:
    """How many postings a month's costs have."""
    counted = select(func.count(cost.c.posting_id.distinct())).where(cost.c.month == month, cost.c.currency == currency)
    return int((await connection.execute(counted)).scalar_one())


async def add_costs(
    connection: AsyncConnection, posting_id: int, month: date, amounts: Mapping[CostKey, Units]
) -> None:
    """Note what a posting adds to a month's costs."""
    await connection.execute(
        insert(cost),
        [
            {
                "posting_id": posting_id,
                "seq": seq,
                "month": month,
                "model": key.model,
                "kind": key.kind.value,
                "organization_id": key.organization_id,
                "currency": key.currency,
                "amount": amount,
            }
            for seq, (key, amount) in enumerate(amounts.items())
        ],
    )


_MARGIN = text(
    """
    with sold as (
      select usage_day.organization_id, usage_day.model, organization.currency, sum(usage_day.calls) as calls,
          sum(usage_day.amount) as revenue
        from usage_day join organization on organization.id = usage_day.organization_id
        where billing_month = :month group by 1, 2, 3
    ), shared as (
      select posting.organization_id, share.model, organization.currency, sum(share.amount) as shares
        from share
        join posting on posting.id = share.posting_id
        join organization on organization.id = posting.organization_id
        where posting.billing_month = :month group by 1, 2, 3
    ), spent as (
      select organization_id, model, currency, sum(amount) as costs from cost where month = :month group by 1, 2, 3
    ), line as (
      select organization_id, model, currency, calls, revenue, 0 as shares, 0 as costs from sold
      union all select organization_id, model, currency, 0, 0, shares, 0 from shared
      union all select organization_id, model, currency, 0, 0, 0, costs from spent
    )
    select organization_id, organization.name as organization, model, line.currency, sum(calls) as calls,
        sum(revenue) as revenue, sum(shares) as shares, sum(costs) as costs,
        sum(revenue) - sum(shares) - sum(costs) as margin
      from line
      left join organization on organization.id = organization_id
      where (cast(:organization as uuid) is null or organization_id = :organization)
        and (cast(:model as text) is null or model = :model)
      group by 1, 2, 3, 4
      order by 4, 2 nulls last, 1, 3
    """
)


async def margin_of(
    connection: AsyncConnection, month: date, organization_id: UUID | None = None, model: str | None = None
) -> list[AnyRow]:
    """What is left of a month, by organization, model and currency: revenue less shares less posted costs.

    No organization where machines ran for nobody. Amounts are ledger units.
    """
    values = {"month": month, "organization": organization_id, "model": model}
    return list((await connection.execute(_MARGIN, values)).all())
