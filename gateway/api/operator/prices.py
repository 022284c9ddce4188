"""Routes of prices: versions are published and succeeded, never edited."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.store import prices as stored
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import (
    AskedById,
    Body,
    CurrencyCode,
    Decimal,
    ListOf,
    ModelId,
    Moment,
    Slug,
    list_of,
)
from models.catalog import Meter, PriceVersion
from models.errors import InvalidRequest
from models.money import parse_price, price_text

router = APIRouter()

LARGEST_PRICE = 2**53
"""Milli-units per token; above it a single token could cost more than a balance can hold."""


class NewPrice(Body):
    """A price to publish. It closes the open version before it at `effective_from` (default: now)."""

    book: Slug = "default"
    model: ModelId
    meter: Meter
    currency: CurrencyCode = "USD"
    scheme: Literal["unit"] = "unit"
    price_per_million: Decimal = Field(description="Decimal string; per million tokens, or per million requests")
    effective_from: Moment | None = None
    effective_to: Moment | None = None


class Price(BaseModel):
    """A price version, in force from `effective_from` (inclusive) to `effective_to` (exclusive)."""

    id: UUID
    object: Literal["price"] = "price"
    book: str
    model: str
    meter: Meter
    scheme: Literal["unit"] = "unit"
    price_per_million: str
    tiers: None = None
    currency: str
    effective_from: datetime
    effective_to: datetime | None

    @classmethod
    def of(cls, version: PriceVersion) -> Price:
        """The answer for a version."""
        names = ("id", "book", "model", "meter", "currency", "effective_from", "effective_to")
        plain = {name: getattr(version, name) for name in names}
        return cls(**plain, price_per_million=price_text(version.price, version.currency))


class AskedPrices(AskedById):
    """Which prices to list; `at` keeps those in force at a moment."""

    book: Slug | None = None
    model: ModelId | None = None
    meter: Meter | None = None
    currency: CurrencyCode | None = None
    at: Moment | None = None


@router.post("/prices", response_model=Price)
async def create_price(body: NewPrice, request: Operator) -> Response:
    """Publish a price version."""

    async def effect(change: Change) -> Price:
        price = _new_price(body, change.now)
        version = await stored.publish(change.connection, price, change.actor, change.now)
        change.catalog_changed = True
        await change.audit("price.created", f"price:{version.id}", **body.model_dump(mode="json", exclude_unset=True))
        return Price.of(version)

    return await request.change(effect)


@router.get("/prices")
async def list_prices(asked: Annotated[AskedPrices, Query()], request: Operator) -> ListOf[Price]:
    """Price versions in the order of their publication, past and future ones included."""
    wanted = stored.PriceFilter(asked.book, asked.model, asked.meter, asked.currency, asked.at)
    async with request.reading() as connection:
        versions, more = await stored.list_prices(connection, wanted, asked.page())
    return list_of([Price.of(version) for version in versions], more)


def _new_price(body: NewPrice, now: datetime) -> stored.NewPrice:
    price = parse_price(body.price_per_million, body.currency)
    if price > LARGEST_PRICE:
        raise InvalidRequest("This price is larger than any balance.", param="price_per_million")
    start = body.effective_from or now
    if body.effective_to is not None and body.effective_to <= start:
        raise InvalidRequest("effective_to must be later than effective_from.", param="effective_to")
    return stored.NewPrice(body.book, body.model, body.meter, body.currency, price, start, body.effective_to)
