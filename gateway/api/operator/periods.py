"""Routes of accounting periods: months of the books, which are closed one after the other and never opened again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response

from billing import periods
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Asked, ListOf, list_of

router = APIRouter()

PeriodId = Annotated[str, StringConstraints(max_length=20)]


class Period(BaseModel):
    """A month in UTC; `digest` is the SHA-256 of the trial balance it was closed with, `last_posting` the last then."""

    id: str
    object: Literal["period"] = "period"
    status: Literal["open", "closed"]
    starts_at: datetime
    ends_at: datetime
    closed_at: datetime | None
    closed_by: str | None
    digest: str | None
    last_posting: str | None

    @classmethod
    def of(cls, period: periods.Period) -> Period:
        """The answer for a period."""
        row, (starts_at, ends_at) = period.closed, period.bounds
        return cls(
            id=period.id,
            status="open" if row is None else "closed",
            starts_at=starts_at,
            ends_at=ends_at,
            closed_at=None if row is None else row.closed_at,
            closed_by=None if row is None else row.closed_by,
            digest=None if row is None else row.digest.hex(),
            last_posting=None if row is None else str(row.last_posting),
        )


class AskedPeriods(Asked):
    """Which periods to list, oldest first."""

    after: PeriodId | None = None
    limit: int = Field(20, ge=1, le=100)


@router.get("/periods")
async def list_periods(asked: Annotated[AskedPeriods, Query()], request: Operator) -> ListOf[Period]:
    """The periods from the first posting to the present."""
    async with request.reading() as connection:
        found = await periods.list_periods(connection, request.parts.clock.now())
    later = [Period.of(period) for period in found if asked.after is None or period.id > asked.after]
    return list_of(later[: asked.limit], len(later) > asked.limit)


@router.post("/periods/{period_id}/close", response_model=Period)
async def close_period(period_id: PeriodId, request: Operator) -> Response:
    """Close a period that has ended, after the ones before it; a closed one stays as it is."""

    async def effect(change: Change) -> Period:
        month = periods.parse_period(period_id)
        row = await periods.close_period(change.connection, request.parts.hot, period_id, change.actor, change.now)
        await change.audit("period.closed", f"period:{period_id}", digest=row.digest.hex())
        return Period.of(periods.Period(month, row))

    return await request.change(effect)
