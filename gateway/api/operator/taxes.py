"""Routes of the seller that invoices name, and of the rules by which supplies are taxed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from billing.store import taxes
from billing.store.pages import AnyRow
from billing.tax import TaxRule, check_tax_id, parse_percent, percent_text
from gateway.api.operator.organizations import Country
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import AskedById, Body, ListOf, Moment, Name, Slug, Text, list_of
from models.errors import InvalidRequest, NotFound
from models.invoice import TaxTreatment

router = APIRouter()

Treatment = Literal["standard", "exempt", "reverse_charge", "zero_rated"]


class SellerBody(Body):
    """Who issues the invoices, and the names of their two series of numbers."""

    legal_name: Name
    country: Country
    tax_id: Text | None = None
    address: Text | None = None
    email: Text | None = None
    phone: Text | None = None
    payment_details: Text | None = None
    invoice_series: Slug = "INV"
    credit_note_series: Slug = "CN"


class Seller(SellerBody):
    """Who issues the invoices."""

    object: Literal["seller"] = "seller"

    @classmethod
    def of(cls, row: AnyRow) -> Seller:
        """The answer for a row."""
        return cls(**{name: getattr(row, name) for name in SellerBody.model_fields})


class NewTaxRule(Body):
    """A rule for buyers of a country, or without one of all countries that have no rule; `rate` is in percent.

    The open rule of the same country ends where this one begins.
    """

    country: Country | None = None
    treatment: Treatment = "standard"
    rate: str = Field("0", max_length=8, examples=["10", "8.875"])
    included: bool = Field(False, description="Whether the prices contain the tax")
    name: Name
    effective_from: Moment | None = None


class TaxRuleAnswer(BaseModel):
    """A rule by which supplies are taxed."""

    id: UUID
    object: Literal["tax_rule"] = "tax_rule"
    country: str | None
    treatment: Treatment
    rate: str
    included: bool
    name: str
    effective_from: datetime
    effective_to: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> TaxRuleAnswer:
        """The answer for a row."""
        return cls(
            **{name: getattr(row, name) for name in ("id", "country", "treatment", "name")},
            rate=percent_text(row.rate_ppm),
            included=row.is_inclusive,
            effective_from=row.effective.lower,
            effective_to=row.effective.upper,
        )


class TaxRuleEnd(Body):
    """When a rule ends; without a moment, now."""

    effective_to: Moment | None = None


@router.get("/seller")
async def get_seller(request: Operator) -> Seller:
    """Who issues the invoices."""
    async with request.reading() as connection:
        row = await taxes.find_seller(connection)
    if row is None:
        raise NotFound("Nobody is named as the seller yet. Say who issues the invoices with `tollgate seller set`.")
    return Seller.of(row)


@router.post("/seller", response_model=Seller)
async def set_seller(body: SellerBody, request: Operator) -> Response:
    """Say who issues the invoices from now on; those that were issued keep what they show."""

    async def effect(change: Change) -> Seller:
        if body.invoice_series == body.credit_note_series:
            raise InvalidRequest(
                "Invoices and credit notes need two series. Give them different names.", param="credit_note_series"
            )
        columns = body.model_dump()
        if body.tax_id is not None:
            columns["tax_id"] = check_tax_id(body.country, body.tax_id)
        row = await taxes.set_seller(change.connection, columns)
        await change.audit("seller.set", "seller:1", **body.model_dump(mode="json"))
        return Seller.of(row)

    return await request.change(effect)


@router.get("/tax_rules")
async def list_tax_rules(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[TaxRuleAnswer]:
    """All tax rules, in the order in which they were made; those that ended are among them."""
    async with request.reading() as connection:
        rows, more = await taxes.list_rules(connection, asked.page())
    return list_of([TaxRuleAnswer.of(row) for row in rows], more)


@router.post("/tax_rules", response_model=TaxRuleAnswer)
async def create_tax_rule(body: NewTaxRule, request: Operator) -> Response:
    """Add a tax rule. An invoice follows the rule in force at the end of its month."""

    async def effect(change: Change) -> TaxRuleAnswer:
        rate = parse_percent(body.rate)
        if rate and body.treatment != "standard":
            raise InvalidRequest("Only a standard rule has a rate. Leave it out, or make it standard.", param="rate")
        rule = TaxRule(TaxTreatment(body.treatment), rate, body.included, body.name)
        new = taxes.NewTaxRule(body.country, rule, body.effective_from or change.now)
        row = await taxes.add_rule(change.connection, new, change.actor, change.now)
        await change.audit("tax_rule.created", f"tax_rule:{row.id}", **body.model_dump(mode="json"))
        return TaxRuleAnswer.of(row)

    return await request.change(effect)


@router.post("/tax_rules/{rule_id}/end", response_model=TaxRuleAnswer)
async def end_tax_rule(rule_id: UUID, request: Operator, body: TaxRuleEnd | None = None) -> Response:
    """End a tax rule, without another in its place."""

    async def effect(change: Change) -> TaxRuleAnswer:
        moment = None if body is None else body.effective_to
        row = await taxes.end_rule(change.connection, rule_id, moment or change.now)
        if row is None:
            raise NotFound("There is no such tax rule.")
        await change.audit("tax_rule.ended", f"tax_rule:{rule_id}")
        return TaxRuleAnswer.of(row)

    return await request.change(effect)
