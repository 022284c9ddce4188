"""Routes of markups: prices published as what usage costs and a part of that on top, for models that others serve."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.costing import METERS, marked_up
from billing.schemes import refuse_impossible
from billing.store import costs as stored_costs
from billing.store import prices as stored
from gateway.api.operator.prices import Price
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import Body, CurrencyCode, Decimal, ModelId, Moment, Slug
from models.catalog import Meter, PriceDraft
from models.errors import InvalidRequest
from models.money import MilliUnits, parse_price

router = APIRouter()


class StatedCosts(Body):
    """What another provider takes, per million tokens or per million requests."""

    input: Decimal | None = None
    cached_input: Decimal | None = None
    output: Decimal | None = None
    request: Decimal | None = None


class NewMarkup(Body):
    """Prices to publish: cost × (1 + `markup_ppm` / 1,000,000), rounded half-even to a milli-unit.

    Costs are the stated ones, else those in force today of the model in this currency (`/model_costs`). A price is
    published once: where the cost changes the price does not, until this is asked for again.
    """

    model: ModelId
    markup_ppm: Annotated[int, Field(ge=0, le=100_000_000, description="250000 is 25 percent")]
    book: Slug = "default"
    currency: CurrencyCode = "USD"
    costs: StatedCosts | None = None
    effective_from: Moment | None = None


class Markup(BaseModel):
    """The prices that were published."""

    object: Literal["price_markup"] = "price_markup"
    data: list[Price]


@router.post("/prices/markup", response_model=Markup)
async def publish_markup(body: NewMarkup, request: Operator) -> Response:
    """Publish the prices of a model as its costs and a markup."""

    async def effect(change: Change) -> Markup:
        costs = await _costs(change, body)
        if Meter.INPUT not in costs:
            raise InvalidRequest(
                f"The cost of an input token of {body.model} in {body.currency} is not known, and without that price "
                "it is not sold. State it in 'costs', or publish it as a cost of the model.",
                param="costs",
            )
        published = []
        for meter, cost in costs.items():
            draft = PriceDraft(
                book=body.book,
                model=body.model,
                meter=meter,
                currency=body.currency,
                price=marked_up(cost, body.markup_ppm),
                effective_from=body.effective_from,
            )
            refuse_impossible(draft)
            published.append(Price.of(await stored.publish(change.connection, draft, change.actor, change.now)))
        change.catalog_changed = True
        asked = body.model_dump(mode="json", exclude_unset=True)
        await change.audit("price.marked_up", f"model:{body.model}", **asked)
        return Markup(data=published)

    return await request.change(effect)


async def _costs(change: Change, body: NewMarkup) -> dict[Meter, MilliUnits]:
    if body.costs is not None:
        stated = body.costs.model_dump(exclude_none=True)
        return {Meter(name): parse_price(text, body.currency) for name, text in stated.items()}
    today = change.now.date()
    known = await stored_costs.prices_of_costs(change.connection)
    return {
        METERS[one.kind]: one.price
        for one in known
        if one.model == body.model and one.currency == body.currency and one.kind in METERS and one.in_force(today)
    }
