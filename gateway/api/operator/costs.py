"""Routes of own costs: what usage costs the seller, what machines ran, posting both, and the margin that is left."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.costing import Machines
from billing.costs import post_costs
from billing.periods import parse_period
from billing.store import costs as stored
from billing.store.pages import AnyRow
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import (
    AskedById,
    BackendName,
    Body,
    CurrencyCode,
    Decimal,
    ListOf,
    ModelId,
    Money,
    list_of,
)
from models.catalog import CostKind
from models.errors import InvalidRequest
from models.money import MilliUnits, amount_text, parse_amount, parse_price, price_text

router = APIRouter()

_LARGEST = 2**62
_MILLI = 1_000
_PER_MILLION = frozenset({CostKind.INPUT_TOKEN, CostKind.CACHED_TOKEN, CostKind.OUTPUT_TOKEN, CostKind.REQUEST})


class NewCost(Body):
    """What a unit costs from a day on: per million tokens or requests, per GPU-hour, or per kWh."""

    model: ModelId
    kind: CostKind
    currency: CurrencyCode = "USD"
    price: Decimal = Field(description="Decimal string; per million tokens or requests, per GPU-hour, or per kWh")
    effective_from: date
    effective_to: date | None = None


class Cost(BaseModel):
    """What a unit costs from `effective_from` (inclusive) to `effective_to` (exclusive)."""

    id: UUID
    object: Literal["model_cost"] = "model_cost"
    model: str
    kind: CostKind
    currency: str
    price: str
    effective_from: date
    effective_to: date | None

    @classmethod
    def of(cls, row: AnyRow) -> Cost:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in ("id", "model", "kind", "currency")}
        return cls(
            **plain,
            price=_price_text(CostKind(row.kind), row.price, row.currency),
            effective_from=row.effective.lower,
            effective_to=row.effective.upper,
        )


class MachineUse(Body):
    """What ran for a model on a backend on a day (UTC); it takes the place of what was declared before."""

    day: date
    model: ModelId
    backend: BackendName
    gpu_seconds: int = Field(0, ge=0, le=10**12)
    watt_hours: int = Field(0, ge=0, le=10**15)


class DeclaredUse(MachineUse):
    """What was declared."""

    object: Literal["machine_use"] = "machine_use"


class Month(Body):
    """A month, such as 2026-11."""

    month: str


class PostedCost(BaseModel):
    """A posting of costs; below zero where less is due than was posted before."""

    posting_id: str
    amount: Money


class CostRun(BaseModel):
    """What was posted; nothing where nothing has changed since the last run."""

    object: Literal["cost_run"] = "cost_run"
    month: str
    data: list[PostedCost]


class MarginLine(BaseModel):
    """What is left of an organization's calls of a model; no organization where machines ran for nobody."""

    organization_id: UUID | None
    organization: str | None
    model: str
    calls: int
    revenue: Money
    shares: Money
    costs: Money
    margin: Money


class Margin(BaseModel):
    """What is left of a month: revenue less shares less posted costs. Currencies are never added up."""

    object: Literal["margin_report"] = "margin_report"
    month: str
    data: list[MarginLine]
    totals: dict[str, dict[str, Money]]


class AskedMargin(BaseModel):
    """Of which month, and of whom or what."""

    model_config = {"extra": "forbid"}

    month: str
    organization_id: UUID | None = None
    model: ModelId | None = None


@router.post("/model_costs", response_model=Cost)
async def create_cost(body: NewCost, request: Operator) -> Response:
    """Say what a unit costs. It ends the price before it on its first day."""

    async def effect(change: Change) -> Cost:
        if body.effective_to is not None and body.effective_to <= body.effective_from:
            raise InvalidRequest("effective_to must be later than effective_from.", param="effective_to")
        new = stored.NewCost(
            body.model,
            body.kind,
            body.currency,
            _parse_price(body.kind, body.price, body.currency),
            body.effective_from,
            body.effective_to,
        )
        row = await stored.publish_cost(change.connection, new, change.actor, change.now)
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("model_cost.created", f"model_cost:{row.id}", **asked)
        return Cost.of(row)

    return await request.change(effect)


@router.get("/model_costs")
async def list_costs(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Cost]:
    """What units cost, in the order of publication, past and future ones included."""
    async with request.reading() as connection:
        rows, more = await stored.list_costs(connection, asked.page())
    return list_of([Cost.of(row) for row in rows], more)


@router.post("/machine_use", response_model=DeclaredUse)
async def declare_machine_use(body: MachineUse, request: Operator) -> Response:
    """Declare the GPU time and the power that a model took on a backend on a day."""

    async def effect(change: Change) -> DeclaredUse:
        use = Machines(body.model, body.day, body.gpu_seconds, body.watt_hours)
        await stored.declare_machines(change.connection, use, body.backend)
        subject = f"machine_use:{body.day}:{body.model}:{body.backend}"
        await change.audit("machine_use.declared", subject, **body.model_dump(mode="json"))
        return DeclaredUse(**body.model_dump())

    return await request.change(effect)


@router.post("/costs/run", response_model=CostRun)
async def run_costs(body: Month, request: Operator) -> Response:
    """Post what a month costs beyond what is posted of it; it can be repeated, and late usage is posted then."""

    async def effect(change: Change) -> CostRun:
        posted = await post_costs(change.connection, parse_period(body.month), change.now)
        data = [
            PostedCost(posting_id=str(each.posting_id), amount=Money.of(each.amount, each.currency)) for each in posted
        ]
        await change.audit("costs.posted", f"month:{body.month}", postings=[each.posting_id for each in data])
        return CostRun(month=body.month, data=data)

    return await request.change(effect)


@router.get("/reports/margin")
async def read_margin(asked: Annotated[AskedMargin, Query()], request: Operator) -> Margin:
    """Revenue, shares, posted costs and what is left, by organization, model and currency."""
    month = parse_period(asked.month)
    async with request.reading() as connection:
        rows = await stored.margin_of(connection, month, asked.organization_id, asked.model)
    totals: dict[str, dict[str, int]] = {}
    for row in rows:
        sums = totals.setdefault(row.currency, dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            sums[name] += int(getattr(row, name))
    return Margin(
        month=asked.month,
        data=[_margin_line(row) for row in rows],
        totals={
            currency: {name: Money.of(units, currency) for name, units in sums.items()}
            for currency, sums in totals.items()
        },
    )


_SUMS = ("revenue", "shares", "costs", "margin")


def _margin_line(row: AnyRow) -> MarginLine:
    amounts = {name: Money.of(getattr(row, name), row.currency) for name in _SUMS}
    return MarginLine(
        organization_id=row.organization_id,
        organization=row.organization,
        model=row.model,
        calls=int(row.calls),
        **amounts,
    )


def _parse_price(kind: CostKind, text: str, currency: str) -> MilliUnits:
    """Milli-units per token, request, GPU-hour or kWh."""
    price = parse_price(text, currency) if kind in _PER_MILLION else parse_amount(text, currency) * _MILLI
    if not 0 <= price <= _LARGEST:
        raise InvalidRequest("A cost must not be negative, nor larger than the ledger can hold.", param="price")
    return MilliUnits(price)


def _price_text(kind: CostKind, price: int, currency: str) -> str:
    return price_text(price, currency) if kind in _PER_MILLION else amount_text(price // _MILLI, currency)
