"""Shapes that the admin API's requests and answers share: times, addresses, deletions, pages that go both ways."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from billing.store.pages import Page
from gateway.api.issuing import LAST_USE
from gateway.api.operator.shapes import AskedById, Body, Printable
from models.errors import InvalidRequest
from models.money import LARGEST_BALANCE_UNITS, Units, units_of_minor

LONGEST_SECONDS = 10 * 366 * 86_400
LARGEST_CENTS = LARGEST_BALANCE_UNITS // 10_000_000

LifeSeconds = Annotated[int, Field(ge=1, le=LONGEST_SECONDS)]
LastUse = Annotated[int | None, Field(description=LAST_USE)]
OrganizationRole = Literal["owner", "reader"]
ProjectRole = Literal["owner", "member"]
Cents = Annotated[int, Field(ge=0, le=LARGEST_CENTS)]


def _address(value: str) -> str:
    # No more than can be told without sending a mail. In lower case, since nobody means two people by two cases.
    user, at, host = value.strip().rpartition("@")
    if not at or not user or "@" in user or "." not in host.strip(".") or any(each.isspace() for each in value.strip()):
        raise ValueError("must be an email address")
    return value.strip().lower()


Email = Annotated[str, StringConstraints(max_length=254), Printable, AfterValidator(_address)]


def seconds(moment: datetime) -> int:
    """A moment as the API tells it."""
    return int(moment.timestamp())


def seconds_or_none(moment: datetime | None) -> int | None:
    """A moment that may not have come."""
    return None if moment is None else seconds(moment)


def expiry(now: datetime, life_seconds: int | None) -> datetime | None:
    """When what lives so long from now on ends."""
    return None if life_seconds is None else now + timedelta(seconds=life_seconds)


class Deleted(BaseModel):
    """The answer to a deletion."""

    id: str
    deleted: Literal[True] = True
    object: str


class DeletedSetting(BaseModel):
    """The answer to the deletion of what has no id."""

    deleted: Literal[True] = True
    object: str


class AskedInOrder(AskedById):
    """A page of a list in either order."""

    order: Literal["asc", "desc"] = "asc"

    def page(self, *, newest_first: bool = False) -> Page:
        """The page to read."""
        return Page(self.after, self.limit, self.order == "desc")


class AskedBothWays(AskedInOrder):
    """A page of a list in either order, after or before an item, or between two: so the SDK goes on with `before`."""

    before: UUID | None = None

    def page(self, *, newest_first: bool = False) -> Page:
        """The page to read."""
        return Page(self.after, self.limit, self.order == "desc", self.before)


class MonthlyAmount(Body):
    """An amount of each calendar month, in cents."""

    threshold_amount: Cents
    currency: Literal["USD"]
    interval: Literal["month"]

    def units(self, currency: str) -> Units:
        """Ledger units; raises `InvalidRequest` for an organization that is not billed in dollars."""
        return dollars(self.threshold_amount, currency, "currency")


def dollars(cents: int, currency: str, param: str) -> Units:
    """Ledger units of cents; raises `InvalidRequest` for an organization that is not billed in dollars."""
    if currency != "USD":
        raise InvalidRequest(
            f"This API counts in US cents, and this organization is billed in {currency}. "
            "Ask the operator to set the amount in that currency.",
            param=param,
        )
    return units_of_minor(cents, "USD")


def cents(units: int) -> int:
    """Whole cents of an amount in ledger units of USD, rounded down."""
    return int(units) // 10_000_000
