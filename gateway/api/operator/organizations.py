"""Routes of organizations: who pays, how, within which limits, and what their balance is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import available_timezones

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from billing.hot.keys import shard_of
from billing.settlement import open_accounts, set_credit_limit
from billing.store import organizations as stored
from billing.store.pages import AnyRow
from billing.tax import check_tax_id
from gateway.api.operator.requests import Change, Operator
from gateway.api.operator.shapes import (
    AskedById,
    Body,
    CurrencyCode,
    LimitsBody,
    ListOf,
    Money,
    Name,
    Slug,
    Text,
    list_of,
)
from models.account import BillingMode
from models.errors import Conflict, InvalidRequest, NotFound, Unavailable
from models.ids import uuid7
from models.money import Units

router = APIRouter()


def _timezone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError("must be a time zone of the IANA database, such as 'Europe/Berlin'")
    return value


Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
Language = Literal["en", "ko"]
TermsDays = Annotated[int, Field(ge=0, le=365)]
TaxTreatment = Literal["standard", "exempt", "reverse_charge", "zero_rated"]
Timezone = Annotated[str, StringConstraints(max_length=64), AfterValidator(_timezone)]


class NewOrganization(Body):
    """An organization to create. Its currency can never change."""

    name: Name
    legal_name: Text | None = None
    country: Country | None = None
    tax_id: Text | None = None
    currency: CurrencyCode = "USD"
    timezone: Timezone = "UTC"
    billing_mode: BillingMode = BillingMode.PREPAID
    credit_limit: Money | None = None
    low_balance: Money | None = None
    price_book: Slug = "default"
    limits: LimitsBody = LimitsBody()
    address: Text | None = None
    email: Text | None = None
    language: Language = "en"
    payment_terms_days: TermsDays = 30
    purchase_order: Text | None = None
    tax_treatment: TaxTreatment | None = None


class OrganizationUpdate(Body):
    """What is to change of an organization; what is left out stays."""

    name: Name | None = None
    legal_name: Text | None = None
    country: Country | None = None
    tax_id: Text | None = None
    timezone: Timezone | None = None
    billing_mode: BillingMode | None = None
    credit_limit: Money | None = None
    low_balance: Money | None = None
    price_book: Slug | None = None
    limits: LimitsBody | None = None
    address: Text | None = None
    email: Text | None = None
    language: Language | None = None
    payment_terms_days: TermsDays | None = None
    purchase_order: Text | None = None
    tax_treatment: TaxTreatment | None = None


class Organization(BaseModel):
    """An organization."""

    id: UUID
    object: Literal["organization"] = "organization"
    name: str
    legal_name: str | None
    country: str | None
    tax_id: str | None
    currency: str
    timezone: str
    billing_mode: BillingMode
    credit_limit: Money
    low_balance: Money | None
    price_book: str
    limits: LimitsBody
    address: str | None
    email: str | None
    language: str
    payment_terms_days: int
    purchase_order: str | None
    tax_treatment: str | None
    parked_reason: str | None
    created_at: datetime
    closed_at: datetime | None

    @classmethod
    def of(cls, row: AnyRow) -> Organization:
        """The answer for a row."""
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in ("object", "limits")}
        plain["credit_limit"] = Money.of(row.credit_limit, row.currency)
        plain["low_balance"] = None if row.low_balance is None else Money.of(row.low_balance, row.currency)
        return cls(**plain, limits=LimitsBody.of(row))


class Balance(BaseModel):
    """Money of an organization now: `available` = `balance` + `credit_limit` - `held`."""

    object: Literal["balance"] = "balance"
    currency: str
    balance: Money
    held: Money
    available: Money
    credit_limit: Money


@router.post("/organizations", response_model=Organization)
async def create_organization(body: NewOrganization, request: Operator) -> Response:
    """Create an organization with its accounts in the book."""

    async def effect(change: Change) -> Organization:
        credit_limit = body.credit_limit.units(body.currency, "credit_limit") if body.credit_limit else Units(0)
        _check_mode(body.billing_mode, credit_limit)
        columns = body.model_dump(exclude={"credit_limit", "limits"}) | body.limits.columns()
        columns |= _tax_id(body.country, body.tax_id)
        columns["low_balance"] = _low_balance(body.low_balance, body.currency)
        organization_id = uuid7(change.now)
        row = await stored.create_organization(
            change.connection,
            organization_id,
            shard_of(organization_id),
            change.now,
            columns | {"credit_limit": credit_limit, "billing_mode": body.billing_mode.value},
        )
        await open_accounts(change.connection, organization_id, body.currency)
        await _audit(change, "organization.created", organization_id, body)
        change.project(organization_id)
        return Organization.of(row)

    return await request.change(effect)


@router.get("/organizations")
async def list_organizations(asked: Annotated[AskedById, Query()], request: Operator) -> ListOf[Organization]:
    """All organizations, oldest first."""
    async with request.reading() as connection:
        rows, more = await stored.list_organizations(connection, asked.page())
    return list_of([Organization.of(row) for row in rows], more)


@router.get("/organizations/{organization_id}")
async def get_organization(organization_id: UUID, request: Operator) -> Organization:
    """One organization."""
    async with request.reading() as connection:
        return Organization.of(await found_organization(connection, organization_id))


@router.patch("/organizations/{organization_id}", response_model=Organization, include_in_schema=False)
@router.post("/organizations/{organization_id}", response_model=Organization)
async def update_organization(organization_id: UUID, body: OrganizationUpdate, request: Operator) -> Response:
    """Change an organization. A new credit limit counts from the next call on."""

    async def effect(change: Change) -> Organization:
        row = await open_organization(change.connection, organization_id)
        credit_limit = body.credit_limit.units(row.currency, "credit_limit") if body.credit_limit else None
        mode = body.billing_mode or BillingMode(row.billing_mode)
        _check_mode(mode, Units(int(row.credit_limit)) if credit_limit is None else credit_limit)
        columns = _changed(body)
        if columns.keys() & {"country", "tax_id"}:
            columns |= _tax_id(columns.get("country", row.country), columns.get("tax_id", row.tax_id))
        if "low_balance" in columns:
            columns["low_balance"] = _low_balance(body.low_balance, row.currency)
        # A prepaid organization has no limit, so a limit is taken away before the mode changes and given after it.
        if credit_limit == 0:
            await set_credit_limit(change.connection, organization_id, Units(0))
        if columns:
            await stored.update_organization(change.connection, organization_id, columns)
        if credit_limit:
            await set_credit_limit(change.connection, organization_id, credit_limit)
        await _audit(change, "organization.updated", organization_id, body)
        change.project(organization_id)
        return Organization.of(await found_organization(change.connection, organization_id))

    return await request.change(effect)


@router.post("/organizations/{organization_id}/close", response_model=Organization)
async def close_organization(organization_id: UUID, request: Operator) -> Response:
    """Close an organization: its keys stop within seconds, its book stays. It cannot be opened again."""

    async def effect(change: Change) -> Organization:
        row = await found_organization(change.connection, organization_id, for_update=True)
        if row.closed_at is None:
            columns = {"closed_at": change.now}
            row = await stored.update_organization(change.connection, organization_id, columns)
            await change.audit("organization.closed", f"organization:{organization_id}", organization_id)
        return Organization.of(row)

    return await request.change(effect)


@router.get("/organizations/{organization_id}/balance")
async def get_balance(organization_id: UUID, request: Operator) -> Balance:
    """The balance that the next call will be checked against, with what running calls hold of it."""
    async with request.reading() as connection:
        row = await found_organization(connection, organization_id)
    balance = await request.parts.hot.balance(row.shard, organization_id)
    if balance is None:
        raise Unavailable("The balance is being rebuilt. Try again in a moment.")
    return Balance(
        currency=row.currency,
        balance=Money.of(balance.balance, row.currency),
        held=Money.of(balance.held, row.currency),
        available=Money.of(balance.available, row.currency),
        credit_limit=Money.of(balance.credit_limit, row.currency),
    )


async def found_organization(connection: AsyncConnection, organization_id: UUID, *, for_update: bool = False) -> AnyRow:
    """The organization of this id, or `NotFound`."""
    row = await stored.find_organization(connection, organization_id, for_update=for_update)
    if row is None:
        raise NotFound("There is no such organization.")
    return row


async def open_organization(connection: AsyncConnection, organization_id: UUID) -> AnyRow:
    """The organization of this id, locked for a change of it or of what it owns; `Conflict` where it is closed."""
    row = await found_organization(connection, organization_id, for_update=True)
    if row.closed_at is not None:
        raise Conflict("This organization is closed.")
    return row


def _check_mode(mode: BillingMode, credit_limit: Units) -> None:
    if mode is BillingMode.PREPAID and credit_limit:
        raise InvalidRequest(
            "A prepaid organization has no credit limit. Make it postpaid or hybrid, or leave the limit out.",
            param="credit_limit",
        )


def _tax_id(country: str | None, tax_id: str | None) -> dict[str, str]:
    return {} if tax_id is None else {"tax_id": check_tax_id(country, tax_id)}


def _low_balance(low_balance: Money | None, currency: str) -> Units | None:
    """The balance below which there is an alert; zero is never below, so it is none."""
    return None if low_balance is None else low_balance.units(currency, "low_balance") or None


def _changed(body: OrganizationUpdate) -> dict[str, Any]:
    optional = {"legal_name", "country", "tax_id", "address", "email", "purchase_order", "tax_treatment", "low_balance"}
    columns = body.model_dump(exclude_unset=True, exclude={"credit_limit", "limits"})
    for name, value in columns.items():
        if value is None and name not in optional:
            raise InvalidRequest(f"'{name}' cannot be null. Leave it out to keep it.", param=name)
    if body.limits is not None:
        columns |= body.limits.model_dump(exclude_unset=True)
    return columns


async def _audit(change: Change, action: str, organization_id: UUID, body: Body) -> None:
    asked = body.model_dump(mode="json", exclude_unset=True)
    await change.audit(action, f"organization:{organization_id}", organization_id, **asked)
