"""Routes of revenue shares: who gets how much of calls, published and ended, never edited; and a party's statement."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.months import bounds_of
from billing.periods import parse_period
from billing.store import shares as stored
from billing.store.pages import AnyRow
from gateway.api.operator.organizations import found_organization
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, ListOf, ModelId, Moment, Money, Name, list_of
from models.ledger import ShareRole

router = APIRouter(prefix="/revenue_shares")


class NewShare(Body):
    """A share to publish, in parts per million: 250000 is a quarter. Null is every model, or every organization.

    Of two shares for one role and party the narrower one counts: that of the organization before that of the model.
    """

    role: ShareRole
    party: Name
    model: ModelId | None = None
    organization_id: UUID | None = None
    ppm: int = Field(ge=0, le=1_000_000)
    effective_from: Moment | None = None
    effective_to: Moment | None = None


class EndOfShare(Body):
    """When a share ends; null is now."""

    effective_to: Moment | None = None


class Share(BaseModel):
    """A share of calls that are made from `effective_from` (inclusive) to `effective_to` (exclusive)."""

    id: UUID
    object: Literal["revenue_share"] = "revenue_share"
    role: ShareRole
    party: str
    model: str | None
    organization_id: UUID | None
    ppm: int
    effective_from: datetime
    effective_to: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> Share:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("id", "role", "party", "model", "organization_id", "ppm")}
        return cls(**plain, effective_from=row.effective.lower, effective_to=row.effective.upper)


class StatementLine(BaseModel):
    """What a party got of an organization's calls of a model, in how many postings."""

    role: ShareRole
    organization_id: UUID
    model: str
    postings: int
    amount: Money


class Statement(BaseModel):
    """What a party got by postings of a period, and the sums by currency."""

    object: Literal["revenue_share_statement"] = "revenue_share_statement"
    party: str
    period: str
    lines: list[StatementLine]
    totals: dict[str, Money]


class AskedStatement(BaseModel):
    """Of whom, and of which month."""

    model_config = {"extra": "forbid"}

    party: Name
    period: str


@router.post("", response_model=Share)
async def create_share(body: NewShare, request: Operator) -> Response:
    """Publish a share, of calls that are made from now on or later."""

    async def effect(change: Change) -> Share:
        if body.organization_id is not None:
            await found_organization(change.connection, body.organization_id)
        await stored.hold_rules(change.connection)
        new = stored.NewRule(**body.model_dump())
        row = await stored.publish_rule(change.connection, new, change.actor, request.parts.clock.now())
        asked = body.model_dump(mode="json", exclude_unset=True, exclude={"organization_id"})
        await change.audit("revenue_share.created", f"revenue_share:{row.id}", body.organization_id, **asked)
        return Share.of(row)

    return await request.change(effect)


@router.get("")
async def list_shares(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Share]:
    """Shares in the order of their publication, ended and future ones included."""
    async with request.reading() as connection:
        rows, more = await stored.list_rules(connection, asked.page())
    return list_of([Share.of(row) for row in rows], more)


@router.post("/{share_id}/end", response_model=Share)
async def end_share(share_id: UUID, request: Operator, body: EndOfShare | None = None) -> Response:
    """End a share: calls that are made later are not divided by it."""

    async def effect(change: Change) -> Share:
        await stored.hold_rules(change.connection)
        end = body.effective_to if body else None
        row = await stored.end_rule(change.connection, share_id, end, request.parts.clock.now())
        ends = row.effective.upper.isoformat()
        await change.audit("revenue_share.ended", f"revenue_share:{share_id}", row.organization_id, effective_to=ends)
        return Share.of(row)

    return await request.change(effect)


@router.get("/statement")
async def read_statement(asked: Annotated[AskedStatement, Query()], request: Operator) -> Statement:
    """What a party got in a month, by the dates of the postings: what is owed to it by the closed books."""
    starts_at, ends_at = bounds_of(parse_period(asked.period), "UTC")
    async with request.reading() as connection:
        rows = await stored.statement_of(connection, asked.party, starts_at, ends_at)
    totals: dict[str, int] = {}
    for row in rows:
        totals[row.currency] = totals.get(row.currency, 0) + int(row.amount)
    return Statement(
        party=asked.party,
        period=asked.period,
        lines=[
            StatementLine(
                role=row.role,
                organization_id=row.organization_id,
                model=row.model,
                postings=row.postings,
                amount=Money.of(row.amount, row.currency),
            )
            for row in rows
        ],
        totals={currency: Money.of(units, currency) for currency, units in totals.items()},
    )
