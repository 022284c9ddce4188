"""Shapes that the operator's requests and answers share: bounded text, money, limits, pages and lists."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from billing.store.pages import AnyRow, Page
from models.account import Limits
from models.errors import InvalidRequest
from models.money import LARGEST_BALANCE_UNITS, Units, money, parse_amount


class Body(BaseModel):
    """What is sent to us: a field that is not known is refused, so that nothing is believed to be set that is not."""

    model_config = ConfigDict(extra="forbid")


def _printable(value: str) -> str:
    # NUL cannot be stored, a lone surrogate cannot be encoded, and line breaks would forge lines of logs and CSV.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("must not contain control characters")
    return value


def _without_dots(value: str) -> str:
    # Clients and proxies resolve such a segment, and would ask for another model than the one named.
    if any(segment in (".", "..") for segment in value.split("/")):
        raise ValueError("must not contain '.' or '..' as a part of a path")
    return value


Printable = AfterValidator(_printable)
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), Printable]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), Printable]
Slug = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
BackendName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$")]
ModelId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9/_~@][A-Za-z0-9._:/@+~-]{0,199}$"), AfterValidator(_without_dots)
]
"""Also a file's path, because llama.cpp calls its model by that."""
CurrencyCode = Literal["USD", "EUR", "KRW", "JPY"]


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this time is outside the years 1 to 9999 in UTC") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Decimal = Annotated[str, StringConstraints(max_length=42)]


class Money(Body):
    """An amount as a decimal string with its currency, in requests and answers alike."""

    amount: Decimal
    currency: CurrencyCode

    def units(self, currency: str, param: str) -> Units:
        """Ledger units of the amount; raises `InvalidRequest` for another currency, or out of bounds."""
        if self.currency != currency:
            raise InvalidRequest(f"The amount must be in {currency}, the organization's currency.", param=param)
        units = parse_amount(self.amount, self.currency)
        if not 0 <= units <= LARGEST_BALANCE_UNITS:
            raise InvalidRequest("The amount must not be negative, nor larger than the ledger can hold.", param=param)
        return units

    @classmethod
    def of(cls, units: int, currency: str) -> Money:
        """The JSON form of an amount in ledger units."""
        return cls.model_validate(money(int(units), currency))


def _above_zero(value: str) -> str:
    if not value.strip("0."):
        raise ValueError("must be above zero")
    if value.startswith("-"):
        raise ValueError("must not be negative; what goes the other way is a refund or a credit note")
    return value


class PaidMoney(Money):
    """An amount that changes hands: above zero."""

    amount: Annotated[Decimal, AfterValidator(_above_zero)]


Limit = Annotated[int, Field(ge=0, le=2_000_000_000)]


class LimitsBody(Body):
    """Rate limits of an organization, a project or a key; null is no limit."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_in_flight: Limit | None = None

    def columns(self) -> dict[str, int | None]:
        """The limits by column of the tables."""
        return self.model_dump()

    def limits(self) -> Limits:
        """The same as a value."""
        return Limits(**self.model_dump())

    @classmethod
    def of(cls, row: AnyRow) -> LimitsBody:
        """The limits in a row of organization, project or api_key."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class Asked(BaseModel):
    """Query parameters: one that is not known is refused, rather than silently not applied."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)


class AskedById(Asked):
    """A page of a list whose cursor is a UUID."""

    after: UUID | None = None

    def page(self, *, newest_first: bool = False) -> Page:
        """The page to read."""
        return Page(self.after, self.limit, newest_first)


T = TypeVar("T", bound=BaseModel)


class ListOf(BaseModel, Generic[T]):
    """A list as in the OpenAI API: pass `last_id` as `after` for the next page."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


def list_of(items: Sequence[T], has_more: bool) -> ListOf[T]:
    """The list of items that have an `id`."""
    ids = [str(item.id) for item in items]  # type: ignore[attr-defined]
    return ListOf(
        data=list(items), first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=has_more
    )
