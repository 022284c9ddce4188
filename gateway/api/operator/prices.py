"""Routes of prices: versions are published and succeeded, never edited; alone, or a whole list as CSV."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.price_imports import Imported, import_prices
from billing.price_lists import is_per_million, price_csv, read_prices
from billing.repricing import Repriced, dry_run
from billing.schemes import LARGEST_QUANTITY, MOST_TIERS, dearest, refuse_impossible
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
    Money,
    Slug,
    list_of,
)
from models.catalog import Meter, PriceDraft, PriceVersion, Scheme, Tier, TiersOver
from models.errors import InvalidRequest
from models.money import MilliUnits, parse_price, parse_price_each, price_each_text, price_text

router = APIRouter()

_CSV: Final = "text/csv; charset=utf-8"

Quantity = Annotated[int, Field(ge=1, le=LARGEST_QUANTITY)]
PerMillion = Annotated[Decimal | None, Field(description="Decimal string; per million tokens, or per million requests")]
Each = Annotated[Decimal | None, Field(description="Decimal string; of one request, image, second, call or package")]


class NewTier(Body):
    """The price of the units after the tier before, up to `up_to`, which the last tier leaves out."""

    up_to: Quantity | None = None
    price_per_million: PerMillion = None
    price_each: Each = None


class NewPrice(Body):
    """A price to publish. It closes the open version before it at `effective_from` (default: now).

    The price is stated once: per million, for one, or in tiers. Packages and the least price of a call (the meter
    `minimum`) are stated for one.
    """

    book: Slug = "default"
    model: ModelId
    meter: Meter
    currency: CurrencyCode = "USD"
    scheme: Scheme = Scheme.UNIT
    price_per_million: PerMillion = None
    price_each: Each = None
    tiers: Annotated[list[NewTier], Field(max_length=MOST_TIERS)] | None = None
    tiers_over: TiersOver = TiersOver.CALL
    package_size: Quantity | None = None
    effective_from: Moment | None = None
    effective_to: Moment | None = None

    def draft(self) -> PriceDraft:
        """The price as a value; raises `InvalidRequest` for one that cannot be."""
        tiers = tuple(Tier(tier.up_to, self._stated(tier)) for tier in self.tiers or ())
        if tiers and (self.price_per_million or self.price_each) is not None:
            raise InvalidRequest("A price with tiers is stated in its tiers. Leave the other price out.", param="tiers")
        draft = PriceDraft(
            book=self.book,
            model=self.model,
            meter=self.meter,
            currency=self.currency,
            price=dearest(tiers) if tiers else self._stated(self),
            effective_from=self.effective_from,
            effective_to=self.effective_to,
            scheme=self.scheme,
            tiers=tiers,
            package_size=self.package_size,
            tiers_over=self.tiers_over,
        )
        refuse_impossible(draft)
        return draft

    def _stated(self, body: NewPrice | NewTier) -> MilliUnits:
        if (body.price_per_million is None) == (body.price_each is None):
            raise InvalidRequest(
                "State the price once: price_per_million, price_each or tiers.", param="price_per_million"
            )
        if body.price_each is not None:
            return parse_price_each(body.price_each, self.currency)
        assert body.price_per_million is not None, "one of the two is stated"
        if self.scheme is Scheme.PACKAGE or self.meter is Meter.MINIMUM:
            raise InvalidRequest("State the price of one package or call, as price_each.", param="price_per_million")
        return parse_price(body.price_per_million, self.currency)


class PriceTier(BaseModel):
    """A tier of a price; the last one has no `up_to`."""

    up_to: int | None
    price_per_million: str | None
    price_each: str | None


class Price(BaseModel):
    """A price version, in force from `effective_from` (inclusive) to `effective_to` (exclusive)."""

    id: UUID
    object: Literal["price"] = "price"
    book: str
    model: str
    meter: Meter
    scheme: Scheme
    price_per_million: str | None
    price_each: str | None
    tiers: list[PriceTier] | None
    tiers_over: TiersOver | None
    package_size: int | None
    currency: str
    effective_from: datetime
    effective_to: datetime | None

    @classmethod
    def of(cls, version: PriceVersion) -> Price:
        """The answer for a version."""
        names = ("id", "book", "model", "meter", "currency", "scheme", "package_size", "effective_from", "effective_to")
        plain = {name: getattr(version, name) for name in names}
        tiers = [PriceTier(up_to=tier.up_to, **_prices(version, tier.price)) for tier in version.tiers] or None
        return cls(
            **plain,
            **({"price_per_million": None, "price_each": None} if tiers else _prices(version, version.price)),
            tiers=tiers,
            tiers_over=version.tiers_over if tiers else None,
        )


def _prices(version: PriceVersion, price: MilliUnits) -> dict[str, str | None]:
    """The texts of a price: per million where a call has many, for one where people think of one; of some both."""
    has_millions = version.scheme is not Scheme.PACKAGE and version.meter is not Meter.MINIMUM
    has_ones = not is_per_million(version.meter, version.scheme)
    return {
        "price_per_million": price_text(price, version.currency) if has_millions else None,
        "price_each": price_each_text(price, version.currency) if has_ones else None,
    }


class PriceImport(BaseModel):
    """What an import did, or would do: prices `published`, ended by the list, and lines that said nothing new."""

    object: Literal["price_import"] = "price_import"
    dry_run: bool
    published: list[Price]
    ended: list[Price]
    unchanged: int

    @classmethod
    def of(cls, imported: Imported, *, dry_run: bool) -> PriceImport:
        """The answer for an import."""
        published, ended = ([Price.of(one) for one in versions] for versions in (imported.published, imported.ended))
        return cls(dry_run=dry_run, published=published, ended=ended, unchanged=imported.unchanged)


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
        version = await stored.publish(change.connection, body.draft(), change.actor, change.now)
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


# Lists ---------------------------------------------------------------------------------------------------------------


@router.get("/prices/export", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
async def export_prices(request: Operator, book: Slug | None = None, at: Moment | None = None) -> Response:
    """Price versions as CSV: of one book or all, past and future ones too, or those in force `at` a moment."""
    async with request.reading() as connection:
        versions = await stored.all_versions(connection, book, at)
    name = f"prices-{book}.csv" if book else "prices.csv"
    return Response(
        price_csv(versions), media_type=_CSV, headers={"content-disposition": f'attachment; filename="{name}"'}
    )


@router.post(
    "/prices/import",
    response_model=PriceImport,
    openapi_extra={"requestBody": {"content": {"text/csv": {"schema": {"type": "string"}}}, "required": True}},
)
async def import_list(raw: Request, request: Operator, dry_run: bool = False) -> Response:
    """Publish a price list, all of it or nothing; lines that say what is in force are left alone."""
    lines = read_prices(await raw.body())
    if dry_run:
        async with request.reading() as connection:
            # Never committed: the connection rolls back when it is given back.
            imported = await import_prices(connection, lines, "dry run", request.parts.clock.now())
        answer = PriceImport.of(imported, dry_run=True)
        return Response(answer.model_dump_json(), media_type="application/json")

    async def effect(change: Change) -> PriceImport:
        imported = await import_prices(change.connection, lines, change.actor, change.now)
        change.catalog_changed = bool(imported.published or imported.ended)
        for action, versions in (("price.created", imported.published), ("price.ended", imported.ended)):
            for version in versions:
                asked = Price.of(version).model_dump(mode="json", exclude={"id", "object"}, exclude_none=True)
                await change.audit(action, f"price:{version.id}", **asked)
        return PriceImport.of(imported, dry_run=False)

    return await request.change(effect)


# Dry runs ------------------------------------------------------------------------------------------------------------


class PriceDryRun(Body):
    """Drafts, as prices or as a price list in CSV, and the calls to try them on: those admitted `from`, before `to`.

    When the drafts would begin or end does not matter: they are tried on the whole span. `batch_books` has price books
    name another book for batches, or none; with it there need not be drafts.
    """

    start: Moment = Field(alias="from")
    end: Moment | None = Field(None, alias="to", description="Default: now")
    prices: Annotated[list[NewPrice], Field(max_length=1_000)] | None = None
    csv: str | None = None
    batch_books: Annotated[dict[Slug, Slug | None], Field(max_length=100)] | None = None

    def drafts(self) -> list[PriceDraft]:
        """The drafts as values."""
        if self.batch_books and self.prices is None and self.csv is None:
            return []
        if (self.prices is None) == (self.csv is None) or self.prices == []:
            raise InvalidRequest("Give the drafts once: as prices or as csv.", param="prices")
        if self.csv is not None:
            return [line.draft for line in read_prices(self.csv.encode())]
        return [price.draft() for price in self.prices or ()]


class RepricedBatches(BaseModel):
    """The part of the calls that are lines of batches, before any rebate."""

    calls: int
    charged: Money
    would_be: Money
    difference: Money


class RepricedOrganization(BaseModel):
    """What an organization's calls were charged, and what they would have been; `difference` is how much more.

    `rebate` is how much more its invoices would give back, where tiers are over a month; it is off the difference.
    """

    organization_id: UUID
    name: str
    calls: int
    charged: Money
    would_be: Money
    rebate: Money
    difference: Money
    batches: RepricedBatches


class RepricedTotal(BaseModel):
    """The sum over all organizations of a currency."""

    currency: str
    calls: int
    charged: Money
    would_be: Money
    rebate: Money
    difference: Money
    batches: RepricedBatches


class PriceDryRunResult(BaseModel):
    """A dry run of drafts. Nothing was published."""

    object: Literal["price_dry_run"] = "price_dry_run"
    start: datetime = Field(serialization_alias="from")
    end: datetime = Field(serialization_alias="to")
    organizations: list[RepricedOrganization]
    totals: list[RepricedTotal]


@router.post("/prices/dry_run")
async def try_prices(body: PriceDryRun, request: Operator) -> PriceDryRunResult:
    """Price past calls again as if drafts had been in force: the difference for each organization. Changes nothing."""
    drafts, end = body.drafts(), body.end or request.parts.clock.now()
    async with request.reading() as connection:
        now, tried = request.parts.clock.now(), body.batch_books
        found = await dry_run(connection, drafts, body.start, end, now=now, batch_books=tried)
    totals: dict[str, Repriced] = {}
    for one in found:
        total = totals.setdefault(one.currency, Repriced(one.organization_id, one.currency))
        total.add(one)
        total.batches.add(one.batches)
        total.rebate += one.rebate
    return PriceDryRunResult(
        start=body.start,
        end=end,
        organizations=[
            RepricedOrganization(organization_id=one.organization_id, name=one.name, **_figures(one)) for one in found
        ],
        totals=[RepricedTotal(currency=code, **_figures(totals[code])) for code in sorted(totals)],
    )


_AMOUNTS: Final = ("charged", "would_be", "rebate", "difference")
_OF_BATCHES: Final = ("charged", "would_be", "difference")


def _figures(one: Repriced) -> dict[str, Any]:
    amounts = {name: Money.of(getattr(one, name), one.currency) for name in _AMOUNTS}
    of_batches = {name: Money.of(getattr(one.batches, name), one.currency) for name in _OF_BATCHES}
    return {"calls": one.calls, **amounts, "batches": RepricedBatches(calls=one.batches.calls, **of_batches)}
